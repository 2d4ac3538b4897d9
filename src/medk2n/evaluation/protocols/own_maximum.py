"""Each image divided by its own maximum, whole volume, background counted: the script of WFM.

Dividing the prediction by its own maximum punishes a model that is right everywhere but in one bright vessel; empty air
counts as correct. SSIM is scikit-image's default on the volume (the script's comment says slice by slice).
"""

from collections.abc import Iterator

import numpy as np

from medk2n.evaluation.protocols._protocol import Pair, Protocol, Value
from medk2n.metrics._similarity import VOLUME_WINDOW_SKIMAGE, mean_similarity
from medk2n.metrics.mae import mae
from medk2n.metrics.psnr import psnr


def _measure(pair: Pair) -> Iterator[Value]:
    predicted, reference = (_by_maximum(np.maximum(image, 0)) for image in pair.stored)
    yield Value("whole", "psnr", psnr(predicted, reference, data_range=1.0))
    yield Value("whole", "ssim", mean_similarity(predicted, reference, 1.0, VOLUME_WINDOW_SKIMAGE))
    yield Value("whole", "mae", mae(predicted, reference, data_range=1.0))


def _by_maximum(image: np.ndarray) -> np.ndarray:
    return image / image.max() if image.max() > 0 else image


COMPONENT = Protocol(
    name="own_maximum",
    label="Own maximum (WFM)",
    source="yalcintur/WFM scripts/evaluate.py, e01ab1c",
    region="whole volume",
    scaling="each image by its own maximum; below 0 becomes 0",
    data_range="1",
    window="SSIM on the volume, uniform 7, sample covariance",
    measure=_measure,
)
