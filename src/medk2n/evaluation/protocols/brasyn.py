"""BraSyn (BraTS 2023 to 2025) as its script runs: SSIM of what a mask leaves, mean over the whole volume.

Each image is scaled by its own percentiles, so a wrong gain costs nothing. Then everything outside the tumour is 0 in
both images, agrees, and counts: the tumour's SSIM is nearly 1 for any tumour that is small beside the volume, an erased
one included. The script says in its docstring that it takes the values of the mask: that is `brasyn_documented`.
Subjects without a tumour have no value.
"""

from collections.abc import Iterator

import numpy as np

from medk2n.evaluation.protocols._protocol import Pair, Protocol, Value, clipped_to_percentiles
from medk2n.metrics._similarity import VOLUME_WINDOW_TORCHMETRICS, mean_similarity


def _measure(pair: Pair) -> Iterator[Value]:
    lesion = pair.regions.get("lesion")
    if lesion is None:
        return
    predicted, reference = (clipped_to_percentiles(image, image, 0.5, 99.5) for image in pair.stored)
    for region, mask in (("lesion", lesion), ("healthy", ~lesion)):
        yield Value(region, "ssim", _ssim(np.where(mask, predicted, 0), np.where(mask, reference, 0)))


def _ssim(predicted: np.ndarray, reference: np.ndarray) -> float:
    data_range = float(max(np.ptp(predicted), np.ptp(reference)))
    return mean_similarity(predicted, reference, data_range, VOLUME_WINDOW_TORCHMETRICS)


COMPONENT = Protocol(
    name="brasyn",
    label="BraSyn as run",
    source="hongweilibran/BraSyn ssim.py, ecdaf00",
    region="tumour, and all but the tumour: the rest set to 0 in both, then the whole volume",
    scaling="each image by its own 0.5 and 99.5 percentiles of the whole volume",
    data_range="the larger of the two images' largest less smallest value",
    window="SSIM on the volume, Gaussian 11, border mirrored and counted",
    measure=_measure,
)
