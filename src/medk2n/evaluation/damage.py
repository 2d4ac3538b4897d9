"""One damaged input among K: what it does to every method's image, beside what leaving it out would do.

For each subject and K (two and three) every target is made once from K inputs drawn at random, one of which is damaged
in turn in each way. Where another patient's image is needed it is the next subject's.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np
import torch

from medk2n.data.corrupt import KINDS
from medk2n.data.working import every_nth
from medk2n.errors import DatasetError
from medk2n.evaluation.background import inside_inputs
from medk2n.evaluation.evaluate import DATA_RANGE, answered
from medk2n.inference._spec import Answer
from medk2n.inference.predictor import SlicePredictor
from medk2n.metrics.psnr import psnr

if TYPE_CHECKING:
    from medk2n.data.working import WorkingStudy
    from medk2n.inference._spec import Predictor

COUNTS = (2, 3)
"""Inputs of a case, K."""
WHOLE = "whole"
"""The kind of the records in which nothing is damaged; severity 0."""
ALL_KEPT = " (all kept)"
"""After a method's name: the same model, made to let every input in, whole."""


@dataclass(frozen=True, slots=True)
class Case:
    """One question: a target from some inputs, one of which is damaged."""

    inputs: tuple[str, ...]
    damaged: str
    target: str


@dataclass(frozen=True, slots=True)
class DamageRecord:
    """What one method made of one case; PSNR in dB inside the study's foreground.

    Attributes:
        inputs: as text, e.g. "t1n+t2w".
        damaged: which of them is, or in a record of kind "whole" would be.
        psnr_without_db: from the other inputs alone, whole.
        psnr_whole_db: from all inputs, whole.
        weight, gate: the method's weight in dB of the damaged input, and how far it was let in, 0 to 1; None if it has
            none.
    """

    subject: str
    inputs: str
    damaged: str
    target: str
    kind: str
    severity: float
    method: str
    psnr_db: float
    psnr_without_db: float
    psnr_whole_db: float
    weight: float | None
    gate: float | None


class AllKept:
    """A model that decides, made to let every input in: what its synthesizer makes by itself."""

    def __init__(self, model: SlicePredictor) -> None:
        self._model, self.name, self.modalities = model, model.name + ALL_KEPT, model.modalities

    def predict(self, images: Mapping[str, np.ndarray], targets: Sequence[str]) -> dict[str, Answer]:
        """See `Predictor`; it says nothing of weights."""
        answers = self._model.predict(images, targets, plan=self._model.everything(images, targets))
        return {target: replace(answer, weighed={}) for target, answer in answers.items()}


def with_all_kept(predictors: "Sequence[Predictor]") -> "list[Predictor]":
    """The methods, each model that decides followed by itself with all inputs kept."""
    beside: list[Predictor] = []
    for p in predictors:
        beside += [p, AllKept(p)] if isinstance(p, SlicePredictor) and p.decides else [p]
    return beside


