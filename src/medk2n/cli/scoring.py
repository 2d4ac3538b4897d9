"""What verbs that measure models share: asking them, and what they cost."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medk2n.cli.complaints import say
from medk2n.io.shown import one_line

if TYPE_CHECKING:
    from medk2n.checkpoint import ModelConfig
    from medk2n.data.subject import Subject
    from medk2n.data.working import WorkingStudy
    from medk2n.evaluation.damage import DamageRecord
    from medk2n.evaluation.evaluate import Listener, Record
    from medk2n.evaluation.identity import IdentityListener
    from medk2n.gatekeeper import Gatekeeper
    from medk2n.inference._spec import Predictor

JUDGEMENT = "identity.md", "identity.csv"


@dataclass
class Measured:
    """What became of the subjects of an evaluation.

    Attributes:
        records: of those that were scored.
        failed: subject -> complaint, of those that could not be read or were refused.
        checks: subject -> what the gatekeeper found, as plain data (`Examined.to_json`).
    """

    records: "list[Record]" = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    checks: dict[str, dict[str, Any]] = field(default_factory=dict)

    def scored(self, subjects: "Sequence[Subject]") -> "list[Subject]":
        """Those of the subjects that did not fail."""
        return [subject for subject in subjects if subject.id not in self.failed]


def modalities_under_test(
    wanted: Sequence[str], known: Sequence[str], subjects: "Sequence[Subject]", data: Path
) -> list[str]:
    """Those asked for, else all that the model knows in the vocabulary's order, as far as the data has them."""
    from medk2n.errors import DatasetError, UnknownNameError
    from medk2n.vocabulary import MODALITIES

    if unknown := [m for m in wanted if m not in known]:
        raise UnknownNameError(
            f"--modalities {','.join(unknown)}: the model does not know them; it knows {', '.join(known)}"
        )
    acquired = {m for subject in subjects for m in subject.modalities}
    tested = [m for m in wanted or MODALITIES if m in known and m in acquired]
    if not any(len(set(tested) & set(subject.modalities)) > 1 for subject in subjects):
        raise DatasetError(
            f"{data}: no subject has two of {', '.join(wanted or known)} (found: {', '.join(sorted(acquired))}); "
            "an evaluation needs an input and a reference: choose other data or --modalities"
        )
    if missing := [m for m in wanted if m not in acquired]:
        say(f"medk2n: no subject has {', '.join(missing)}: left out", err=True)
    return tested


def already_learned(config: "ModelConfig", data: Path, subjects: "Sequence[Subject]") -> str:
    """Which of the subjects a model learned from, as its checkpoint says, in words; empty for none.

    A data set is known by its folder's name.
    """
    from medk2n.checkpoint import learned_from

    seen = sorted(learned_from(config, data.resolve().name) & {subject.id for subject in subjects})
    return ", ".join(seen[:3]) + (", ..." if len(seen) > 3 else "")


def measure(
    predictors: "Sequence[Predictor]",
    subjects: "Sequence[Subject]",
    *,
    modalities: Sequence[str],
    config: "ModelConfig",
    every: int,
    listener: "Listener | None" = None,
    keeper: "Gatekeeper",
) -> Measured:
    """All that can be measured; a subject that fails does not stop the others (tell of it at the end).

    The gatekeeper looks at all scans first: what it refuses fails, what it doubts is told.

    Raises:
        DatasetError: none could be read.
    """
    from medk2n.errors import DatasetError
    from medk2n.evaluation.evaluate import evaluate

    found = Measured()
    let_in = partial(_admitted, keeper=keeper, checks=found.checks)
    studies = studies_of(subjects, config.spacing_mm, found.failed, let_in)
    how: dict[str, Any] = {"modalities": modalities, "every": every, "listener": listener}
    with progress_over("evaluate", subjects) as advance:
        found.records = evaluate(predictors, studies, progress=advance, **how)
    if not found.records:
        raise DatasetError(f"all {len(found.failed)} subjects failed; the first: {next(iter(found.failed.values()))}")
    return found


def judged(folder: Path, listener: "Listener | None") -> "IdentityListener | Listener | None":
    """The listener, and before it the judge of a model folder, which says what images are recognised as, if it has one.

    Raises:
        CheckpointError: it has one that was altered.
    """
    from medk2n.evaluation.identity import IdentityListener
    from medk2n.identity.identity import Identity

    if not Identity.of(folder):
        say(
            f"medk2n: {folder} has no identity module, so nothing is said of what its images are recognised as",
            err=True,
        )
        return listener
    return IdentityListener(Identity.load(folder), then=listener)


