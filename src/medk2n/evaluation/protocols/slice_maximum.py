"""Every slice divided by its own maximum, prediction and reference alike: the script of SynDiff.

PSNR alone; the peak is the prediction's maximum, which is 1 by then. The script's crop to 256 x 152 fits one data set
and is left out.
"""

from collections.abc import Iterator

import numpy as np

from medk2n.evaluation.protocols._protocol import Pair, Protocol, Value, mean_over_slices
from medk2n.metrics.psnr import decibel


def _measure(pair: Pair) -> Iterator[Value]:
    predicted, reference = (image.max(axis=(1, 2), keepdims=True) for image in pair.images)
    used = ((predicted > 0) & (reference > 0)).ravel()  # elsewhere the script divides by 0 and leaves the slice out
    error = pair.predicted[used] / predicted[used] - pair.reference[used] / reference[used]
    squared = np.square(error).mean(axis=(1, 2), dtype=np.float64)
    yield Value("whole", "psnr", mean_over_slices(decibel(value) for value in squared))


COMPONENT = Protocol(
    name="slice_maximum",
    label="Slice maximum (SynDiff)",
    source="icon-lab/SynDiff test.py, afb3b46",
    region="whole slices, mean over slices that are not empty",
    scaling="each slice of each image by its own maximum",
    data_range="maximum of the scaled prediction, 1",
    window="every slice alone; no SSIM",
    measure=_measure,
)
