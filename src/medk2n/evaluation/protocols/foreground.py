"""Ours, and the default: inside one foreground mask a study, one scale, data range 1.

The only one that also asks for sharpness and for the step from slice to slice. docs/evaluation.md says why so.
"""

from collections.abc import Iterator

from medk2n.evaluation.protocols._protocol import Pair, Protocol, Value
from medk2n.registry import resolve

METRICS = ("mae", "psnr", "ssim", "sharpness", "slice_consistency")


def _measure(pair: Pair) -> Iterator[Value]:
    for name in METRICS:
        metric = resolve("metrics", name)
        values = metric.map(*pair.images, data_range=1.0)
        for region, mask in pair.regions.items():
            yield Value(region, name, metric.pooled(values, mask))


COMPONENT = Protocol(
    name="foreground",
    label="Foreground (medk2n)",
    source="this package",
    region="foreground; beside it whole image, brain, lesion",
    scaling="both by the reference's 0.5 and 99.5 percentiles inside its foreground, clipped; CT: -1000 to 2000 HU",
    data_range="1",
    window="SSIM slice by slice, Gaussian 11; PSNR and MAE over the voxels of the volume",
    measure=_measure,
)
