"""Which patients a model learns from, watches and is tested on: drawn once, kept as a file, checked at every run."""

import csv
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict

from medk2n.data.inventory import Inventory
from medk2n.data.sessions import patients
from medk2n.data.subject import Subject
from medk2n.errors import DatasetError, UnknownNameError, UsageError
from medk2n.io.door import door, read_any_text, read_text

FILE = "split.json"
Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = get_args(Part)

_SITE = (
    r"(BraTS-[A-Za-z]+)-.+",  # the cohort
    r"IXI\d+-([A-Za-z]+)-\d+",  # the hospital
    r"TCGA[_-]([A-Z0-9]{2})[_-].+",  # the tissue source site
    r"(1[A-Z]{2})\d+",  # SynthRAD: region and centre
)


class Placed(BaseModel):
    """Where one subject is, and what that was decided by."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    part: Part
    patient: str
    site: str
    modalities: tuple[str, ...]


class Split(BaseModel):
    """Every subject of a data set in one part."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int
    shares: dict[str, float]
    subjects: dict[str, Placed]

    def part(self, name: Part) -> list[str]:
        """Ids of a part, in order."""
        return [subject for subject, placed in self.subjects.items() if placed.part == name]

    def check(self, found: Collection[str], *, unused: Collection[str] = ()) -> None:
        """Refuse a split that is not of these subjects.

        Args:
            found: ids of the data set.
            unused: those of them that need not be in a part, since they are left out anyway.

        Raises:
            DatasetError: a subject of the data set is in no part, or one of the split is not in the data set.
        """
        for missing, where in (
            (sorted(set(found) - set(self.subjects) - set(unused)), "in no part of the split"),
            (sorted(set(self.subjects) - set(found)), "in the split but not in the data"),
        ):
            if missing:
                named = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
                raise DatasetError(
                    f"split: {len(missing)} subjects are {where} ({named}), expected the data that it was drawn from; "
                    "draw a new one with medk2n index --split"
                )


def patients_of(subjects: Sequence[Subject], stated: Mapping[str, str] | None = None) -> dict[str, str]:
    """Subject -> patient: as stated, else as layout or names (`data/sessions.py`) tell, else itself.

    Args:
        stated: subject -> patient, for some or all; see `read_patients`.
    """
    by_name = patients(subject.id for subject in subjects)
    return {s.id: (stated or {}).get(s.id) or s.patient or by_name[s.id] for s in subjects}


def read_patients(path: Path, subjects: Iterable[str]) -> dict[str, str]:
    """Subject -> patient from a table with the columns `subject` and `patient`, between commas or tabs.

    Raises:
        DatasetError: it cannot be read, lacks a column, or names a subject twice.
        UnknownNameError: it names a subject that is not there.
    """
    with door(DatasetError, f"{path}: cannot be read", "expected a table with the columns subject and patient"):
        text = read_any_text(path)
        rows = list(csv.DictReader(StringIO(text, newline=""), delimiter="\t" if "\t" in text else ","))
    found: dict[str, str] = {}
    for number, row in enumerate(rows, 2):
        subject, patient = ((row.get(column) or "").strip() for column in ("subject", "patient"))
        if not (subject and patient) or found.setdefault(subject, patient) != patient:
            raise DatasetError(f"{path}, line {number}: expected one subject and its patient in every line")
    if unknown := sorted(set(found) - set(subjects)):
        raise UnknownNameError(f"{path}: no subject {unknown[0]!r} in the data; compare with medk2n index")
    return found


def site_of(subject: Subject) -> str:
    """Where a subject comes from: what the data set states, else what its id tells, else "" (one site)."""
    return subject.site or _told(_SITE, subject.id)


def _told(patterns: Iterable[str], subject: str) -> str:
    return next((m[1] for pattern in patterns if (m := re.fullmatch(pattern, subject))), "")


