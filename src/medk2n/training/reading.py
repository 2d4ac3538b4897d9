"""What a run learns from and what it watches: 8-bit slices of every subject.

Subjects are read once and kept in memory, unless `medk2n prepare` made them at the run's spacing: then their slices
stay on the disk, and what is said of the whole study stands in its sidecar.
"""

import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from medk2n.config.params import read_params
from medk2n.config.schema import TrainConfig
from medk2n.data.batches import Augmentation, Batch, Store, draw_batch, whole_slices
from medk2n.data.discover import discover
from medk2n.data.prepared import read_record
from medk2n.data.split import Split, read_split
from medk2n.data.statistics import CohortStatistics, Moments, StatisticsBuilder
from medk2n.data.stored import ENOUGH, Stored
from medk2n.data.subject import LeftOut, Subject, all_needed
from medk2n.data.working import load_working
from medk2n.errors import ConfigError, DatasetError, Medk2nError
from medk2n.io.atomic import sha256_array
from medk2n.registry import resolve

Report = Callable[[str, float, dict[str, float]], None]
"""Called with a stage ("reading ...", "training", "validation"), the share done and the latest numbers."""

_VALIDATION_SLICES = 48

EVERYONE, REST, FOLD = "everyone", "rest", "fold"
"""Who a step learns from: every training subject, all but a fold of them, or the fold alone."""


