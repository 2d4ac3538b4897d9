"""Is it a scan at all: what an image by itself says, from a few numbers of its own grey levels."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from medk2n.data.coarse import coarse
from medk2n.data.patient import patient
from medk2n.geometry.orient import to_canonical
from medk2n.io.volume import Volume

_LEAST_VOXELS = 200  # of some 3 mm, inside the head: of fewer nothing is said
_THICK = 4  # an axis with fewer voxels has no rim
_MOST_VOXELS = 500_000  # that grey levels are counted on
_LIKE_AIR = 0.05  # of the range of values: no more than that apart is alike
_ALIKE_EDGES = 1.5  # an axis with longer voxels than this many times the shortest has no near neighbours


@dataclass(frozen=True)
class Look:
    """An image by itself, inside its head, without a rim; of the last the whole image.

    Attributes:
        steady: correlation of means over 3 mm with those beside them; noise has none.
        levels: how many grey levels there are, as the exponential of their entropy; a mask has one.
        brightest: share of voxels at the very highest value; a range that was cut leaves many there.
        darker: of the voxels that differ from the edges of the image, the share that is darker; of a negative nearly
            all are.
    """

    steady: float
    levels: float
    brightest: float
    darker: float


def look(volume: Volume, small: Volume | None = None) -> Look | None:
    """Measure one image; None where there is too little of it to tell.

    Args:
        small: its `coarse` copy, if there is one already.
    """
    small = small or coarse(volume)
    inside = patient(small)
    inside = _within(inside if inside.any() else np.ones_like(inside))
    if np.count_nonzero(inside) < _LEAST_VOXELS:
        return None
    array, _ = to_canonical(volume.array, volume.grid)
    blocks = np.array(array.shape) // np.array(inside.shape)
    edges = {axis: n for axis, n in enumerate(small.grid.spacing_mm) if inside.shape[axis] >= _THICK}
    steady = [
        _steady(small.array, inside, axis) for axis, n in edges.items() if n <= _ALIKE_EDGES * min(edges.values())
    ]
    whole = inside
    for each, times in enumerate(blocks):
        whole = np.repeat(whole, times, each)
    values = array[tuple(map(slice, whole.shape))][whole]
    _, counts = np.unique(values[:: 1 + values.size // _MOST_VOXELS], return_counts=True)
    shares = counts / counts.sum()
    return Look(
        steady=float(np.mean(steady)) if steady else 1.0,
        levels=float(np.exp(-np.sum(shares * np.log(shares)))),
        brightest=float(shares[-1]),
        darker=_darker(small.array),
    )


def _darker(array: np.ndarray) -> float:
    around = float(np.median(np.concatenate([array[[0, -1]].ravel(), array[:, [0, -1]].ravel()])))
    low, high = np.percentile(array, [1, 99])
    other = array[abs(array - around) > _LIKE_AIR * (high - low)]
    return float((other < around).mean()) if other.size else 0.0


def _within(mask: np.ndarray) -> np.ndarray:
    """Without the outer voxel along each axis that has some."""
    size = [3 if n >= _THICK else 1 for n in mask.shape]
    return ndimage.minimum_filter(mask, size, mode="constant")


def _steps(mask: np.ndarray, axis: int) -> np.ndarray:
    """Where both a voxel and the next one along an axis are in the mask."""
    n = mask.shape[axis]
    return mask.take(range(n - 1), axis) & mask.take(range(1, n), axis)


def _steady(array: np.ndarray, inside: np.ndarray, axis: int) -> float:
    n, both = array.shape[axis], _steps(inside, axis)
    here, beside = array.take(range(n - 1), axis)[both], array.take(range(1, n), axis)[both]
    if not here.size or not here.std() > 0 or not beside.std() > 0:
        return 1.0
    return float(np.corrcoef(here, beside)[0, 1])
