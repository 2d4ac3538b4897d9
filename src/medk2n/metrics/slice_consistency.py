"""Slice-to-slice consistency: how far the change from a slice to the next is from the reference's change.

Mean of |(p[i + 1] - p[i]) - (r[i + 1] - r[i])| over voxels that lie in the mask in both slices, as a fraction of the
data range. Slices that were predicted one by one flicker; an offset of the whole volume does not count. A single slice
has no value.
"""

import numpy as np

from medk2n.metrics._metric import Metric, masked_mean


def _change_of_error(predicted: np.ndarray, reference: np.ndarray, data_range: float) -> np.ndarray:
    error = (predicted - reference) / data_range
    return np.abs(np.diff(error, axis=0, append=np.nan))


def _over_neighbours(change: np.ndarray, mask: np.ndarray | None) -> float:
    return masked_mean(change[:-1], None if mask is None else mask[:-1] & mask[1:])


COMPONENT = Metric(
    name="slice_consistency",
    label="Slice-to-slice error",
    unit="fraction of the data range",
    better="lower",
    decimals=4,
    voxelwise=_change_of_error,
    pooled=_over_neighbours,
)
slice_consistency = COMPONENT.function