@dataclass(frozen=True)
class _Study:
    """One subject as a run needs it."""

    id: str
    stored: Stored
    moments: Moments
    digests: dict[str, str]

    def named(self, root: str) -> dict[str, str]:
        """Digest of an image -> whose it is."""
        return {digest: f"{self.id}:{name} of {root}" for name, digest in self.digests.items()}


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What training draws from.

    Attributes:
        stores, shares: one of each a data folder, with its share of the crops.
        parts: `REST` and `FOLD` -> the same folders without and with the held out subjects alone; a folder that gives
            none is left out of the fold. Both are everyone where no folder has enough subjects.
        statistics: of the training subjects.
        validation: fixed slices of the subjects that are watched.
        subjects: data folder -> ids that are learned from.
    """

    stores: list[Store]
    shares: list[float]
    parts: dict[str, tuple[list[Store], list[float]]]
    statistics: CohortStatistics
    validation: list[Batch]
    subjects: dict[str, list[str]]

    def batch(self, config: TrainConfig, rng: np.random.Generator, slices: int, kind: str = EVERYONE) -> Batch:
        """Some crops, of frames of so many slices, of the subjects that a kind of step learns from."""
        batch = config.batch
        corrupt = config.teaching.corrupt if kind == FOLD else batch.corrupt
        stores, shares = self.parts.get(kind, (self.stores, self.shares))
        return draw_batch(
            stores,
            shares,
            rng,
            batch_size=batch.size,
            crop=batch.crop,
            slices=slices,
            augmentation=Augmentation(strip=batch.strip, restyle=batch.restyle, corrupt=corrupt),
        )


def read_data(config: TrainConfig, report: Report) -> TrainingData:
    """Read the subjects that a configuration names.

    Raises:
        ConfigError: an id that is nowhere, or a modality that no training subject has.
        DatasetError: nothing to learn from, an image on both sides, or a split of other data.
    """
    split = read_split(config.split) if config.split else None
    builder = StatisticsBuilder(config.modalities)
    stores, shares, subjects = [], [], {}
    parts: dict[str, tuple[list[Store], list[float]]] = {REST: ([], []), FOLD: ([], [])}
    learned: dict[str, str] = {}  # digest of an image -> whose it is
    entries = learned_from(config)
    refuse_unseen(config, {name for *_, chosen in entries for subject in chosen for name in subject.readers})
    for root, share, chosen in entries:
        studies = _studies(chosen, config, report, f"reading {Path(root).name}")
        for study in studies:
            builder.add(study.moments)
            learned |= study.named(root) if config.validation or split else {}
        store = Store((study.stored for study in studies), config.modalities)
        if not len(store):
            raise DatasetError(
                f"{root}: no slice with a patient in it and two of the modalities; nothing to learn from"
            )
        stores.append(store)
        shares.append(share)
        for part, of in zip((REST, FOLD), _parted(studies, config.teaching.held_out), strict=True):
            if len(some := Store((study.stored for study in of), config.modalities)):
                parts[part][0].append(some)
                parts[part][1].append(share)
        subjects[root] = [study.id for study in studies]
    statistics = builder.finish()
    validation: list[Batch] = []
    if config.validation:
        validation = _watched([config.validation], config, report, learned, keep=None)
    elif split and split.part("validation"):
        roots = [_entry(entry)[0] for entry in config.data]
        validation = _watched(roots, config, report, learned, keep=split.part("validation"))
    if not parts[FOLD][0]:
        parts = {part: (stores, shares) for part in parts}
    return TrainingData(stores, shares, parts, statistics, validation, subjects)


def _parted(studies: Sequence[_Study], share: float) -> tuple[list[_Study], list[_Study]]:
    """Studies without a share of them, and that share, evenly spread; a few are not parted."""
    n = round(share * len(studies))
    held = {round((k + 0.5) * len(studies) / n) for k in range(n)} if n else set()
    return [s for k, s in enumerate(studies) if k not in held], [s for k, s in enumerate(studies) if k in held]


def learned_from(config: TrainConfig) -> list[tuple[str, float, list[Subject]]]:
    """Every data folder with its share of the crops and its subjects to learn from, with the images to learn from.

    Raises:
        ConfigError: an id that is nowhere.
        DatasetError: no subject is left, or a split of other data.
    """
    entries = [_entry(entry) for entry in config.data]
    split = read_split(config.split) if config.split else None
    _check_ids(config, split, [root for root, _ in entries])
    keep = _within(config.subjects or None, split.part("train") if split else None)
    chosen = [(root, share, _chosen(root, config, keep)) for root, share in entries]
    chosen = [entry for entry in chosen if entry[2]]
    if not chosen:
        raise DatasetError("no subject is left to learn from; check subjects, exclude and modalities")
    return chosen


def refuse_unseen(config: TrainConfig, seen: Collection[str]) -> None:
    """Raises ConfigError for a modality that no training subject has.

    What a model knows from before may be missing: it is told, since it is no longer practised. V is learned anew with
    all of them or not at all.
    """
    unseen = [name for name in config.modalities if name not in seen]
    if unseen and config.begin_from:
        if config.identity.share:
            raise ConfigError(
                f"no training subject has {', '.join(unseen)}, so that V cannot learn to name it; set identity.share=0"
            )
        warnings.warn(
            f"no training subject has {', '.join(unseen)}: the model goes on knowing it, and may get worse at it",
            stacklevel=2,
        )
        return
    if unseen:
        raise ConfigError(
            f"no training subject has {', '.join(unseen)}; leave out what cannot be learned: "
            f"--set modalities=[{', '.join(n for n in config.modalities if n not in unseen)}]"
        )


def _entry(entry: str) -> tuple[str, float]:
    """Folder and share of "DIR" or "DIR:SHARE"."""
    root, _, share = entry.rpartition(":")
    try:
        return (root, float(share)) if root and float(share) > 0 else (entry, 1.0)
    except ValueError:
        return entry, 1.0


def _within(*choices: Collection[str] | None) -> set[str] | None:
    """Ids that are in all choices; None chooses all."""
    made = [set(choice) for choice in choices if choice is not None]
    return set.intersection(*made) if made else None


def _chosen(root: str, config: TrainConfig, keep: Collection[str] | None) -> list[Subject]:
    """The subjects that a configuration keeps, each with just the images that it keeps.

    Raises:
        Medk2nError: one that it keeps cannot be used.
    """
    chosen = []
    left: dict[str, LeftOut] = {}
    found, faults = _found(root, config, lambda name, file: left.setdefault(f"{name}: {file}", file))
    for subject_id, fault in faults.items():
        if subject_id not in config.exclude and (keep is None or subject_id in keep):
            with all_needed(subject_id):
                raise fault
    for subject in found:
        if subject.id in config.exclude or (keep is not None and subject.id not in keep):
            continue
        wanted = {
            name
            for name in subject.readers
            if name in config.modalities and f"{subject.id}:{name}" not in config.exclude
        }
        if wanted:
            chosen.append(_only(subject, wanted))
    if left:
        more = f" and {len(left) - 1} more files; medk2n index tells all" if len(left) > 1 else ""
        warnings.warn(f"{root}: left out: {next(iter(left))}{more}", stacklevel=2)
    return chosen


def _studies(subjects: Sequence[Subject], config: TrainConfig, report: Report, stage: str) -> list[_Study]:
    studies = []
    for k, subject in enumerate(subjects):
        report(stage, k / len(subjects), {})
        with all_needed(subject.id):
            studies.append(_study(subject, config))
    return studies


def _study(subject: Subject, config: TrainConfig) -> _Study:
    wanted = subject.readers
    if subject.prepared is not None and (record := read_record(subject.prepared)).at_spacing(config.spacing_mm):
        stored = Stored.opened(subject.prepared, config.modalities, wanted)
        digests = {name: digest for name, digest in record.digests.items() if name in wanted}
        return _Study(subject.id, stored, record.statistics().of_those(wanted), digests)
    study = load_working(subject, config.spacing_mm)
    digests = {name: sha256_array(image) for name, image in study.images.items()}
    return _Study(subject.id, Stored.of(study, config.modalities), Moments.of(study, config.modalities), digests)


def _only(subject: Subject, wanted: Collection[str]) -> Subject:
    """The subject with just the wanted modalities."""
    readers = {name: read for name, read in subject.readers.items() if name in wanted}
    further = {name: reads for name, reads in subject.inputs_only.items() if name in wanted}
    return replace(subject, readers=readers, inputs_only=further)


def _watched(
    roots: Iterable[str],
    config: TrainConfig,
    report: Report,
    learned: dict[str, str],
    *,
    keep: Collection[str] | None,
) -> list[Batch]:
    """Fixed slices of what is watched; none of its voxels may be learned from as well, under whatever name."""
    watched: list[_Study] = []
    for root in roots:
        found = _studies(_chosen(root, config, keep), config, report, "reading validation")
        _refuse_shared(learned, found, root)
        watched += found
    if not watched:
        raise DatasetError(f"{', '.join(roots)}: no subject is left to watch; check exclude and modalities")
    each = max(1, _VALIDATION_SLICES // len(watched))
    batches, slices = [], max(read_params(resolve("models", c.name).params, c.params).slices for c in config.models)
    for study in watched:
        inside = np.flatnonzero(study.stored.foreground_share > ENOUGH)
        at = inside[np.linspace(0, len(inside) - 1, min(each, len(inside))).round().astype(int)]
        batches.append(whole_slices(study.stored, at.tolist(), slices))
    return batches


def _refuse_shared(learned: dict[str, str], watched: Sequence[_Study], root: str) -> None:
    """The same voxels on both sides of a split would flatter the model."""
    for study in watched:
        for digest, name in study.named(root).items():
            if digest in learned:
                raise DatasetError(
                    f"{name} is also learned from, as {learned[digest]}; leave one of them out (exclude)"
                )


def _found(
    root: str, config: TrainConfig, left_out: Callable[[str, LeftOut], object] | None = None
) -> tuple[list[Subject], dict[str, Medk2nError]]:
    """Subjects of a data folder, and what is wrong with those that cannot be used."""
    faults: dict[str, Medk2nError] = {}
    return discover(root, prefer=config.prefer, faulty=faults.__setitem__, left_out=left_out), faults


def _check_ids(config: TrainConfig, split: Split | None, roots: Sequence[str]) -> None:
    """A mistyped id, or one that came after the split was drawn, must not let a test subject in."""
    folders = [_found(root, config) for root in [*roots, *([config.validation] if config.validation else [])]]
    faulty = {subject_id for _, faults in folders for subject_id in faults}
    ids = {s.id for found, _ in folders for s in found} | faulty
    images = {f"{s.id}:{name}" for found, _ in folders for s in found for name in s.modalities}
    for setting, named, known in (("subjects", config.subjects, ids), ("exclude", config.exclude, ids | images)):
        for unknown in (i for i in named if i not in known):
            near = get_close_matches(unknown, known, n=3)
            hint = f", did you mean {', '.join(near)}?" if near else "; compare with the names of the files"
            raise ConfigError(f"{setting}: {unknown!r} is in none of the data folders{hint}")
    if split:
        learnable = {s.id for found, _ in folders[: len(roots)] for s in found}
        split.check(learnable | (faulty & set(split.subjects)), unused=config.exclude)  # index --split leaves them out
