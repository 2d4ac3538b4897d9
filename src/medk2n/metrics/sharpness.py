"""Sharpness: the high-frequency energy of a prediction as a share of the reference's.

What a Gaussian of one voxel's deviation takes away, in the plane of the slice, is squared and averaged inside the mask;
the value is the quotient of the two means. 1 is right; a blurred image lies below, a noisy one above. The step from
the patient to empty air is as high in any image and would hide the rest: voxels next to air (0 in both images) are left
out.
"""

import numpy as np
from scipy.ndimage import gaussian_filter, maximum_filter

from medk2n.metrics._metric import Metric, masked_mean

_SIGMA = 1.0
_RADIUS = 3  # voxels, which hold 99.7 % of the Gaussian


def _high_energies(predicted: np.ndarray, reference: np.ndarray, data_range: float) -> np.ndarray:
    near_air = maximum_filter((predicted == 0) & (reference == 0), size=2 * _RADIUS + 1, axes=(1, 2))
    return np.stack([np.where(near_air, 0, _high_pass(image / data_range) ** 2) for image in (predicted, reference)])


def _high_pass(image: np.ndarray) -> np.ndarray:
    return image - gaussian_filter(image, _SIGMA, radius=_RADIUS, axes=(1, 2), mode="nearest")


def _quotient(energies: np.ndarray, mask: np.ndarray | None) -> float:
    predicted, reference = (masked_mean(energy, mask) for energy in energies)
    return predicted / reference if reference > 0 else float("nan")


COMPONENT = Metric(
    name="sharpness",
    label="Sharpness",
    unit="of the reference's high-frequency energy",
    better="one",
    decimals=3,
    voxelwise=_high_energies,
    pooled=_quotient,
)
sharpness = COMPONENT.function