def judgement(folder: Path, listener: "Listener | None", methods: "Sequence[str]") -> str:
    """What `judged` heard, as Markdown, written to a folder with all of it; nothing without a judge."""
    from medk2n.evaluation.identity import IdentityListener, Seen, identity_markdown
    from medk2n.evaluation.table import write_csv
    from medk2n.io.atomic import write_text

    if not isinstance(listener, IdentityListener):
        return ""
    write_csv(folder / JUDGEMENT[1], Seen, listener.seen)
    text = identity_markdown(listener.seen, methods)
    write_text(folder / JUDGEMENT[0], text)
    return text


def damage_asked(
    kinds: Sequence[str], severities: Sequence[float] | None, subjects: "Sequence[Subject]", modalities: Sequence[str]
) -> tuple[list[str], list[float]]:
    """What --damage and --severity ask for; no kind without --damage.

    Raises:
        UnknownNameError, UsageError: a kind that is none, a severity outside (0, 1], severities without --damage.
        DatasetError: no subject has three of the modalities.
    """
    from medk2n.errors import UnknownNameError, UsageError
    from medk2n.evaluation.damage import DAMAGE, check_enough

    if severities and not kinds:
        raise UsageError("--severity says how bad --damage is; give --damage all, or its kinds")
    if unknown := [kind for kind in kinds if kind not in (*DAMAGE, "all")]:
        raise UnknownNameError(f"--damage {','.join(unknown)}: expected all or some of {', '.join(DAMAGE)}")
    if wrong := [s for s in severities or () if not 0 < s <= 1]:
        raise UsageError(f"--severity {wrong[0]:g}: expected a number above 0, at most 1")
    if kinds:
        check_enough(modalities, (subject.modalities for subject in subjects))
    return [kind for kind in DAMAGE if {kind, "all"} & set(kinds)], sorted(set(severities or [1.0]))


def measure_damage(
    predictors: "Sequence[Predictor]",
    subjects: "Sequence[Subject]",
    *,
    modalities: Sequence[str],
    config: "ModelConfig",
    every: int,
    damage: tuple[Sequence[str], Sequence[float]],
    seed: int,
) -> "list[DamageRecord]":
    """Records of `damage_asked`; none if none were asked for. The subjects are those that `measure` scored."""
    from medk2n.evaluation import damage as measured

    kinds, severities = damage
    if not kinds:
        return []
    studies = studies_of(subjects, config.spacing_mm, {})
    with progress_over("damage", subjects) as advance:
        return measured.measure_damage(
            measured.with_all_kept(predictors),
            studies,
            modalities=modalities,
            kinds=kinds,
            severities=severities,
            every=every,
            seed=seed,
            progress=advance,
        )


def studies_of(
    subjects: "Sequence[Subject]",
    spacing_mm: float | None,
    failed: dict[str, str],
    let_in: "Callable[[Subject], Subject] | None" = None,
) -> "Iterator[WorkingStudy]":
    """Each as it is needed; who could not be read, or was not let in, is put into `failed` with the complaint."""
    from medk2n.data.working import load_working
    from medk2n.errors import contained

    for subject in subjects:
        try:
            study = load_working(let_in(subject) if let_in else subject, spacing_mm)
        except Exception as error:
            failed[subject.id] = str(contained(error))
        else:
            yield study


def _admitted(subject: "Subject", keeper: "Gatekeeper", checks: dict[str, dict[str, Any]]) -> "Subject":
    """The subject with its scans read, after they were looked at; `checks` gets what was found."""
    volumes = {name: subject.readers[name]() for name in subject.modalities}
    examined = keeper.examine(volumes, next(iter(volumes)))
    checks[subject.id] = examined.to_json()
    for line in examined.admitted().lines():
        say(f"medk2n: warning: {one_line(f'{subject.id}: {line}')}", err=True)
    return replace(subject, readers={name: partial(volumes.__getitem__, name) for name in volumes})


@contextmanager
def progress_over(verb: str, subjects: "Sequence[Subject]") -> "Iterator[Callable[[str, int, int], None]]":
    """A bar over subjects: what to call with (subject, done, of how many)."""
    from rich.markup import escape

    from medk2n.cli.common import progress_bar

    position = {subject.id: index for index, subject in enumerate(subjects)}
    with progress_bar() as bar:
        line = bar.add_task(verb, total=len(subjects))

        def advance(subject: str, done: int, total: int) -> None:
            told = f"{verb} {escape(one_line(subject))}"
            bar.update(line, completed=position[subject] + done / total, description=told)

        yield advance


def costs(predictors: "Sequence[Predictor]") -> dict[str, dict[str, Any]]:
    """Method -> what learning it took, as far as its checkpoint says; methods that learned nothing are left out."""
    from medk2n.evaluation.table import TRAINING_COST

    trained = {p.name: p.config.training for p in predictors if hasattr(p, "config")}
    return {
        name: {key: training[key] for key in TRAINING_COST if key in training} for name, training in trained.items()
    }


def hardware(device: str) -> dict[str, Any]:
    """What the figures were made on."""
    import os
    import platform

    return {"device": device, "machine": platform.machine(), "cpus": os.cpu_count()}
