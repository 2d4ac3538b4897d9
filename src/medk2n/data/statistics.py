"""What training subjects say before any step: affine maps between modalities, variances, typical scalings."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medk2n.data.intensity import Scaling
from medk2n.data.working import WorkingStudy


@dataclass(frozen=True)
class CohortStatistics:
    """All in scaled units inside the foreground, each subject counting the same.

    Attributes:
        modalities: order of the rows and columns.
        slope, intercept, residual: (m, m) of the best linear map source (row) -> target (column) and its
            mean squared error; a pair never acquired together maps to the target's mean.
        mean, deviation, correlation: (m, m) of modality i among the subjects that have both i and j; correlation is
            made positive definite, 0 for a pair never acquired together.
        variance: (m,) mean squared error of predicting the target's mean.
        typical_scaling: modality -> (low, high), medians over the subjects.
    """

    modalities: tuple[str, ...]
    slope: np.ndarray
    intercept: np.ndarray
    residual: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    correlation: np.ndarray
    variance: np.ndarray
    typical_scaling: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Moments:
    """What one study adds to the statistics.

    Attributes:
        modalities: order of the rows and columns.
        mean: (a,) inside the foreground, scaled.
        product: (a, a) mean of the product of two modalities.
        scalings: modality -> its own scaling.
    """

    modalities: tuple[str, ...]
    mean: np.ndarray
    product: np.ndarray
    scalings: Mapping[str, Scaling]

    @classmethod
    def of(cls, study: WorkingStudy, modalities: Sequence[str]) -> "Moments":
        """Of those of the modalities that the study has."""
        here = tuple(name for name in modalities if name in study.images)
        values = np.stack([study.images[name][study.foreground] for name in here]).astype(np.float64)
        return cls(here, values.mean(axis=1), values @ values.T / values.shape[1], study.scalings)

    def of_those(self, names: Collection[str]) -> "Moments":
        """Without the other modalities."""
        kept = [k for k, name in enumerate(self.modalities) if name in names]
        here = tuple(self.modalities[k] for k in kept)
        return Moments(here, self.mean[kept], self.product[np.ix_(kept, kept)], self.scalings)


class StatisticsBuilder:
    """Adds up moments study by study."""

    def __init__(self, modalities: Sequence[str]) -> None:
        self.modalities = tuple(modalities)
        m = len(self.modalities)
        self._pairs = np.zeros((m, m))
        self._x, self._y, self._xx, self._yy, self._xy = (np.zeros((m, m)) for _ in range(5))
        self._windows: dict[str, list[tuple[float, float]]] = {name: [] for name in self.modalities}

    def add(self, study: WorkingStudy | Moments) -> None:
        """Count one study in."""
        seen = study if isinstance(study, Moments) else Moments.of(study, self.modalities)
        seen = seen.of_those(self.modalities)
        here = [self.modalities.index(name) for name in seen.modalities]
        means, product = seen.mean, seen.product
        block = np.ix_(here, here)
        self._pairs[block] += 1
        self._x[block] += means[:, None]
        self._y[block] += means[None, :]
        self._xy[block] += product
        self._xx[block] += np.diag(product)[:, None]
        self._yy[block] += np.diag(product)[None, :]
        for name in (self.modalities[i] for i in here):
            self._windows[name].append((seen.scalings[name].low, seen.scalings[name].high))

    def finish(self) -> CohortStatistics:
        """The least-squares maps."""
        n = np.maximum(self._pairs, 1)
        x, y, xx, yy, xy = (a / n for a in (self._x, self._y, self._xx, self._yy, self._xy))
        variance = np.maximum(np.diag(yy) - np.diag(y) ** 2, 1e-4)
        seen = self._pairs > 0
        slope = np.where(seen, (xy - x * y) / np.maximum(xx - x**2, 1e-9), 0.0)
        intercept = np.where(seen, y - slope * x, np.diag(y)[None, :])
        error = yy - y**2 - slope**2 * (xx - x**2)
        residual = np.where(seen, np.maximum(error, 1e-4), variance[None, :])
        np.fill_diagonal(slope, 1.0)
        np.fill_diagonal(intercept, 0.0)
        np.fill_diagonal(residual, 1e-4)
        mean = np.where(seen, x, np.diag(x)[:, None])
        deviation = np.where(seen, np.sqrt(np.maximum(xx - x**2, 1e-4)), np.sqrt(variance)[:, None])
        correlation = _positive_definite(np.where(seen, (xy - x * y) / (deviation * deviation.T), 0.0))
        typical = {k: tuple(np.median(v, axis=0).tolist()) for k, v in self._windows.items() if v}
        return CohortStatistics(
            self.modalities, slope, intercept, residual, mean, deviation, correlation, variance, typical
        )


def _positive_definite(correlation: np.ndarray, least: float = 0.01) -> np.ndarray:
    """The nearest matrix with eigenvalues of at least `least` and a unit diagonal: pairs seen in different
    subjects need not fit together."""
    values, vectors = np.linalg.eigh((correlation + correlation.T) / 2)
    lifted = (vectors * np.maximum(values, least)) @ vectors.T
    scale = np.sqrt(np.diag(lifted))
    return lifted / np.outer(scale, scale)
