"""What is in a data set, and what looks wrong with it: every image is read once, nothing is changed."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np

from medk2n.data.doubts import Doubt
from medk2n.data.intensity import unit_doubt
from medk2n.data.patient import is_stripped
from medk2n.data.subject import LeftOut, Subject
from medk2n.data.working import scaled
from medk2n.errors import GeometryError, Medk2nError, contained
from medk2n.geometry.orient import to_canonical
from medk2n.geometry.resample import check_overlap
from medk2n.io.atomic import sha256_array
from medk2n.io.volume import Volume
from medk2n.vocabulary import modality

if TYPE_CHECKING:
    from medk2n.data.agreement import Agreement

Found = tuple[Iterable[Doubt], Mapping[str, "Agreement | None"]]
Examine = Callable[[Mapping[str, Volume], str], Found]
"""Given the scans of a subject that can be read, and which of them the others are held against: what speaks against
them, and how the others lie."""
_KINDS = {"scan": "no scan", "patient": "another patient"}


@dataclass(frozen=True)
class Image:
    """One image of one subject.

    Attributes:
        shape, spacing_mm, orientation: of its grid as stored ("RAS" and the like); spacing None if none is stated.
        stripped: whether an exact constant surrounds it.
        fingerprint: equal for images with the same voxels, however they are stored.
        shift: (3,) by how much it lies off the subject's first image, towards right, anterior and superior, in mm or,
            where nobody stated any, in voxels; None for the first, and where it could not be told or was not asked.
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
        examine: says what the scans of a subject show, and how they lie to each other.
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
            complaints = _look(subject, name, volume, first)
            image = _facts(subject, name, volume)
        except Exception as error:
            found.complaints.append(Complaint(subject.id, name, "unreadable", str(contained(error))))
            continue
        first = first or volume
        found.images.append(image)
        found.complaints.extend(complaints)
        if not any(complaint.kind == "apart" for complaint in complaints):
            volumes[name] = volume
    if first and examine:
        try:
            doubts, pairs = examine(volumes, first.modality)
        except Exception as error:
            found.complaints.append(Complaint(subject.id, "", "unreadable", str(contained(error))))
            return
        found.complaints.extend(Complaint(subject.id, d.modality, _KINDS.get(d.kind, d.kind), d.line) for d in doubts)
        for at, image in enumerate(found.images):
            if image.subject == subject.id and (pair := pairs.get(image.modality)):
                found.images[at] = replace(image, shift=tuple(round(step, 1) + 0.0 for step in pair.shift_mm))


def _look(subject: Subject, name: str, volume: Volume, first: Volume | None) -> list[Complaint]:
    """What is wrong with one image, or with how it lies to the subject's first."""
    complaints = []
    if note := volume.provenance.get("note"):
        complaints.append(Complaint(subject.id, name, "header", note))
    if modality(name).scaling == "fixed" and (doubt := unit_doubt(scaled(volume, name)[2], name)):
        complaints.append(Complaint(subject.id, name, "unit", doubt))
    try:
        if first:
            check_overlap(first.grid, volume.grid, first.modality, name)
    except GeometryError as error:
        complaints.append(Complaint(subject.id, name, "apart", str(error)))
    return complaints


def _facts(subject: Subject, name: str, volume: Volume) -> Image:
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
    )


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
