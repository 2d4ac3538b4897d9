"""What a metric is: a map over voxels, and how a region of that map becomes one number.

The split lets one map serve several regions (foreground, whole image, lesion). Arrays are
(s, h, w): slices first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from medk2n.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric; call `function` for one value.

    Attributes:
        name: as its file's name.
        label: for people.
        unit: of the value.
        better: which direction is an improvement; "one" if 1 is right and both more and less are wrong.
        decimals: that are worth printing.
        voxelwise: (predicted, reference, data_range) -> map of the same shape; or several, (n, s, h, w).
        pooled: (map, mask or None) -> value; NaN where the mask is empty.
    """

    name: str
    label: str
    unit: str
    better: Literal["higher", "lower", "one"]
    decimals: int
    voxelwise: Callable[[np.ndarray, np.ndarray, float], np.ndarray]
    pooled: Callable[[np.ndarray, np.ndarray | None], float]

    def map(self, predicted: np.ndarray, reference: np.ndarray, *, data_range: float) -> np.ndarray:
        """The metric's map or maps, float; integers are computed in float32.

        Raises:
            UsageError: unless both are (s, h, w) of one shape and the data range is positive.
        """
        if predicted.shape != reference.shape or predicted.ndim != 3:
            raise UsageError(
                f"{self.name}: expected two (s, h, w) arrays of one shape, got {predicted.shape} and {reference.shape}"
            )
        if not data_range > 0:
            raise UsageError(f"{self.name}: expected a positive data range, got {data_range}")
        kind = np.result_type(predicted, reference, np.float32)
        return self.voxelwise(predicted.astype(kind, copy=False), reference.astype(kind, copy=False), data_range)

    def function(
        self, predicted: np.ndarray, reference: np.ndarray, mask: np.ndarray | None = None, *, data_range: float
    ) -> float:
        """The metric inside `mask` (bool, (s, h, w)); None means the whole image, an empty mask gives NaN."""
        if mask is not None and (mask.dtype != bool or mask.shape != reference.shape):
            raise UsageError(
                f"{self.name}: expected a bool mask of shape {reference.shape}, got {mask.dtype} {mask.shape}"
            )
        return self.pooled(self.map(predicted, reference, data_range=data_range), mask)

    def badness(self, value: float) -> float:
        """A number that grows as the value gets worse."""
        return {"higher": -value, "lower": value, "one": abs(value - 1)}[self.better]


def masked_mean(values: np.ndarray, mask: np.ndarray | None) -> float:
    """Mean inside the mask, summed in double precision; NaN for an empty mask."""
    inside = values if mask is None else values[mask]
    return float(inside.mean(dtype=np.float64)) if inside.size else float("nan")
