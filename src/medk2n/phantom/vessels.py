"""Blood vessels: the great sinuses and arteries of every head, and small ones at random."""

import numpy as np
from scipy.ndimage import gaussian_filter1d

from medk2n.phantom.anatomy import Anatomy, to_voxels

# Centre lines in MNI millimetres (right side of paired ones) and radii; rounded from atlases of the vessels.
_MIDLINE = (
    (3.0, ((0, 62, 12), (0, 56, 38), (0, 35, 58), (0, 5, 72), (0, -30, 78), (0, -65, 62), (0, -92, 38), (0, -104, 8))),
    (1.6, ((0, -38, 3), (0, -50, 8), (0, -72, 4), (0, -100, -4))),
    (1.6, ((0, -20, -44), (0, -16, -34), (0, -13, -24), (0, -17, -14))),
    (1.1, ((0, 24, -14), (0, 36, -2), (0, 38, 12), (0, 28, 26), (0, 8, 34), (0, -20, 38))),
)
_PAIRED = (
    (2.6, ((2, -104, -6), (24, -98, -12), (46, -76, -24), (54, -58, -34), (50, -46, -44))),
    (1.9, ((12, 2, -40), (11, 4, -30), (9, 8, -22), (9, 6, -17))),
    (1.5, ((9, 6, -17), (20, 7, -18), (32, 6, -18), (40, 2, -12), (44, -8, -4), (46, -24, 8), (48, -40, 16))),
    (1.2, ((36, 6, -16), (44, 12, -2), (46, 14, 14), (48, 8, 30))),
    (1.2, ((4, -18, -16), (16, -26, -14), (22, -36, -8), (18, -56, 0), (12, -78, 4))),
    (1.0, ((3, 8, 10), (3, -12, 16), (2, -30, 10), (0, -38, 4))),
)


def _line(corners: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Points every half millimetre or closer along a winding curve near the corners' polyline."""
    lengths = np.linalg.norm(np.diff(corners, axis=0), axis=1)
    at = np.concatenate([[0], np.cumsum(lengths)])
    along = np.linspace(0, at[-1], int(at[-1] / 0.4) + 2)
    straight = np.stack([np.interp(along, at, axis) for axis in corners.T], axis=1)
    wander = gaussian_filter1d(rng.standard_normal(straight.shape), 10, axis=0, mode="nearest")
    return gaussian_filter1d(straight, 8, axis=0, mode="nearest") + 1.3 * wander / max(float(wander.std()), 1e-6)


def _random_trees(anatomy: Anatomy, rng: np.random.Generator, count: int) -> list[tuple[float, np.ndarray]]:
    """Small vessels: walks that start in the CSF near the surface and follow it."""
    csf = anatomy.maps[2]
    candidates = np.argwhere((csf[::3, ::3, ::3] > 0.2) & (anatomy.maps[6][::3, ::3, ::3] > 0.5)) * 3.0
    starts = candidates[rng.integers(len(candidates), size=count)]
    lines = []
    for start in starts:
        here, heading, points = start.copy(), rng.standard_normal(3), []
        for _ in range(int(rng.integers(20, 90))):
            heading = 0.85 * heading / np.linalg.norm(heading) + 0.35 * rng.standard_normal(3)
            trial = here + 0.6 * (heading / np.linalg.norm(heading))[None] + rng.normal(0, 0.2, (6, 3))
            index = np.clip(np.rint(trial).astype(int), 0, np.array(csf.shape) - 1)
            here = trial[np.argmax(csf[tuple(index.T)])]  # the way that stays in CSF
            points.append(here)
        lines.append((float(rng.uniform(0.45, 0.9)), np.array(points)))
    return lines


def vessel_map(anatomy: Anatomy, rng: np.random.Generator, small: int = 420) -> np.ndarray:
    """Fraction of blood in each voxel of the anatomy's grid, 0..1 float32; large vessels, then `small` random ones."""
    amount = np.zeros(anatomy.maps.shape[1:], np.float32)
    lines = []
    for radius, corners in _MIDLINE:
        lines.append((radius, np.array(corners, float)))
    for radius, corners in _PAIRED:
        lines += [(radius, np.array(corners, float) * (side, 1, 1)) for side in (1, -1)]
    for radius, corners in lines:
        line = _line(corners, rng)
        _draw(amount, to_voxels(anatomy.affine, line), radius * float(rng.uniform(0.85, 1.15)))
    for radius, line in _random_trees(anatomy, rng, small):
        _draw(amount, line, radius)
    return amount


def _draw(amount: np.ndarray, line: np.ndarray, radius: float) -> None:
    """Raise `amount` to the fraction of a ball of `radius` voxels at each point of a line."""
    reach = int(np.ceil(radius + 0.5))
    offsets = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3, indexing="ij"), -1).reshape(-1, 3)
    index = np.rint(line).astype(int)[:, None] + offsets
    distance = np.linalg.norm(index - line[:, None], axis=-1)
    # A ball smaller than a voxel fills it only in part.
    fraction = np.clip(radius + 0.5 - distance, 0, 1) * min(1.0, 1.2 * radius)
    inside = ((index >= 0) & (index < amount.shape)).all(axis=-1) & (fraction > 0)
    np.maximum.at(amount, tuple(index[inside].T), fraction[inside].astype(np.float32))
