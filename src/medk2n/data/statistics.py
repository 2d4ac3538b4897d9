"""What training subjects say before any step: affine maps between modalities, variances, typical scalings."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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


class StatisticsBuilder:
    """Adds up moments study by study."""

    def __init__(self, modalities: Sequence[str]) -> None:
        self.modalities = tuple(modalities)
        m = len(self.modalities)
        self._pairs = np.zeros((m, m))
        self._x, self._y, self._xx, self._yy, self._xy = (np.zeros((m, m)) for _ in range(5))
        self._windows: dict[str, list[tuple[float, float]]] = {name: [] for name in self.modalities}

    def add(self, study: WorkingStudy) -> None:
        """Count one study in."""
        here = [i for i, name in enumerate(self.modalities) if name in study.images]
        values = np.stack([study.images[self.modalities[i]][study.foreground] for i in here]).astype(np.float64)
        moments = values @ values.T / values.shape[1]
        means = values.mean(axis=1)
        block = np.ix_(here, here)
        self._pairs[block] += 1
        self._x[block] += means[:, None]
        self._y[block] += means[None, :]
        self._xy[block] += moments
        self._xx[block] += np.diag(moments)[:, None]
        self._yy[block] += np.diag(moments)[None, :]
        for name, scaling in study.scalings.items():
            if name in self._windows:
                self._windows[name].append((scaling.low, scaling.high))

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
