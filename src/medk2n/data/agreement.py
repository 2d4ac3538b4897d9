"""How two scans of one study lie to each other: displaced, mirrored left to right, of one patient at all?

All is measured on small copies (`data/coarse.py`), in well under a second a pair. A rigid registration tells how far
one lies from the other. Then they are compared detail by detail, as they are and with one mirrored: a head is not quite
alike on both sides, so that two scans of one patient agree clearly better the right way round, and scans of two
patients neither way.
"""

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from medk2n.data.coarse import LEAST_VOXELS
from medk2n.data.itk import one_thread
from medk2n.data.patient import air_level, patient
from medk2n.data.rigid import clipped, gain, moved, rigid, where_it_is
from medk2n.geometry.grid import Grid
from medk2n.geometry.resample import check_overlap, resample
from medk2n.io.volume import Volume

_ITERATIONS, _SAMPLES, _FIRST_STEP_MM = 60, 6000, 2.0
_WINDOW_MM = 15.0  # side of the cube in which detail is compared
_RIM_MM = 5.0  # of the head, that says little: all heads have an outline
_FLOOR = 1e-3  # of a scan's variance: less than that in a window is no detail


@dataclass(frozen=True)
class Agreement:
    """What was measured of a pair.

    Attributes:
        move_mm: mean distance over the head by which the second scan is displaced against the first.
        shift_mm: (3,) by how much the head's middle is, towards right, anterior and superior.
        gain: by what factor the move raises their mutual information.
        alike: mean squared correlation of detail inside the head after that move, from 0 to 1.
        mirrored: the same with the second scan mirrored left to right, and moved as suits it best.
    """

    move_mm: float
    shift_mm: tuple[float, float, float]
    gain: float
    alike: float
    mirrored: float


def compare(fixed: Volume, moving: Volume) -> Agreement | None:
    """Measure a pair of `coarse` volumes; None where there are too few voxels or too little in them to tell.

    Raises:
        GeometryError: they do not overlap.
    """
    if min(*fixed.grid.shape, *moving.grid.shape) < LEAST_VOXELS:
        return None
    check_overlap(fixed.grid, moving.grid, fixed.modality, moving.modality)
    head = patient(fixed)
    if not head.any():
        return None
    try:
        with one_thread():
            transform = _registered(fixed, moving)
            more = gain(clipped(fixed), clipped(moving), transform, samples=5 * _SAMPLES)
            back = _registered(fixed, other := _mirrored(moving, patient(moving)))
    except RuntimeError:  # ITK's: nothing to go by
        return None
    there = where_it_is(transform)
    points = np.argwhere(head) @ fixed.grid.affine[:3, :3].T + fixed.grid.affine[:3, 3]
    steps = points - (points @ there[:3, :3].T + there[:3, 3])
    right, anterior, superior = (float(step) for step in steps.mean(axis=0))
    return Agreement(
        float(np.linalg.norm(steps, axis=1).mean()),
        (right, anterior, superior),
        more,
        _alike(fixed, moved(moving, there), head),
        _alike(fixed, moved(other, where_it_is(back)), head),
    )


def _registered(fixed: Volume, moving: Volume) -> sitk.Transform:
    images = clipped(fixed), clipped(moving)
    return rigid(*images, iterations=_ITERATIONS, shrunk=[1], samples=_SAMPLES, first_step_mm=_FIRST_STEP_MM)


def _mirrored(volume: Volume, head: np.ndarray) -> Volume:
    """Left to right about the middle of the head."""
    across = np.nonzero(head.any(axis=(1, 2)))[0]
    middle = across.mean() if len(across) else (len(head) - 1) / 2
    index = np.eye(4)
    index[0, 3] = 2 * middle - (len(head) - 1)
    grid = Grid(volume.grid.shape, volume.grid.affine @ index)
    return Volume(volume.array[::-1], grid, volume.modality, volume.provenance)


def _alike(fixed: Volume, moving: Volume, head: np.ndarray) -> float:
    a, b = fixed.array, resample(moving.array, moving.grid, fixed.grid, fill=air_level(moving))
    spacing = fixed.grid.spacing_mm
    inside = head & patient(Volume(b, fixed.grid, moving.modality, moving.provenance))
    rim = 2 * np.rint(_RIM_MM / spacing).astype(int) + 1
    inside = ndimage.minimum_filter(inside, rim.tolist(), mode="constant")
    if not inside.any():
        return 0.0
    size = np.maximum(1, 2 * np.rint((_WINDOW_MM / spacing - 1) / 2) + 1).astype(int).tolist()

    def mean(x: np.ndarray) -> np.ndarray:
        return ndimage.uniform_filter(x, size)

    a, b = _levelled(a, inside), _levelled(b, inside)
    of_a, of_b = mean(a), mean(b)
    spread = [(mean(x * x) - m * m).clip(0) + _FLOOR for x, m in ((a, of_a), (b, of_b))]
    shared = (mean(a * b) - of_a * of_b) ** 2 / (spread[0] * spread[1])
    return float(shared[inside].mean())


def _levelled(array: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Of mean 0 and variance 1 inside, whatever the unit."""
    values = array[inside].astype(np.float64)
    return ((array - values.mean()) / (values.std() or 1.0)).astype(np.float32)
