"""Structural similarity (Wang et al., IEEE TIP 2004), slice by slice, averaged inside a mask.

The map of each slice equals scikit-image's `structural_similarity(full=True,
gaussian_weights=True, sigma=1.5, use_sample_covariance=False)`: an 11 x 11 Gaussian window,
K1 = 0.01, K2 = 0.03. It is two-dimensional because slices are often several millimetres
thick: a 3-D window would mix tissue that is far apart.

Value: the mean of the map inside the mask per slice, then the mean over the slices that have
mask voxels. For the whole image (mask None) scikit-image leaves out a border of 5 pixels,
which the window overlaps, and so do we; slices too small to have more than a border give NaN.
"""

import numpy as np
from scipy.ndimage import gaussian_filter

from medk2n.metrics._metric import Metric, masked_mean

_SIGMA = 1.5
_TRUNCATE = 3.5
_BORDER = int(_TRUNCATE * _SIGMA + 0.5)


def _local_mean(image: np.ndarray) -> np.ndarray:
    return gaussian_filter(image, sigma=(0, _SIGMA, _SIGMA), truncate=_TRUNCATE, mode="reflect")


def _similarity(predicted: np.ndarray, reference: np.ndarray, data_range: float) -> np.ndarray:
    mean_p, mean_r = _local_mean(predicted), _local_mean(reference)
    variance_p = _local_mean(predicted * predicted) - mean_p * mean_p
    variance_r = _local_mean(reference * reference) - mean_r * mean_r
    covariance = _local_mean(predicted * reference) - mean_p * mean_r
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    numerator = (2 * mean_p * mean_r + c1) * (2 * covariance + c2)
    return numerator / ((mean_p * mean_p + mean_r * mean_r + c1) * (variance_p + variance_r + c2))


def _mean_over_slices(similarity: np.ndarray, mask: np.ndarray | None) -> float:
    if mask is None:
        return masked_mean(similarity[:, _BORDER:-_BORDER, _BORDER:-_BORDER], None)
    used = np.flatnonzero(mask.any(axis=(1, 2)))
    return masked_mean(np.array([masked_mean(similarity[i], mask[i]) for i in used]), None)


COMPONENT = Metric(
    name="ssim",
    label="SSIM",
    unit="1",
    better="higher",
    decimals=4,
    voxelwise=_similarity,
    pooled=_mean_over_slices,
)
ssim = COMPONENT.function
