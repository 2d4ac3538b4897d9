"""Peak signal-to-noise ratio inside a mask: 10 log10(data_range^2 / mean squared error), in dB.

Voxels outside the mask are ignored, not counted as correct: background would otherwise
flatter every method. Infinite where prediction and reference agree exactly.
"""

import math

import numpy as np

from medk2n.metrics._metric import Metric, masked_mean


def _squared_error(predicted: np.ndarray, reference: np.ndarray, data_range: float) -> np.ndarray:
    return np.square((predicted - reference) / data_range)


def _pooled(squared_error: np.ndarray, mask: np.ndarray | None) -> float:
    return decibel(masked_mean(squared_error, mask))


def decibel(mean_squared_error: float) -> float:
    """PSNR of a mean squared error that is already a share of the squared data range; infinite for 0."""
    return math.inf if mean_squared_error == 0 else -10 * math.log10(mean_squared_error)


COMPONENT = Metric(
    name="psnr",
    label="PSNR",
    unit="dB",
    better="higher",
    decimals=2,
    voxelwise=_squared_error,
    pooled=_pooled,
)
psnr = COMPONENT.function
