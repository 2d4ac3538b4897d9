"""Each slice divided by its own mean, data range from both images together: the scripts of MU-Diff.

Slices go through 8-bit pictures (the JPEG's losses are left out), are clipped to the 1 and 99 percentiles of what is
not 0, scaled to [0, 1], divided by their mean, cut to the brain and masked. Dividing by the mean forgives any gain; a
slice that is mostly air has a small mean, so its maximum, and with it the data range, is many times 1. MAE is taken
before the division.
"""

from collections.abc import Iterator

import numpy as np

from medk2n.evaluation.protocols._protocol import Pair, Protocol, Value, mean_over_slices
from medk2n.metrics._similarity import SLICE_WINDOW_SKIMAGE, mean_similarity
from medk2n.metrics.psnr import decibel

_LEAST = 7  # voxels that a cut has along each axis, for the window


def _measure(pair: Pair) -> Iterator[Value]:
    region = "brain" if "brain" in pair.regions else "foreground"
    mask = pair.regions[region]
    found = [_slice(p, r, m) for p, r, m in zip(*pair.images, mask, strict=True) if m.any()]
    for metric, values in zip(("psnr", "ssim", "mae"), np.reshape(found, (-1, 3)).T, strict=True):
        yield Value(region, metric, mean_over_slices(values))


def _slice(predicted: np.ndarray, reference: np.ndarray, mask: np.ndarray) -> tuple[float, float, float]:
    """PSNR, SSIM and MAE of one slice, (h, w); NaN where an image has no contrast."""
    box = tuple(_span(mask.any(axis=axis)) for axis in (1, 0))
    inside = mask[box]
    scaled = [_scaled(image) for image in (predicted, reference)]
    first, second = (image[box] * inside for image in scaled)
    mae = float(np.abs(first - second).mean())
    first, second = (image[box] / image.mean() * inside for image in scaled)
    data_range = max(first.max(), second.max()) - min(first.min(), second.min())
    if not data_range > 0:
        return np.nan, np.nan, np.nan
    psnr = decibel(float(np.square((first - second) / data_range).mean()))
    return psnr, mean_similarity(first[None], second[None], data_range, SLICE_WINDOW_SKIMAGE), mae


def _scaled(image: np.ndarray) -> np.ndarray:
    """A slice through 8 bits, to [0, 1] between the percentiles of what is not 0; NaN without contrast."""
    low, high = image.min(), image.max()
    if not high > low:
        return np.full(image.shape, np.nan)
    grey = np.round((image.astype(np.float64) - low) / (high - low) * 255)
    bottom, top = np.percentile(grey[grey > 0], (1, 99))
    return (np.clip(grey, bottom, top) - bottom) / (top - bottom) if top > bottom else np.full(image.shape, np.nan)


def _span(used: np.ndarray) -> slice:
    """From the first to the last that is used, widened to the window where there is room."""
    first, last = np.flatnonzero(used)[[0, -1]]
    lacking = max(_LEAST - (last - first + 1), 0)
    return slice(max(first - lacking // 2, 0), min(last + (lacking + 1) // 2, used.size - 1) + 1)


COMPONENT = Protocol(
    name="own_mean",
    label="Own mean, joint range (MU-Diff)",
    source="sanuwanihewa/MU-Diff test.py and metric_calc.py, c3c674d",
    region="brain mask (else the foreground), cut to its box; mean over slices",
    scaling="each slice of each image: 8 bits, 1 and 99 percentiles of what is not 0, then divided by its own mean",
    data_range="largest less smallest value of both images of the slice",
    window="every slice alone; SSIM uniform 7, sample covariance",
    measure=_measure,
)
