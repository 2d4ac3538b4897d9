"""What a protocol is, what it is given, and the steps that several recipes share."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from medk2n.data.intensity import Scaling
from medk2n.vocabulary import modality


class Value(NamedTuple):
    """One number of a protocol."""

    region: str
    metric: str
    value: float


@dataclass(frozen=True, slots=True)
class Pair:
    """One prediction and its reference on the working grid.

    Attributes:
        target: modality of both.
        predicted, reference: (s, h, w) float32 in [0, 1], scaled by the reference's percentiles (CT: the fixed window).
        scaling: how to undo that.
        regions: name -> (s, h, w) bool; "foreground", "whole" (None: every voxel), perhaps "brain" and "lesion".
    """

    target: str
    predicted: np.ndarray
    reference: np.ndarray
    scaling: Scaling
    regions: Mapping[str, np.ndarray | None]

    @property
    def images(self) -> tuple[np.ndarray, np.ndarray]:
        """Prediction and reference, scaled."""
        return self.predicted, self.reference

    @property
    def stored(self) -> tuple[np.ndarray, np.ndarray]:
        """Prediction and reference in the unit of a file, counted from the level of air.

        The scaling moved the darkest tissue to 0; inside the foreground this moves it back above the air, where recipes
        that read files find it. (The 0.5 % that were clipped at either end stay clipped.)
        """
        darkest = np.where(self.regions["foreground"], self.scaling.low - modality(self.target).background, 0)
        span = self.scaling.high - self.scaling.low
        predicted, reference = ((span * image + darkest).astype(np.float32) for image in self.images)
        return predicted, reference


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """One recipe.

    Attributes:
        name: as its file's name.
        label: for people.
        source: who evaluates so; repository, file and commit where there is one.
        region, scaling, data_range, window: the recipe in words, for the table.
        measure: the recipe in code; yields nothing for a pair that it says nothing about.
    """

    name: str
    label: str
    source: str
    region: str
    scaling: str
    data_range: str
    window: str
    measure: Callable[[Pair], Iterable[Value]]


def clipped_to_percentiles(image: np.ndarray, of: np.ndarray, low: float, high: float) -> np.ndarray:
    """Clipped to two percentiles of `of` and scaled to [0, 1]; the lower bound is at least 0. NaN without contrast."""
    bottom, top = np.percentile(of, (low, high))
    bottom = max(bottom, 0.0)
    if not top > bottom:
        return np.full_like(image, np.nan)
    return ((np.clip(image, bottom, top) - bottom) / (top - bottom)).astype(np.float32)


def mean_over_slices(values: Iterable[float]) -> float:
    """Mean of what is not NaN; NaN if nothing is left.

    A slice that is exact (of a single voxel, perhaps) has an infinite PSNR and would be all that is left of the mean:
    it is left out too, unless all are exact.
    """
    defined = [value for value in values if not np.isnan(value)]
    finite = [value for value in defined if np.isfinite(value)]
    return float(np.mean(finite or defined)) if defined else float("nan")
