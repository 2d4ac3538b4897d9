"""A volume: an array, where it is, what it is, and where it came from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medk2n.errors import GeometryError, VolumeReadError
from medk2n.geometry.grid import Grid
from medk2n.vocabulary import MODALITIES

if TYPE_CHECKING:
    import nibabel


MOST = 1e15
"""Farthest from 0 that a voxel's value is believed to be; squares of more have no place in 32 bits."""


def check_values(array: np.ndarray, name: str) -> np.ndarray:
    """The values themselves, if they can be those of a scan.

    Raises:
        VolumeReadError: some are no number or beyond all units, or all are the same.
    """
    if bad := array.size - int(np.count_nonzero(np.abs(array) <= MOST)):
        raise VolumeReadError(
            f"{name}: {bad} voxels are NaN, infinite or beyond {MOST:g}; expected finite values; set them to 0 first"
        )
    if array.min() == array.max():
        raise VolumeReadError(
            f"{name}: every voxel is {array.flat[0]:g}; a constant volume shows nothing; leave it out"
        )
    return array


@dataclass(frozen=True)
class Header:
    """Where an image's voxels are, without them.

    Attributes:
        grid: its shape and affine.
        spacing_known: False where nobody stated millimetres: the grid has unit spacing then, and means voxels.
        slice_axis: across which slices lie, of the RAS axes, where a resampled grid no longer tells.
    """

    grid: Grid
    spacing_known: bool = True
    slice_axis: int | None = None


@dataclass(frozen=True, eq=False)
class Volume:
    """One 3-D image of one modality.

    Attributes:
        array: (x, y, z) float32, in the modality's unit.
        grid: shape and affine; `grid.shape == array.shape`.
        modality: short name of the vocabulary.
        provenance: plain data saying where it came from (file and hash, or model and inputs).
    """

    array: np.ndarray
    grid: Grid
    modality: str
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.array.shape != self.grid.shape:
            raise GeometryError(f"array {self.array.shape} and grid {self.grid.shape} differ in shape")
        if self.modality not in MODALITIES:
            raise GeometryError(f"{self.modality!r} is not a short modality name")

    @property
    def header(self) -> Header:
        """All but the voxels."""
        return Header(self.grid, self.provenance.get("spacing") != "unknown", self.provenance.get("slice_axis"))

    def to_nibabel(self) -> "nibabel.Nifti1Image":
        """As a float32 NIfTI image with exactly this affine; one of a synthetic volume says so in its header."""
        from medk2n.io.nifti import to_nibabel  # the file format knows volumes, not the other way round

        return to_nibabel(self, description=self._description)

    def save(self, path: Path | str, *, overwrite: bool = False) -> None:
        """Write a NIfTI file, whole or not at all.

        Raises:
            OutputExistsError: it is there and `overwrite` is off.
            OutputPermissionError, SystemLimitError: the folder may not be written to, or is full.
        """
        from medk2n.io.atomic import refuse_existing
        from medk2n.io.nifti import write_volume

        refuse_existing([path], overwrite)
        write_volume(self, path, description=self._description)

    @property
    def _description(self) -> str:
        return "SYNTHETIC image, not acquired" if self.provenance.get("synthetic") else ""


@dataclass(frozen=True, eq=False)
class LabelMap:
    """A mask or segmentation: integer array, where it is, and the hash of the file that it was read from."""

    array: np.ndarray
    grid: Grid
    sha256: str = ""


def as_labels(array: np.ndarray, what: str) -> np.ndarray:
    """Whole 32-bit numbers of a mask or segmentation, rounded.

    Raises:
        VolumeReadError: values that are none; `what` names the mask.
    """
    limits = np.iinfo(np.int32)
    with np.errstate(invalid="ignore"):
        sound = array.size and array.min() >= limits.min and array.max() <= limits.max  # NaN is neither
    if not sound:
        raise VolumeReadError(f"{what}: values that are no labels (NaN, infinite or beyond 32 bits); expected a mask")
    return np.rint(array).astype(np.int32)
