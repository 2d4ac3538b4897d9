"""What verbs that measure models share: asking them, and what they cost."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medk2n.io.shown import one_line

if TYPE_CHECKING:
    from medk2n.checkpoint import ModelConfig
    from medk2n.data.subject import Subject
    from medk2n.data.working import WorkingStudy
    from medk2n.evaluation.evaluate import Listener, Record
    from medk2n.inference._spec import Predictor


def already_learned(config: "ModelConfig", data: Path, subjects: "Sequence[Subject]") -> str:
    """Which of the subjects a model learned from, as its checkpoint says, in words; empty for none.

    A data set is known by its folder's name.
    """
    learned = set(config.training.get("subject_ids", {}).get(data.resolve().name, []))
    seen = sorted(learned & {subject.id for subject in subjects})
    return ", ".join(seen[:3]) + (", ..." if len(seen) > 3 else "")


def measure(
    predictors: "Sequence[Predictor]",
    subjects: "Sequence[Subject]",
    *,
    modalities: Sequence[str],
    config: "ModelConfig",
    every: int,
    listener: "Listener | None" = None,
) -> "tuple[list[Record], dict[str, str]]":
    """Records, and the complaint of each subject that could not be read (the others go on; tell of it at the end).

    Raises:
        DatasetError: none could be read.
    """
    from rich.markup import escape

    from medk2n.cli.common import progress_bar
    from medk2n.data.working import load_working
    from medk2n.errors import DatasetError, contained
    from medk2n.evaluation.evaluate import evaluate

    failed: dict[str, str] = {}

    def studies() -> "Iterator[WorkingStudy]":
        for subject in subjects:
            try:
                study = load_working(subject, config.spacing_mm)
            except Exception as error:
                failed[subject.id] = str(contained(error))
            else:
                yield study

    position = {subject.id: index for index, subject in enumerate(subjects)}
    with progress_bar() as bar:
        line = bar.add_task("evaluate", total=len(subjects))

        def advance(subject: str, done: int, total: int) -> None:
            told = f"evaluate {escape(one_line(subject))}"
            bar.update(line, completed=position[subject] + done / total, description=told)

        records = evaluate(
            predictors, studies(), modalities=modalities, every=every, progress=advance, listener=listener
        )
    if not records:
        raise DatasetError(f"all {len(failed)} subjects failed; the first: {next(iter(failed.values()))}")
    return records, failed


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
