"""From a study to what a model sees: common reference grid, scaled intensities, a stack of slices; and back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from medk2n.data.intensity import Scaling, fit_scaling
from medk2n.data.patient import air_level, is_stripped, patient
from medk2n.data.subject import Subject
from medk2n.errors import GeometryError, VolumeReadError
from medk2n.geometry.grid import Grid
from medk2n.geometry.orient import to_canonical
from medk2n.geometry.resample import WorkingGrid, check_overlap, resample, working_grid
from medk2n.io.volume import LabelMap, Volume


@dataclass(frozen=True)
class Workspace:
    """The way from a study's reference grid to a stack of working slices, and back.

    Attributes:
        reference: the grid that outputs have.
        working: RAS grid at the model's in-plane spacing, and its slice axis.
    """

    reference: Grid
    working: WorkingGrid

    @classmethod
    def around(cls, volume: Volume, spacing_mm: float | None) -> "Workspace":
        """The workspace of a volume's grid, by what its provenance says.

        `"spacing": "unknown"` keeps the grid's own spacing, as None does; `"slice_axis"` is that of a grid which was
        brought to a working spacing before (`medk2n prepare`).
        """
        known = volume.provenance.get("spacing") != "unknown"
        axis = volume.provenance.get("slice_axis")
        return cls(volume.grid, working_grid(volume.grid, spacing_mm if known else None, axis))

    def stack(self, array: np.ndarray, *, order: int = 1) -> np.ndarray:
        """(x, y, z) on the reference grid -> (s, h, w) float32 working slices."""
        moved = resample(array, self.reference, self.working.grid, order=order)
        return np.ascontiguousarray(np.moveaxis(moved, self.working.slice_axis, 0))

    def unstack(self, slices: np.ndarray) -> np.ndarray:
        """(s, h, w) working slices -> (x, y, z) float32 on the reference grid."""
        array = np.moveaxis(slices, 0, self.working.slice_axis)
        return resample(np.ascontiguousarray(array), self.working.grid, self.reference)


@dataclass(frozen=True)
class WorkingStudy:
    """One subject on its working grid, ready for a model.

    Attributes:
        id: of the subject.
        images: modality -> (s, h, w) float32 in [0, 1], scaled by its own `Scaling`, 0 outside its foreground.
        foreground: (s, h, w) bool, the union over ALL acquired modalities: one per study, the same for every row.
        scalings: modality -> how to undo the scaling.
        brain: (s, h, w) bool if the data set gives a brain mask.
        lesion: (s, h, w) bool if the data set gives a lesion mask or segmentation.
        inputs_only: modality -> further acquisitions that serve as inputs alone.
        stripped: whether the images came skull-stripped.
    """

    id: str
    images: dict[str, np.ndarray]
    foreground: np.ndarray
    scalings: dict[str, Scaling]
    brain: np.ndarray | None = None
    lesion: np.ndarray | None = None
    inputs_only: dict[str, list[np.ndarray]] = field(default_factory=dict)
    stripped: bool = False

    def thinned(self, at: Sequence[int]) -> "WorkingStudy":
        """The same study with only the slices `at`: for scoring, not for predicting (slices lose their neighbours)."""
        keep = list(at)
        return WorkingStudy(
            id=self.id,
            images={name: array[keep] for name, array in self.images.items()},
            foreground=self.foreground[keep],
            scalings=self.scalings,
            brain=None if self.brain is None else self.brain[keep],
            lesion=None if self.lesion is None else self.lesion[keep],
            stripped=self.stripped,
        )


def scaled(volume: Volume, modality: str, head: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, Scaling]:
    """One volume -> (scaled to [0, 1] and 0 outside, foreground, scaling).

    A volume whose provenance has a `"scaling"` (`medk2n prepare`) keeps it.

    Args:
        head: mask of the patient if the data set gives one; used unless the volume is skull-stripped.

    Raises:
        VolumeReadError: no patient in it, or no contrast; names the file.
    """
    inside = patient(volume) if head is None or is_stripped(volume) else head
    known = volume.provenance.get("scaling")
    try:
        turned = (to_canonical(array, volume.grid)[0] for array in (volume.array, inside))
        scaling = Scaling(**known) if known else fit_scaling(*turned, modality)
    except VolumeReadError as error:
        raise VolumeReadError(f"{volume.provenance.get('path') or 'image in memory'}: {error}") from error
    return np.where(inside, np.clip(scaling.apply(volume.array), 0.0, 1.0), 0.0).astype(np.float32), inside, scaling


def scaled_on(
    volume: Volume, reference: Grid, reference_name: str, head: LabelMap | None = None
) -> tuple[np.ndarray, np.ndarray, Scaling]:
    """As `scaled`, brought to a grid of the same scanner space; outside the volume's field of view there is no patient.

    The patient is found and the scaling fitted where the volume was acquired, so that what it is filled up with
    decides nothing.

    Raises:
        VolumeReadError: as `scaled`.
        GeometryError: volume or mask do not overlap the reference.
    """
    name = str(volume.provenance.get("path") or volume.modality)
    mask = None if head is None else mask_on(head, volume.grid, name)
    values, inside, scaling = scaled(volume, volume.modality, mask)
    if volume.grid.same_as(reference):
        return values, inside, scaling
    check_overlap(reference, volume.grid, reference_name, name)
    inside = resample(inside, volume.grid, reference, order=0) > 0
    return np.where(inside, resample(values, volume.grid, reference), np.float32(0)), inside, scaling


def align(volumes: Mapping[str, Volume], reference: Grid, reference_name: str) -> dict[str, Volume]:
    """All volumes on one grid of the same scanner space; outside a volume's field of view is its background or air.

    Raises:
        GeometryError: if a volume does not overlap the reference.
    """
    aligned = {}
    for name, volume in volumes.items():
        if not volume.grid.same_as(reference):
            check_overlap(reference, volume.grid, reference_name, volume.provenance.get("path", name))
            array = resample(volume.array, volume.grid, reference, fill=air_level(volume))
            volume = Volume(array, reference, volume.modality, volume.provenance)
        aligned[name] = volume
    return aligned


def skull_stripped(volumes: Mapping[str, Volume]) -> bool:
    """Whether every volume has an exactly constant background."""
    return all(is_stripped(volume) for volume in volumes.values())


def every_nth(depth: int, n: int) -> list[int]:
    """Evenly spaced slices of a stack, at least one: what a thinned evaluation scores."""
    return list(range(min(n // 2, depth - 1), depth, n))


def load_working(subject: Subject, spacing_mm: float | None) -> WorkingStudy:
    """Read, align, scale and slice one subject.

    Args:
        spacing_mm: in-plane spacing of the working grid; ignored where the data set's spacing is unknown.
    """
    volumes = {name: subject.readers[name]() for name in subject.modalities}
    first = next(iter(volumes))
    reference = volumes[first].grid
    space = Workspace.around(volumes[first], spacing_mm)
    images, scalings, inside = {}, {}, np.zeros(reference.shape, dtype=bool)
    head = subject.masks["head"]() if "head" in subject.masks else None
    for name, volume in volumes.items():
        values, mask, scalings[name] = scaled_on(volume, reference, first, head)
        images[name] = space.stack(values)
        inside |= mask
    further: dict[str, list[np.ndarray]] = {}
    for name, readers in subject.inputs_only.items():
        for read in readers:
            further.setdefault(name, []).append(space.stack(scaled_on(read(), reference, first, head)[0]))
    masks = {
        kind: space.stack(mask_on(subject.masks[kind](), reference, subject.id), order=0) > 0
        for kind in ("brain", "lesion")
        if kind in subject.masks
    }
    return WorkingStudy(
        id=subject.id,
        images=images,
        foreground=space.stack(inside, order=0) > 0,
        scalings=scalings,
        brain=masks.get("brain"),
        lesion=masks.get("lesion"),
        inputs_only=further,
        stripped=skull_stripped(volumes),
    )


def mask_on(label: LabelMap, reference: Grid, name: str) -> np.ndarray:
    """A mask on the reference grid, (x, y, z) bool: where it is above 0.

    Raises:
        GeometryError: it does not overlap the reference, or has another shape.
    """
    array = label.array
    if not label.grid.same_as(reference):
        check_overlap(reference, label.grid, "the reference", f"the mask of {name}")
        array = resample(array, label.grid, reference, order=0)
    if array.shape != reference.shape:
        raise GeometryError(f"{name}: mask {array.shape} and images {reference.shape} differ in shape")
    return array > 0
