"""BraSyn as its docstrings say, and as its sister for inpainting computes: values inside the mask alone.

Both images are scaled by the reference's percentiles outside the tumour, so a wrong gain costs; what lies outside the
mask is 0 in both, so the window sees a step at the mask's edge; the map is averaged inside.
Subjects without a tumour have no value.
"""

from collections.abc import Iterator

import numpy as np

from medk2n.evaluation.protocols._protocol import Pair, Protocol, Value, clipped_to_percentiles
from medk2n.metrics._metric import masked_mean
from medk2n.metrics._similarity import VOLUME_WINDOW_TORCHMETRICS, content_box, similarity
from medk2n.metrics.psnr import psnr


def _measure(pair: Pair) -> Iterator[Value]:
    lesion = pair.regions.get("lesion")
    if lesion is None:
        return
    healthy = np.where(lesion, 0, pair.stored[1])
    predicted, reference = (clipped_to_percentiles(image, healthy, 0.5, 99.5) for image in pair.stored)
    for region, mask in (("lesion", lesion), ("healthy", ~lesion)):
        yield Value(region, "psnr", psnr(predicted, reference, mask, data_range=1.0))
        yield Value(region, "ssim", _ssim(predicted, reference, mask))


def _ssim(predicted: np.ndarray, reference: np.ndarray, mask: np.ndarray) -> float:
    box = content_box(mask, mask, VOLUME_WINDOW_TORCHMETRICS.radius) or ()
    inside = mask[box]
    first, second = (np.where(inside, image[box], 0) for image in (predicted, reference))
    data_range = float(max(np.ptp(first), np.ptp(second)))
    return masked_mean(similarity(first, second, data_range, VOLUME_WINDOW_TORCHMETRICS), inside)


COMPONENT = Protocol(
    name="brasyn_documented",
    label="BraSyn as documented",
    source="hongweilibran/BraSyn ssim.py (docstring) and evaluation_utils.py, 8908040",
    region="tumour, and all but the tumour (air included), voxels of the mask alone",
    scaling="both by the reference's 0.5 and 99.5 percentiles of the volume with the tumour set to 0",
    data_range="PSNR 1; SSIM the larger of the two images' largest less smallest value",
    window="SSIM on the volume, Gaussian 11, everything outside the mask 0",
    measure=_measure,
)