def draw_split(
    subjects: Sequence[Subject],
    inventory: Inventory,
    *,
    validation: float,
    test: float,
    seed: int,
    patients: Mapping[str, str] | None = None,
) -> Split:
    """Part the patients at random, alike in every stratum of site and of modalities that are there.

    What must stay together does: sessions of one patient, and subjects that share an image's voxels.

    Args:
        validation, test: shares of the patients; the rest is to learn from.
        patients: subject -> patient; `patients_of` the subjects if None.

    Raises:
        UsageError: shares that leave nothing to learn from, or too few patients for a part.
    """
    shares = {"train": 1 - validation - test, "validation": validation, "test": test}
    if not (validation >= 0 and test >= 0 and shares["train"] > 0):  # NaN is refused too
        raise UsageError(f"a split into validation {validation:g} and test {test:g} leaves nothing to learn from")
    by_id = {subject.id: subject for subject in subjects}
    patients = patients or patients_of(subjects)
    groups = _groups(patients, inventory)
    strata: dict[tuple[str, tuple[str, ...]], list[list[str]]] = {}
    for group in groups:
        there = sorted({name for i in group for name in by_id[i].modalities})
        strata.setdefault((site_of(by_id[group[0]]), tuple(there)), []).append(group)
    rng = np.random.default_rng(seed)
    mixed = [stratum[k] for _, stratum in sorted(strata.items()) for k in rng.permutation(len(stratum))]
    parts = _dealt(len(mixed), shares, rng)
    for name, share in shares.items():
        if share and name not in parts:
            raise UsageError(
                f"{len(groups)} patients are too few for a {name} part of {share:g}; give it a larger share"
            )
    placed = {
        i: Placed(part=part, patient=patients[i], site=site_of(by_id[i]), modalities=by_id[i].modalities)
        for group, part in zip(mixed, parts, strict=True)
        for i in group
    }
    return Split(seed=seed, shares=shares, subjects=dict(sorted(placed.items())))


def _groups(patients: Mapping[str, str], inventory: Inventory) -> list[list[str]]:
    """Subjects that belong together, each group and all groups sorted."""
    group = {i: {i} for i in patients}
    first: dict[str, str] = {}
    links = [(f"patient {who}", i) for i, who in patients.items()]
    links += [(image.fingerprint, image.subject) for image in inventory.images]
    for what, subject in links:
        mine, other = group[subject], group[first.setdefault(what, subject)]
        if mine is not other:
            mine |= other
            group |= dict.fromkeys(mine, mine)
    return sorted({min(g): sorted(g) for g in group.values()}.values())


def _dealt(count: int, shares: Mapping[str, float], rng: np.random.Generator) -> list[str]:
    """A part for each of `count` groups in order, such that every stretch of them is parted nearly by the shares."""
    names = [name for name, share in shares.items() if share]
    owed = {name: float(rng.uniform(0, shares[name])) for name in names}  # where in its turn each part begins
    dealt = []
    for _ in range(count):
        for name in names:
            owed[name] += shares[name]
        dealt.append(max(names, key=lambda name: owed[name]))
        owed[dealt[-1]] -= 1
    return dealt


def read_split(path: Path | str) -> Split:
    """Read and check a split file.

    Raises:
        DatasetError: not a split, or one with a patient in two parts.
    """
    with door(DatasetError, f"{path}: expected a split as medk2n index --split writes it", "draw it again"):
        split = Split.model_validate_json(read_text(Path(path)))
    parts: dict[str, set[str]] = {}
    for placed in split.subjects.values():
        parts.setdefault(placed.patient, set()).add(placed.part)
    for patient, where in parts.items():
        if len(where) > 1:
            raise DatasetError(f"{path}: patient {patient} is in {' and '.join(sorted(where))}, expected one part")
    return split


def count_parts(split: Split) -> str:
    """For people: "70 train, 10 validation, 20 test"."""
    counts = Counter(placed.part for placed in split.subjects.values())
    return ", ".join(f"{counts[name]} {name}" for name in PARTS if counts[name])
