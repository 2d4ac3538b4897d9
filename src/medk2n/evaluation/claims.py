"""What a method expects of its own images against what they turned out to be."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medk2n.evaluation.evaluate import PREDICTED_PSNR, Record

REGION = "foreground"


@dataclass(frozen=True, slots=True)
class Claim:
    """Predicted and measured PSNR of one method's images of one target, in dB.

    Attributes:
        n: images, one for each subject and set of inputs.
        measured, predicted: means.
        off: mean absolute difference.
        correlation: Pearson's, over the images; NaN for fewer than three, or where either does not vary.
    """

    method: str
    target: str
    n: int
    measured: float
    predicted: float
    off: float
    correlation: float


def claims(records: Sequence[Record]) -> list[Claim]:
    """One a method and target, for methods that predict their error; images without a finite value are left out."""
    measured = {_image(r): r.value for r in records if (r.region, r.metric) == (REGION, "psnr")}
    pairs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for r in records:
        if (r.region, r.metric) == (REGION, PREDICTED_PSNR) and np.isfinite([r.value, measured[_image(r)]]).all():
            pairs.setdefault((r.method, r.target), []).append((measured[_image(r)], r.value))
    return [_claim(method, target, np.array(values)) for (method, target), values in pairs.items()]


def _image(record: Record) -> tuple[str, str, str, str]:
    return record.subject, record.method, record.sources, record.target


def _claim(method: str, target: str, values: np.ndarray) -> Claim:
    measured, predicted = values.T
    tells = len(values) > 2 and np.ptp(measured) > 0 and np.ptp(predicted) > 0
    correlation = float(np.corrcoef(measured, predicted)[0, 1]) if tells else float("nan")
    off = float(np.abs(predicted - measured).mean())
    return Claim(method, target, len(values), float(measured.mean()), float(predicted.mean()), off, correlation)
