"""SynthRAD for CT: errors in Hounsfield units inside the patient.

Other modalities have no value, nor has CT that came as grey levels and lost its HU. The challenge's
third metric, MS-SSIM, is left out.
"""

from collections.abc import Iterator

import numpy as np

from medk2n.evaluation.protocols._protocol import Pair, Protocol, Value
from medk2n.metrics.hu_error import hu_error
from medk2n.metrics.psnr import psnr
from medk2n.vocabulary import modality

_RANGE = (-1024.0, 3000.0)


def _measure(pair: Pair) -> Iterator[Value]:
    if modality(pair.target).unit != "HU" or pair.scaling.kind != "fixed":
        return
    mask = pair.regions["foreground"]
    predicted, reference = (np.clip(pair.scaling.invert(image), *_RANGE) for image in pair.images)
    yield Value("foreground", "hu_error", hu_error(predicted, reference, mask, data_range=_RANGE[1] - _RANGE[0]))
    yield Value("foreground", "psnr", psnr(predicted, reference, mask, data_range=_RANGE[1] - _RANGE[0]))


COMPONENT = Protocol(
    name="synthrad",
    label="SynthRAD (CT)",
    source="SynthRAD2025/metrics functions/image_metrics.py, 0beef65",
    region="patient (our foreground)",
    scaling="none: HU, here within the window of -1000 to 2000 that a model sees",
    data_range="4024 HU (-1024 to 3000)",
    window="over the voxels of the volume",
    measure=_measure,
)
