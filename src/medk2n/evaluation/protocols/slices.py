"""Every slice on its own, background counted, mean over slices: the script of CodeBrain.

A mean of decibels is no decibel of a mean: slices with little in them are easy and weigh as much as the others.
SSIM is torchmetrics' in the plane. Slices without foreground are left out (their PSNR would be infinite).
"""

from collections.abc import Iterator

import numpy as np

from medk2n.evaluation.protocols._protocol import Pair, Protocol, Value, mean_over_slices
from medk2n.metrics._similarity import SLICE_WINDOW_TORCHMETRICS, mean_similarity
from medk2n.metrics.mae import mae
from medk2n.metrics.psnr import decibel


def _measure(pair: Pair) -> Iterator[Value]:
    foreground = pair.regions["foreground"]
    used = foreground.any(axis=(1, 2))
    predicted, reference = (image[used] for image in pair.images)
    squared = np.square(predicted - reference).mean(axis=(1, 2), dtype=np.float64)
    yield Value("whole", "psnr", mean_over_slices(decibel(error) for error in squared))
    yield Value("whole", "ssim", mean_similarity(predicted, reference, 1.0, SLICE_WINDOW_TORCHMETRICS))
    yield Value("whole", "mae", mae(predicted, reference, data_range=1.0))


COMPONENT = Protocol(
    name="slices",
    label="Slice by slice (CodeBrain)",
    source="ycwu1997/CodeBrain code/utils/metrics_set.py, b15707b",
    region="whole slices, mean over slices with foreground",
    scaling="both by the reference's 0.5 and 99.5 percentiles inside its foreground (its own are not published)",
    data_range="1",
    window="every slice alone; SSIM Gaussian 11, border mirrored and counted",
    measure=_measure,
)
