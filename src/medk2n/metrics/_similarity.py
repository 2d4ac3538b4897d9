"""The map of structural similarity (Wang et al., IEEE TIP 2004) under any window, K1 = 0.01 and K2 = 0.03.

Implementations differ in the window, in what they suppose beyond the image's edge and in what they count: that is a
`Window`. `tests/unit/test_similarity.py` holds each against the library it is named for.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.ndimage import gaussian_filter, uniform_filter

_SIGMA = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Where a local mean is taken, and over which voxels the map is averaged.

    Attributes:
        axes: along which it extends; 0 goes from slice to slice.
        shape: "gaussian" (deviation 1.5 voxels) or "uniform".
        size: its width in voxels, odd.
        border: what lies beyond the edge, in scipy's words; "mirror" is what torch calls "reflect".
        sample: covariances are divided by n - 1, not n.
        whole: voxels nearer to the edge than half a window count too.
    """

    axes: tuple[int, ...]
    shape: Literal["gaussian", "uniform"] = "gaussian"
    size: int = 11
    border: Literal["reflect", "mirror"] = "reflect"
    sample: bool = False
    whole: bool = False

    @property
    def radius(self) -> int:
        """Voxels to either side."""
        return self.size // 2

    def mean(self, image: np.ndarray) -> np.ndarray:
        """The local mean, (s, h, w)."""
        if self.shape == "uniform":
            return uniform_filter(image, self.size, axes=self.axes, mode=self.border)
        return gaussian_filter(image, _SIGMA, radius=self.radius, axes=self.axes, mode=self.border)

    def counted(self, shape: tuple[int, ...]) -> tuple[slice, ...]:
        """Of a volume of this shape, the voxels whose mean is the volume's similarity."""
        edge = 0 if self.whole else self.radius
        return tuple(slice(edge, max(edge, n - edge)) if a in self.axes else slice(0, n) for a, n in enumerate(shape))


SLICE_WINDOW = Window(axes=(1, 2))
"""Slice by slice, scikit-image's `structural_similarity(gaussian_weights=True, use_sample_covariance=False)`."""
SLICE_WINDOW_SKIMAGE = Window(axes=(1, 2), shape="uniform", size=7, sample=True)
"""scikit-image's default, slice by slice."""
VOLUME_WINDOW_SKIMAGE = Window(axes=(0, 1, 2), shape="uniform", size=7, sample=True)
"""scikit-image's default on a volume."""
SLICE_WINDOW_TORCHMETRICS = Window(axes=(1, 2), border="mirror", whole=True)
"""torchmetrics' default (1.9), slice by slice."""
VOLUME_WINDOW_TORCHMETRICS = Window(axes=(0, 1, 2), border="mirror", whole=True)
"""torchmetrics' default (1.9) on a volume."""
VOLUME_WINDOW_MONAI_7 = Window(axes=(0, 1, 2), size=7)
"""MONAI's `SSIMMetric(spatial_dims=3, win_size=7)`."""


def similarity(predicted: np.ndarray, reference: np.ndarray, data_range: float, window: Window) -> np.ndarray:
    """The map, (s, h, w), of two images of one shape and floating type."""
    mean_p, mean_r = window.mean(predicted), window.mean(reference)
    variance_p = window.mean(predicted * predicted) - mean_p * mean_p
    variance_r = window.mean(reference * reference) - mean_r * mean_r
    covariance = window.mean(predicted * reference) - mean_p * mean_r
    if window.sample:
        n = window.size ** len(window.axes)
        variance_p, variance_r, covariance = (v * (n / (n - 1)) for v in (variance_p, variance_r, covariance))
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    numerator = (2 * mean_p * mean_r + c1) * (2 * covariance + c2)
    return numerator / ((mean_p * mean_p + mean_r * mean_r + c1) * (variance_p + variance_r + c2))


def mean_similarity(predicted: np.ndarray, reference: np.ndarray, data_range: float, window: Window) -> float:
    """Mean of the map over the voxels that the window counts; NaN if there are none.

    Where both images are 0 as far as the window reaches, the similarity is 1 and is not computed: so a mask on few
    voxels costs little.
    """
    counted = window.counted(predicted.shape)
    n = np.prod([part.stop - part.start for part in counted])
    if n == 0:
        return float("nan")
    box = content_box(predicted, reference, window.radius + 1)  # a mirror at the box's edge shows radius + 1 voxels
    if box is None:
        return 1.0
    inner = similarity(predicted[box], reference[box], data_range, window)
    ends = zip(counted, box, strict=True)  # what is counted, as indices of the box
    kept = inner[tuple(slice(max(c.start - b.start, 0), max(c.stop - b.start, 0)) for c, b in ends)]
    return float((kept.sum(dtype=np.float64) + n - kept.size) / n)


def content_box(first: np.ndarray, second: np.ndarray, margin: int) -> tuple[slice, ...] | None:
    """The smallest box of all voxels that are not 0 in both, grown by a margin; None if there are none."""
    content = (first != 0) | (second != 0)
    box = []
    for axis, n in enumerate(content.shape):
        others = tuple(a for a in range(content.ndim) if a != axis)
        found = np.flatnonzero(content.any(axis=others))
        if not found.size:
            return None
        box.append(slice(max(found[0] - margin, 0), min(found[-1] + 1 + margin, n)))
    return tuple(box)