def measure_damage(
    predictors: "Sequence[Predictor]",
    studies: "Iterable[WorkingStudy]",
    *,
    modalities: Sequence[str],
    kinds: Sequence[str],
    severities: Sequence[float],
    every: int = 1,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[DamageRecord]:
    """All methods on all cases of all studies, whole and damaged in every way.

    Args:
        studies: read one at a time; three are held at most.
        modalities: those under test.
        kinds: names of `DAMAGE`; where a study lacks what a kind needs (another patient's image), the case is left out.
        every: score every nth slice only; damage is done to the whole stack.
        progress: called after each case with (subject, cases done, cases of this subject).

    Returns:
        None of a study with fewer than three of the modalities.
    """
    records: list[DamageRecord] = []
    for study, other in _with_next(s for s in studies if len(set(modalities) & set(s.images)) > COUNTS[0]):
        rng = np.random.default_rng([seed, crc32(study.id.encode())])
        cases = draw_cases([m for m in modalities if m in study.images], rng)
        for done, case in enumerate(cases, start=1):
            records += _measured(predictors, study, other, case, kinds, severities, every, int(rng.integers(2**31)))
            if progress:
                progress(study.id, done, len(cases))
    return records


def check_enough(modalities: Sequence[str], acquired: Iterable[Collection[str]]) -> None:
    """What a case needs is there.

    Raises:
        DatasetError: no subject has three of the modalities.
    """
    if not any(len(set(modalities) & set(own)) > COUNTS[0] for own in acquired):
        raise DatasetError(
            f"no subject has {COUNTS[0] + 1} of {', '.join(modalities)}; damage needs two inputs and a reference"
        )


def draw_cases(acquired: Sequence[str], rng: np.random.Generator) -> list[Case]:
    """Every target once from two inputs and once from three, as far as a study has them."""
    cases = []
    for count in COUNTS:
        for target in acquired if len(acquired) > count else ():
            others = [m for m in acquired if m != target]
            inputs = tuple(others[k] for k in sorted(rng.choice(len(others), count, replace=False)))
            cases.append(Case(inputs, inputs[rng.integers(count)], target))
    return cases


def _measured(
    predictors: "Sequence[Predictor]",
    study: "WorkingStudy",
    other: "WorkingStudy | None",
    case: Case,
    kinds: Sequence[str],
    severities: Sequence[float],
    every: int,
    seed: int,
) -> Iterator[DamageRecord]:
    """All records of one case."""
    at = every_nth(len(study.foreground), every)
    truth, inside = study.images[case.target][at], study.foreground[at]
    whole = {name: study.images[name] for name in case.inputs}
    shown = inside_inputs(whole)  # the same for every method and damage

    def ask(predictor: "Predictor", given: Mapping[str, np.ndarray]) -> tuple[float, Mapping]:
        answer = answered(predictor, given, [case.target], shown, f"subject {study.id}")[case.target]
        return psnr(answer.image[at], truth, inside, data_range=DATA_RANGE), answer.weighed

    def record(kind: str, severity: float, p: "Predictor", given: Mapping[str, np.ndarray]) -> DamageRecord:
        value, weighed = ask(p, given)
        weight, gate = weighed.get(case.damaged, (None, None))
        return DamageRecord(
            *(study.id, "+".join(case.inputs), case.damaged, case.target, kind, severity, p.name, value),
            *(*beside[p.name], weight, gate),
        )

    rest = {name: image for name, image in whole.items() if name != case.damaged}
    beside: dict[str, tuple[float, float]] = {}
    for p in predictors:
        beside[p.name] = ask(p, rest)[0], np.nan
        clean = record(WHOLE, 0.0, p, whole)
        beside[p.name] = beside[p.name][0], clean.psnr_db
        yield replace(clean, psnr_whole_db=clean.psnr_db)
    for kind in kinds:
        for severity in severities:
            rng = np.random.default_rng([seed, crc32(kind.encode())])  # draws alike at every severity
            bad = damaged(study, other, case, kind, severity, rng)
            if bad is not None:
                for p in predictors:
                    yield record(kind, severity, p, whole | {case.damaged: bad})


def damaged(
    study: "WorkingStudy",
    other: "WorkingStudy | None",
    case: Case,
    kind: str,
    severity: float,
    rng: np.random.Generator,
) -> np.ndarray | None:
    """The damaged input of a case, (s, h, w) in [0, 1] and 0 outside the study; None where it cannot be made."""
    image = torch.from_numpy(study.images[case.damaged])
    if kind in KINDS:
        bad = KINDS[kind](rng, image, severity)
    else:
        instead = _INSTEAD[kind](study, other, case, rng)
        if instead is None:
            return None
        bad = torch.lerp(image, torch.from_numpy(instead), severity)
    return np.where(study.foreground, bad.numpy(), 0).astype(np.float32)


def _mislabelled(
    study: "WorkingStudy", other: "WorkingStudy | None", case: Case, rng: np.random.Generator
) -> np.ndarray:
    """Another modality of the study, never the target."""
    names = [name for name in study.images if name not in (case.damaged, case.target)]
    return study.images[names[rng.integers(len(names))]]


def _elsewhere(study: "WorkingStudy", other: "WorkingStudy | None", case: Case, rng: np.random.Generator) -> np.ndarray:
    """The same modality, its slices in the other order: the wrong way up."""
    first, last = _extent(study.foreground)[0]
    image = study.images[case.damaged].copy()
    image[first:last] = image[first:last][::-1]
    return image


def _another(
    study: "WorkingStudy", other: "WorkingStudy | None", case: Case, rng: np.random.Generator
) -> np.ndarray | None:
    """The same modality of another patient, centre on centre."""
    if other is None or case.damaged not in other.images:
        return None
    out = np.zeros_like(study.images[case.damaged])
    here, there = [], []
    for size, full, (a, b), (c, d) in zip(
        out.shape, other.foreground.shape, _extent(study.foreground), _extent(other.foreground), strict=True
    ):
        shift = (a + b) // 2 - (c + d) // 2
        begin, end = max(0, shift), min(size, full + shift)
        here.append(slice(begin, end))
        there.append(slice(begin - shift, end - shift))
    out[tuple(here)] = other.images[case.damaged][tuple(there)]
    return out


Instead = Callable[["WorkingStudy", "WorkingStudy | None", Case, np.random.Generator], np.ndarray | None]
_INSTEAD: dict[str, Instead] = {"mislabelled": _mislabelled, "elsewhere": _elsewhere, "another": _another}
"""What is blended in instead, of whole studies; for crops see `data/corrupt.py`."""
DAMAGE = (*KINDS, *_INSTEAD)
"""Every kind."""


def _extent(mask: np.ndarray) -> list[tuple[int, int]]:
    """Along each axis, where a mask (s, h, w) begins and ends; all of it for an empty one."""
    found = []
    for axis in range(3):
        some = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        found.append((int(some[0]), int(some[-1]) + 1) if len(some) else (0, mask.shape[axis]))
    return found


def _with_next(
    studies: "Iterable[WorkingStudy]",
) -> "Iterator[tuple[WorkingStudy, WorkingStudy | None]]":
    """Each study with the one after it, the last with the first; alone it has none."""
    left = iter(studies)
    first = study = next(left, None)
    for following in left:
        assert study is not None, "there is one before"
        yield study, following
        study = following
    if study is not None:
        yield study, None if study is first else first
