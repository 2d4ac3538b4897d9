"""Both images multiplied by the reference's own mask, then the whole volume: the script of Fast-cWDM (BraSyn 2025).

What a model paints where the reference is empty is wiped before it is looked at, and the wiped voxels count as
correct. SSIM is MONAI's on the volume with a window of 7.
"""

from collections.abc import Iterator

import numpy as np

from medk2n.evaluation.protocols._protocol import Pair, Protocol, Value, clipped_to_percentiles
from medk2n.metrics._similarity import VOLUME_WINDOW_MONAI_7, mean_similarity
from medk2n.metrics.mae import mae
from medk2n.metrics.psnr import psnr

_MASK_ABOVE = 0.01  # of the scaled reference


def _measure(pair: Pair) -> Iterator[Value]:
    stored, truth = pair.stored
    predicted, reference = (clipped_to_percentiles(image, truth, 0.1, 99.9) for image in (stored, truth))
    mask = reference > _MASK_ABOVE
    predicted, reference = np.where(mask, predicted, 0), np.where(mask, reference, 0)
    yield Value("whole", "psnr", psnr(predicted, reference, data_range=1.0))
    yield Value("whole", "ssim", mean_similarity(predicted, reference, 1.0, VOLUME_WINDOW_MONAI_7))
    yield Value("whole", "mae", mae(predicted, reference, data_range=1.0))


COMPONENT = Protocol(
    name="masked_volume",
    label="Masked volume (Fast-cWDM)",
    source="tsereda/brats-synthesis app/scripts/complete_dataset.py, c917158",
    region="whole volume after both were set to 0 where the scaled reference is at most 0.01",
    scaling="both by the reference's 0.1 and 99.9 percentiles of the whole volume",
    data_range="1",
    window="SSIM on the volume, Gaussian 7, border left out",
    measure=_measure,
)
