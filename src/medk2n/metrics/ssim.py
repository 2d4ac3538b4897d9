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

from medk2n.metrics._metric import Metric, masked_mean
from medk2n.metrics._similarity import SLICE_WINDOW, similarity


def _similarity(predicted: np.ndarray, reference: np.ndarray, data_range: float) -> np.ndarray:
    return similarity(predicted, reference, data_range, SLICE_WINDOW)


def _mean_over_slices(values: np.ndarray, mask: np.ndarray | None) -> float:
    if mask is None:
        return masked_mean(values[SLICE_WINDOW.counted(values.shape)], None)
    used = np.flatnonzero(mask.any(axis=(1, 2)))
    return masked_mean(np.array([masked_mean(values[i], mask[i]) for i in used]), None)


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
