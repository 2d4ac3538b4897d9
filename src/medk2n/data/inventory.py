"""What is in a data set, and what looks wrong with it: every image is read once, nothing is changed."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import nibabel as nib
import numpy as np
from scipy import ndimage
from skimage.metrics import normalized_mutual_information
from skimage.registration import phase_cross_correlation

from medk2n.data.doubts import Doubt
from medk2n.data.intensity import unit_doubt
from medk2n.data.patient import air_level, is_stripped
from medk2n.data.subject import LeftOut, Subject
from medk2n.data.working import scaled
from medk2n.errors import GeometryError, Medk2nError, contained
from medk2n.geometry.orient import to_canonical
from medk2n.geometry.resample import check_overlap, resample
from medk2n.io.atomic import sha256_array
from medk2n.io.volume import Volume
from medk2n.vocabulary import modality

Examine = Callable[[Mapping[str, Volume], str], Iterable[Doubt]]
"""Given the scans of a subject that can be read, and which of them the others are held against."""
MISALIGNED_BY = 1.0
"""Voxels: a shift of more than this is told."""
_KINDS = {"scan": "no scan", "patient": "another patient"}
_BINS = 32
_MOST_VOXELS = 500_000
_CLEARLY = 1.01  # a shift must raise the mutual information by a hundredth to be believed


@dataclass(frozen=True)
class Image:
    """One image of one subject.

    Attributes:
        shape, spacing_mm, orientation: of its grid as stored ("RAS" and the like); spacing None if none is stated.
        stripped: whether an exact constant surrounds it.
        fingerprint: equal for images with the same voxels, however they are stored.
        shift: (3,) voxels towards right, anterior and superior by which it seems displaced against the subject's first
            image; None for the first, or where it could not be told.
    """

    subject: str
    modality: str
    path: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float] | None
    orientation: str
    stripped: bool
    fingerprint: str
    shift: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Complaint:
    """Something to look at before the data set is used."""

    subject: str
    modality: str
    kind: str
    what: str


@dataclass(frozen=True)
class Inventory:
    """A data set's images and what is the matter with them."""

    images: list[Image] = field(default_factory=list)
    complaints: list[Complaint] = field(default_factory=list)

    def modalities(self) -> list[str]:
        """Every modality that some subject has, the commonest first."""
        counts = Counter(image.modality for image in self.images)
        return sorted(counts, key=lambda name: (-counts[name], name))

    def patterns(self) -> dict[tuple[str, ...], list[str]]:
        """Which modalities are there together -> subjects, the largest group first."""
        has: dict[str, set[str]] = defaultdict(set)
        for image in self.images:
            has[image.subject].add(image.modality)
        groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for subject, names in has.items():
            groups[tuple(n for n in self.modalities() if n in names)].append(subject)
        return dict(sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])))


def take_inventory(
    subjects: Sequence[Subject],
    progress: Callable[[int, int], None] | None = None,
    *,
    faulty: Mapping[str, Medk2nError] | None = None,
    left_out: Mapping[str, Sequence[LeftOut]] | None = None,
    examine: Examine | None = None,
) -> Inventory:
    """Read every image of every subject; one that cannot be read is a complaint, not an end.

    Args:
        progress: called with (subjects done, subjects in all).
        faulty: subjects that cannot be used at all, as `discover` tells them.
        left_out: files that are not used, as `discover` tells them.
        examine: what else is to be said of the scans of a subject; displacements are measured here.
    """
    found = Inventory(complaints=[Complaint(i, "", "unreadable", str(fault)) for i, fault in (faulty or {}).items()])
    for name, files in (left_out or {}).items():
        found.complaints.extend(Complaint(name, "", "left out", str(file)) for file in files)
    for done, subject in enumerate(subjects):
        _look_at(subject, found, examine)
        if progress:
            progress(done + 1, len(subjects))
    found.complaints.extend(_duplicates(found.images))
    return found


def _look_at(subject: Subject, found: Inventory, examine: Examine | None) -> None:
    first: Volume | None = None
    volumes: dict[str, Volume] = {}
    for name in subject.modalities:
        try:
            volume = subject.readers[name]()
            image, complaints = _look(subject, name, volume, first)
        except Exception as error:
            found.complaints.append(Complaint(subject.id, name, "unreadable", str(contained(error))))
            continue
        first = first or volume
        found.images.append(image)
        found.complaints.extend(complaints)
        if examine and not any(complaint.kind == "apart" for complaint in complaints):
            volumes[name] = volume
    if first and examine:
        told = (doubt for doubt in examine(volumes, first.modality) if doubt.kind != "displaced")
        found.complaints.extend(Complaint(subject.id, d.modality, _KINDS.get(d.kind, d.kind), d.line) for d in told)


