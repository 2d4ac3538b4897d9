"""What a data set looks like to a plan: who has what, on which grids, and how large the patient is in a few of them.

Headers alone are read, and the first image of a few subjects that are spread over the data set.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from medk2n.data.batches import ENOUGH
from medk2n.data.subject import Subject, all_needed
from medk2n.data.working import load_working
from medk2n.errors import DatasetError
from medk2n.geometry.resample import WorkingGrid, working_grid
from medk2n.io.volume import Header

LOOKED_AT = 8
"""Subjects of which an image is read."""
PLANES = ("sagittal", "coronal", "axial")
_MOST_GRIDS = 8


@dataclass(frozen=True)
class Fingerprint:
    """Facts about the subjects of a data set, plain data. In plane means within the slices that a model sees.

    Attributes:
        subjects: how many there are.
        images: modality -> subjects that have it.
        patterns: modalities that are there together ("t1c t1n t2f") -> subjects, the largest group first.
        planes: "axial", "coronal" or "sagittal" -> subjects that are sliced so: across their coarsest axis.
        grids: grid of the first image ("240 x 240 x 155 voxels of 1 x 1 x 1 mm") -> subjects, the commonest alone.
        unstated: subjects whose spacing nobody stated; they are used voxel by voxel.
        in_plane_mm: median over the other subjects of the finest in-plane spacing among their images.
        slice_mm: median over them of the distance of slices.
        slices: of all subjects.
        useful: share of the slices with enough of the patient to be learned from, among those looked at.
        area_mm2: of all slices of all images with a stated spacing, together.
        area_voxels: the same of the others.
        looked_at: subjects of which an image was read.
        boxes_mm: in-plane edges of the box around each patient looked at, the larger first.
        boxes_voxels: the same where no spacing is stated.
        stripped: how many of those looked at are skull-stripped.
    """

    subjects: int
    images: dict[str, int]
    patterns: dict[str, int]
    planes: dict[str, int]
    grids: dict[str, int]
    unstated: int
    in_plane_mm: float | None
    slice_mm: float | None
    slices: int
    useful: float
    area_mm2: float
    area_voxels: float
    looked_at: tuple[str, ...]
    boxes_mm: tuple[tuple[float, float], ...]
    boxes_voxels: tuple[tuple[float, float], ...]
    stripped: int

    @property
    def useful_slices(self) -> int:
        """About how many slices can be learned from."""
        return round(self.slices * self.useful)

    def boxes(self, spacing_mm: float) -> list[tuple[float, float]]:
        """In-plane edges in voxels of a working grid, of every patient looked at."""
        return [(a / spacing_mm, b / spacing_mm) for a, b in self.boxes_mm] + list(self.boxes_voxels)

    def voxels(self, spacing_mm: float) -> int:
        """Of all images together, on a working grid."""
        return round(self.area_mm2 / spacing_mm**2 + self.area_voxels)


@dataclass(frozen=True)
class _Stack:
    """One subject as slices: voxels and steps in plane, and across; millimetres where they are known."""

    plane: str
    depth: int
    edges: tuple[int, int]
    steps: tuple[float, float]
    step: float
    finest: float
    known: bool
    grid: str
    images: int

    @classmethod
    def of(cls, subject: Subject) -> "_Stack":
        headers = [subject.header(name) for name in subject.modalities]
        first = headers[0]
        grid, axis = (working := _working(first)).grid, working.slice_axis
        inside = [a for a in range(3) if a != axis]
        shape = " x ".join(map(str, first.grid.shape))
        spacing = " x ".join(f"{edge:.3g}" for edge in first.grid.spacing_mm)
        return cls(
            plane=PLANES[axis],
            depth=grid.shape[axis],
            edges=(grid.shape[inside[0]], grid.shape[inside[1]]),
            steps=(float(grid.spacing_mm[inside[0]]), float(grid.spacing_mm[inside[1]])),
            step=float(grid.spacing_mm[axis]),
            finest=min(_finest(header) for header in headers),
            known=first.spacing_known,
            grid=f"{shape} voxels of {spacing} mm" if first.spacing_known else f"{shape} voxels, spacing not stated",
            images=len(headers) + sum(map(len, subject.inputs_only.values())),
        )

    @property
    def area(self) -> float:
        """Of all slices of all images, mm^2 or voxels."""
        step = prod(self.steps) if self.known else 1.0
        return self.images * self.depth * prod(self.edges) * step


def _working(header: Header) -> WorkingGrid:
    return working_grid(header.grid, None, header.slice_axis)


def _finest(header: Header) -> float:
    """Of the two spacings in plane."""
    working = _working(header)
    return float(np.delete(working.grid.spacing_mm, working.slice_axis).min())


@dataclass(frozen=True)
class _Look:
    """Of one patient: box in plane (mm or voxels), share of useful slices, whether it is stripped."""

    box: tuple[float, float]
    useful: float
    stripped: bool


def take_fingerprint(subjects: Sequence[Subject], progress: Callable[[float], None] | None = None) -> Fingerprint:
    """Facts about subjects, in seconds.

    Args:
        progress: called with the share done.

    Raises:
        DatasetError: no patient in any of the images that were read.
        VolumeReadError, GeometryError: an image cannot be read.
    """
    tell = progress or (lambda share: None)
    stacks = []
    for done, subject in enumerate(subjects):
        tell(0.5 * done / len(subjects))
        with all_needed(subject.id):
            stacks.append(_Stack.of(subject))
    chosen = np.unique(np.linspace(0, len(subjects) - 1, min(LOOKED_AT, len(subjects))).round().astype(int)).tolist()
    looks = {}
    for done, k in enumerate(chosen):
        tell(0.5 + 0.5 * done / len(chosen))
        with all_needed(subjects[k].id):
            look = _look_at(subjects[k], stacks[k])
        if look:
            looks[k] = look
    if not looks:
        names = ", ".join(subjects[k].id for k in chosen)
        raise DatasetError(
            f"no slice with a patient in it in {names}; nothing to learn from; check them (medk2n index)"
        )
    known = [stack for stack in stacks if stack.known]
    return Fingerprint(
        subjects=len(subjects),
        images=_counts(name for subject in subjects for name in subject.modalities),
        patterns=_counts(" ".join(subject.modalities) for subject in subjects),
        planes=_counts(stack.plane for stack in stacks),
        grids=dict(list(_counts(stack.grid for stack in stacks).items())[:_MOST_GRIDS]),
        unstated=len(stacks) - len(known),
        in_plane_mm=_median([stack.finest for stack in known]),
        slice_mm=_median([stack.step for stack in known]),
        slices=sum(stack.depth for stack in stacks),
        useful=round(float(np.mean([look.useful for look in looks.values()])), 4),
        area_mm2=round(sum(stack.area for stack in known), 1),
        area_voxels=sum(stack.area for stack in stacks if not stack.known),
        looked_at=tuple(subjects[k].id for k in looks),
        boxes_mm=tuple(look.box for k, look in looks.items() if stacks[k].known),
        boxes_voxels=tuple(look.box for k, look in looks.items() if not stacks[k].known),
        stripped=sum(look.stripped for look in looks.values()),
    )


def _look_at(subject: Subject, stack: _Stack) -> _Look | None:
    """The patient in the first image, on its own grid; None where there is none."""
    first = subject.modalities[0]
    masks = {kind: read for kind, read in subject.masks.items() if kind == "head"}
    study = load_working(Subject(subject.id, {first: subject.readers[first]}, masks=masks), None)
    useful = float(np.mean(study.foreground.mean(axis=(1, 2)) > ENOUGH))
    if not useful:
        return None
    edges = []
    for axis, step in zip((1, 2), stack.steps if stack.known else (1.0, 1.0), strict=True):
        met = np.flatnonzero(study.foreground.any(axis=tuple({0, 1, 2} - {axis})))
        edges.append(round(float(met[-1] - met[0] + 1) * step, 2))
    return _Look((max(edges), min(edges)), useful, study.stripped)


def _counts(names: Iterable[str]) -> dict[str, int]:
    counted = Counter(names)
    return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))


def _median(values: Sequence[float]) -> float | None:
    return round(float(np.median(values)), 3) if values else None
