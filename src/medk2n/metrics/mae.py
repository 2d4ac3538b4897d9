"""Mean absolute error inside a mask, as a fraction of the data range."""

import numpy as np

from medk2n.metrics._metric import Metric, masked_mean


def _absolute_error(predicted: np.ndarray, reference: np.ndarray, data_range: float) -> np.ndarray:
    return np.abs(predicted - reference) / data_range


COMPONENT = Metric(
    name="mae",
    label="MAE",
    unit="fraction of the data range",
    better="lower",
    decimals=4,
    voxelwise=_absolute_error,
    pooled=masked_mean,
)
mae = COMPONENT.function
