"""Ask every predictor the same questions and measure the answers in the same places.

Everything is measured on the working grid in the scaled unit, [0, 1] with data range 1.

    records = evaluate([predictor, CopyPredictor(config)], studies, modalities=("t1n", "t2w"))
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from medk2n.data.working import every_nth
from medk2n.errors import InternalError, UnknownNameError
from medk2n.evaluation.background import inside_inputs
from medk2n.evaluation.rows import Row, rows
from medk2n.inference._spec import Answer
from medk2n.metrics._metric import Metric, masked_mean
from medk2n.metrics.psnr import decibel
from medk2n.registry import resolve

if TYPE_CHECKING:
    from medk2n.data.working import WorkingStudy
    from medk2n.inference._spec import Predictor

DATA_RANGE = 1.0
METRICS = ("mae", "psnr", "ssim")
"""In the tables; the registry knows more."""
PREDICTED_PSNR = "predicted_psnr"
"""In a record, beside the measured metrics: the PSNR that a method expects of its own image."""


@dataclass(frozen=True, slots=True)
class Record:
    """One measured value.

    Attributes:
        sources: the inputs as text, e.g. "t1n+t2w".
        region: "foreground", "whole", and where the data set gives them "brain" and "lesion".
        value: NaN where the region is empty (or, for SSIM, too small).
    """

    subject: str
    method: str
    sources: str
    target: str
    metric: str
    region: str
    value: float


class Listener(Protocol):
    """What else is to be made of each answer while it is there: answers are not kept."""

    def measure(
        self,
        method: str,
        study: "WorkingStudy",
        row: Row,
        predicted: Mapping[str, Answer],
        regions: Mapping[str, np.ndarray | None],
    ) -> None:
        """Called once a method and row, with the slices that are scored alone."""


def evaluate(
    predictors: "Sequence[Predictor]",
    studies: "Iterable[WorkingStudy]",
    *,
    modalities: Sequence[str],
    every: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
    listener: Listener | None = None,
) -> list[Record]:
    """All metrics of all predictors for every row of every study.

    Args:
        predictors: the methods, with different names.
        studies: read one at a time; pass a generator and memory stays flat.
        modalities: those under test, in the order of the table.
        every: score every nth slice of a stack only; predictors still see all slices of the inputs.
        progress: called after each row with (subject, rows done, rows of this subject).
        listener: measures the same answers in its own way (under other protocols, for example).

    Raises:
        UnknownNameError: if a predictor does not know one of the modalities.
        InternalError: if a prediction is missing, misshapen or not finite.
    """
    for predictor in predictors:
        _require_known(predictor, modalities)
    metrics = [resolve("metrics", name) for name in METRICS]
    records: list[Record] = []
    for study in studies:
        asked = rows(modalities, study.images)
        at = every_nth(len(study.foreground), every)
        scored = study.thinned(at)
        regions = regions_of(scored)
        for done, row in enumerate(asked, start=1):
            for predictor in predictors:
                predicted = {target: answer.thinned(at) for target, answer in ask(predictor, study, row).items()}
                records.extend(measured(predictor.name, scored, row, predicted, regions, metrics))
                if listener:
                    listener.measure(predictor.name, scored, row, predicted, regions)
            if progress:
                progress(study.id, done, len(asked))
    return records


def ask(predictor: "Predictor", study: "WorkingStudy", row: Row) -> dict[str, Answer]:
    """One predictor's answers to one row, clipped to [0, 1], zero outside what the inputs show.

    The predictor receives copies of the sources and nothing else of the study.
    """
    images = {source: study.images[source] for source in row.sources}
    return answered(predictor, images, row.targets, inside_inputs(images), f"subject {study.id}")


def answered(
    predictor: "Predictor", images: Mapping[str, np.ndarray], targets: Sequence[str], inside: np.ndarray, of: str
) -> dict[str, Answer]:
    """What a predictor makes of copies of some images (s, h, w), clipped to [0, 1] and zero outside a mask.

    Args:
        of: whose images they are, for complaints.
    """
    predicted = predictor.predict({source: image.copy() for source, image in images.items()}, targets)
    place = f"{predictor.name}, {of}, {'+'.join(images)}"
    return {target: _sound(predicted.get(target), inside, f"{place} -> {target}") for target in targets}


def measured(
    method: str,
    study: "WorkingStudy",
    row: Row,
    predicted: Mapping[str, Answer],
    regions: Mapping[str, np.ndarray | None],
    metrics: Sequence[Metric],
) -> Iterator[Record]:
    """All metrics of one method's answers to one row in all regions, and what it expected of them."""
    for target, answer in predicted.items():
        for metric in metrics:
            values = metric.map(answer.image, study.images[target], data_range=DATA_RANGE)
            for region, mask in regions.items():
                yield Record(study.id, method, row.label, target, metric.name, region, metric.pooled(values, mask))
        if answer.variance is not None:
            for region, mask in regions.items():
                value = decibel(masked_mean(answer.variance, mask))
                yield Record(study.id, method, row.label, target, PREDICTED_PSNR, region, value)


def regions_of(study: "WorkingStudy") -> dict[str, np.ndarray | None]:
    """Masks by name, one set per study whatever the row; None is the whole image."""
    regions: dict[str, np.ndarray | None] = {"foreground": study.foreground, "whole": None}
    if study.brain is not None:
        regions["brain"] = study.brain
    if study.lesion is not None and study.lesion.any():
        regions["lesion"] = study.lesion > 0
    return regions


def _require_known(predictor: "Predictor", modalities: Sequence[str]) -> None:
    unknown = [m for m in modalities if m not in predictor.modalities]
    if unknown:
        raise UnknownNameError(
            f"method {predictor.name} does not know {', '.join(unknown)}: it knows {', '.join(predictor.modalities)}; "
            "choose among them with --modalities"
        )


def _sound(answer: Answer | None, inside: np.ndarray, place: str) -> Answer:
    if answer is None:
        raise InternalError(f"{place}: the prediction is missing")
    parts = [part for part in (answer.image, answer.variance) if part is not None]
    for part in parts:
        if part.shape != inside.shape:
            raise InternalError(f"{place}: expected a prediction of shape {inside.shape}, got {part.shape}")
        if not np.isfinite(part).all():
            raise InternalError(f"{place}: the prediction is not finite everywhere")
    variance = None if answer.variance is None else np.where(inside, answer.variance, 0)
    return replace(answer, image=np.where(inside, np.clip(answer.image, 0, 1), 0), variance=variance)
