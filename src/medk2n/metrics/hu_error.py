"""Mean absolute error of CT inside a mask, in Hounsfield units.

Both images are given in HU. The data range does not enter: an error in HU means the same in every scan.
"""

import numpy as np

from medk2n.metrics._metric import Metric, masked_mean


def _absolute_error(predicted: np.ndarray, reference: np.ndarray, data_range: float) -> np.ndarray:
    return np.abs(predicted - reference)


COMPONENT = Metric(
    name="hu_error",
    label="MAE in HU",
    unit="HU",
    better="lower",
    decimals=1,
    voxelwise=_absolute_error,
    pooled=masked_mean,
)
hu_error = COMPONENT.function
