"""A prepared data set: what `medk2n prepare` writes, as far as readers and training need to know it.

prepared.json        the settings, alike for all subjects
SUBJECT/t1n.nii ...  each image on the working grid, in its unit; int16, not compressed, the slice axis last
SUBJECT/acq-random_run-1_t1n.nii    a further acquisition, for inputs alone
SUBJECT/desc-lesion_mask.nii ...    masks, on the same grid
SUBJECT/slices.npy, tables.safetensors    the same as training draws it (`data/stored.py`)
SUBJECT/study.json   every step with its parameters, scalings, sources and their hashes; written last
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from medk2n.data.intensity import Scaling
from medk2n.data.statistics import Moments
from medk2n.data.subject import Reader, Subject
from medk2n.errors import DatasetError, GeometryError
from medk2n.geometry.grid import Grid
from medk2n.geometry.orient import canonical_grid
from medk2n.geometry.resample import working_grid
from medk2n.io.door import door, read_text
from medk2n.io.nifti import read_labels, read_volume
from medk2n.io.volume import Header, Volume

FileName = Annotated[str, Field(pattern=r"^[^./\\\x00][^/\\\x00]*$")]
"""Names of files in a subject's folder, and in no other."""
SETTINGS, STUDY = "prepared.json", "study.json"
FORMAT = 1


class Shape(BaseModel):
    """The grid that all images of a study lie on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shape: tuple[int, int, int]
    affine: tuple[tuple[float, float, float, float], ...]
    spacing: Literal["stated", "unknown"]
    slice_axis: Literal[0, 1, 2]
    """Of the RAS axes."""


class ImageRecord(BaseModel):
    """One image of a study.

    Attributes:
        target: False for a further acquisition, which serves as an input alone.
        scaling: what takes its values to [0, 1] and back, fitted before it was resampled, which blurs its edges; None
            where that is left to the reader.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    modality: str
    target: bool
    scaling: dict[str, Any] | None

    @field_validator("scaling")
    @classmethod
    def _sound(cls, given: dict[str, Any] | None) -> dict[str, Any] | None:
        scaling = Scaling(**given) if given else None
        if scaling and not -inf < scaling.low < scaling.high < inf:
            raise ValueError(f"a scale from {scaling.low} to {scaling.high}")
        return given


class StudyRecord(BaseModel):
    """A study's sidecar.

    Attributes:
        patient: whose study it is, where the layout it came from told more than its id does.
        sources: file, relative to the data set where it lies in it -> SHA-256.
        images: name of a file, without .nii -> what it is.
        masks: their kinds.
        digests: modality -> SHA-256 of its scaled voxels, by which the same image is known in two places.
        moments: of the scaled values inside the foreground, for the statistics of a training set.
        steps: what was done, in order.
        warnings: what a person should know of.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1]
    id: str
    site: str
    patient: str = ""
    sources: dict[str, str]
    grid: Shape
    images: dict[FileName, ImageRecord]
    masks: list[FileName]
    digests: dict[str, str]
    moments: dict[str, Any]
    steps: list[dict[str, Any]]
    warnings: list[str]
    versions: dict[str, str]

    def at_spacing(self, spacing_mm: float) -> bool:
        """Whether a run that works at this in-plane spacing would take the images as they are."""
        if self.grid.spacing == "unknown":
            return True
        grid = Grid(self.grid.shape, np.array(self.grid.affine))
        return working_grid(grid, spacing_mm, self.grid.slice_axis).grid.same_as(canonical_grid(grid))

    def statistics(self) -> Moments:
        """The study's part in the statistics of a training set.

        Raises:
            DatasetError: damaged moments.
        """
        with door(DatasetError, f"{self.id}: its sidecar's moments cannot be read", "prepare it again"):
            return self._statistics()

    def _statistics(self) -> Moments:
        scalings = {i.modality: Scaling(**i.scaling) for i in self.images.values() if i.target and i.scaling}
        mean, product = np.array(self.moments["mean"]), np.array(self.moments["product"])
        return Moments(tuple(self.moments["modalities"]), mean, product, scalings)


def is_prepared(root: Path) -> bool:
    """Whether a folder is a prepared data set."""
    return (root / SETTINGS).is_file()


def read_record(folder: Path) -> StudyRecord:
    """A study's sidecar.

    Raises:
        DatasetError: it cannot be read, or is of another format.
    """
    path = folder / STUDY
    expected = f"{path}: expected a sidecar of medk2n prepare, format {FORMAT}"
    with door(DatasetError, expected, "remove the folder and prepare it again"):
        return StudyRecord.model_validate_json(read_text(path))


def prepared_subject(folder: Path) -> Subject:
    """The subject in one folder of a prepared data set; reads its sidecar, no voxels.

    Raises:
        DatasetError, GeometryError: as `read_record`, or a grid that cannot be.
    """
    record = read_record(folder)
    try:
        subject = subject_of(folder, record.id, record.grid, record.images, record.masks)
    except GeometryError as error:
        raise GeometryError(f"{folder / STUDY}: {error}") from error
    return replace(subject, site=record.site, patient=record.patient, prepared=folder)


def subject_of(
    folder: Path, subject_id: str, grid: Shape, images: Mapping[str, ImageRecord], masks: Iterable[str]
) -> Subject:
    """A subject whose volumes say what NIfTI cannot: their scaling, the slice axis, an unstated spacing."""
    readers: dict[str, Reader] = {}
    further: dict[str, list[Reader]] = defaultdict(list)
    paths = {label: folder / f"{label}.nii" for label in images}
    for label, image in images.items():
        facts = {"spacing": grid.spacing, "slice_axis": grid.slice_axis, "scaling": image.scaling}
        read = partial(_read, paths[label], image.modality, facts)
        if image.target:
            readers[image.modality] = read
        else:
            further[image.modality].append(read)
    mask_paths = {kind: folder / mask_name(kind) for kind in masks}
    header = Header(Grid(grid.shape, np.array(grid.affine)), grid.spacing == "stated", grid.slice_axis)
    return Subject(
        id=subject_id,
        readers=readers,
        inputs_only={name: tuple(reads) for name, reads in further.items()},
        masks={kind: partial(read_labels, path) for kind, path in mask_paths.items()},
        headers={name: partial(_said, header) for name in readers},
        provenance={image.modality: str(paths[label]) for label, image in images.items() if image.target},
        files=(*paths.values(), *mask_paths.values()),
    )


def mask_name(kind: str) -> str:
    """File name of a mask, from which other programs and readers know it too."""
    return f"desc-{kind}_mask.nii"


def _said(header: Header) -> Header:
    return header


def _read(path: Path, modality: str, facts: Mapping[str, Any]) -> Volume:
    volume = read_volume(path, modality)
    return Volume(volume.array, volume.grid, modality, {**volume.provenance, **facts})