def _look(subject: Subject, name: str, volume: Volume, first: Volume | None) -> tuple[Image, list[Complaint]]:
    """One image, held against the subject's first."""
    shift, complaints = None, []
    if note := volume.provenance.get("note"):
        complaints.append(Complaint(subject.id, name, "header", note))
    if modality(name).scaling == "fixed" and (doubt := unit_doubt(scaled(volume, name)[2], name)):
        complaints.append(Complaint(subject.id, name, "unit", doubt))
    try:
        shift = displacement(first, volume) if first else None
    except GeometryError as error:
        complaints.append(Complaint(subject.id, name, "apart", str(error)))
    if first and shift is not None and max(map(abs, shift)) > MISALIGNED_BY:
        steps = ", ".join(f"{step:+.0f}" for step in shift)
        what = f"seems displaced against {first.modality} by {steps} voxels (right, anterior, superior)"
        complaints.append(Complaint(subject.id, name, "misaligned", what))
    return _facts(subject, name, volume, shift), complaints


def _facts(subject: Subject, name: str, volume: Volume, shift: tuple[float, float, float] | None) -> Image:
    canonical, _ = to_canonical(volume.array, volume.grid)
    x, y, z = (round(float(edge), 4) for edge in volume.grid.spacing_mm)
    return Image(
        subject.id,
        name,
        str(subject.provenance.get(name, "")),
        volume.grid.shape,
        None if volume.provenance.get("spacing") == "unknown" else (x, y, z),
        "".join(nib.aff2axcodes(volume.grid.affine)),
        is_stripped(volume),
        sha256_array(np.ascontiguousarray(canonical)),
        shift,
    )


def displacement(fixed: Volume, moving: Volume) -> tuple[float, float, float] | None:
    """Voxels of `fixed` (right, anterior, superior) by which `moving` seems displaced; None where nothing can be told.

    Cross-correlation of edges proposes a shift (contrasts differ, borders do not); normalised mutual information
    (Studholme 1999) has to rise with it by a hundredth, else the images are taken for aligned. A proposal of more than
    a quarter of the image says that their edges do not match at all.

    Raises:
        GeometryError: they do not overlap.
    """
    if not moving.grid.same_as(fixed.grid):
        check_overlap(fixed.grid, moving.grid, fixed.modality, moving.modality)
        array = resample(moving.array, moving.grid, fixed.grid, fill=air_level(moving))
    else:
        array = moving.array
    a, _ = to_canonical(fixed.array, fixed.grid)
    b, _ = to_canonical(array, fixed.grid)
    edges = [_edges(x) for x in (a, b)]
    if not all(e.any() for e in edges):
        return None
    back, _, _ = phase_cross_correlation(*edges, normalization=None)
    shift = -np.asarray(back)
    if (abs(shift) > np.array(a.shape) / 4).any():
        return None
    moved = ndimage.shift(b, back, order=0, mode="nearest")
    if _shared(a, moved) < _CLEARLY * _shared(a, b):
        return (0.0, 0.0, 0.0)
    x, y, z = (float(step) + 0.0 for step in shift)  # + 0.0: no -0.0 in tables
    return (x, y, z)


def _shared(a: np.ndarray, b: np.ndarray) -> float:
    """Normalised mutual information above that of unrelated images, on at most some 500 000 voxels."""
    step = 1 + a.size // _MOST_VOXELS
    return float(normalized_mutual_information(a.ravel()[::step], b.ravel()[::step], bins=_BINS)) - 1


def _edges(array: np.ndarray) -> np.ndarray:
    """Gradient magnitude, cut at its 99th percentile so that a few bright borders do not decide."""
    axes = [axis for axis, n in enumerate(array.shape) if n > 1]
    strength = np.sqrt(sum(np.gradient(array.astype(np.float32), axis=axis) ** 2 for axis in axes))
    return np.minimum(strength, np.percentile(strength, 99))


def _duplicates(images: Iterable[Image]) -> list[Complaint]:
    """The same voxels under two names: a patient on both sides of a split, or a file copied by mistake."""
    same: dict[str, list[Image]] = defaultdict(list)
    for image in images:
        same[image.fingerprint].append(image)
    return [
        Complaint(image.subject, image.modality, "duplicate", f"has the same voxels as {', '.join(others)}")
        for group in same.values()
        if len(group) > 1
        for image in group
        for others in [[f"{o.modality} of {o.subject}" for o in group if o is not image]]
    ]
