"""In which order a sequence block reads a feature map: along a Fermat spiral from the centre to the rim, or row by row.

An order is a permutation of the h w voxels, applied by indexing. On the spiral r = c sqrt(theta) every turn sweeps the
same area; voxels are taken turn by turn, and by angle within a turn, so that neighbours in the sequence are neighbours
in the image. (Seeds of a sunflower lie on the same spiral, but in their order, a golden angle apart, each is far from
the next.)
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_TURN = 1.5
"""How far apart the turns lie at the rim, in voxels: mean jumps were shortest from 1.2 to 1.5."""


def fermat(h: int, w: int) -> np.ndarray:
    """Voxel indices (h w,) in the order of the spiral."""
    y, x = np.mgrid[:h, :w]
    x, y = x - (w - 1) / 2, y - (h - 1) / 2
    area, angle = x**2 + y**2, np.arctan2(y, x) % (2 * np.pi)
    c_squared = _TURN * max(h, w) / 2 / np.pi  # turns at radius r lie pi c^2 / r apart
    turn = np.maximum(np.round((area / c_squared - angle) / (2 * np.pi)), 0)
    return np.lexsort((area.ravel(), (angle + 2 * np.pi * turn).ravel()))


def raster(h: int, w: int) -> np.ndarray:
    """Voxel indices (h w,) row by row."""
    return np.arange(h * w)


ORDERS = {"spiral": fermat, "raster": raster}


@lru_cache(maxsize=64)
def order(name: str, h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The permutation called `name` and its inverse, (h w,) each: y = x[order] and x = y[inverse]."""
    forth = ORDERS[name](h, w)
    return torch.from_numpy(forth).to(device), torch.from_numpy(np.argsort(forth)).to(device)


def mean_jump(forth: np.ndarray, w: int) -> float:
    """Mean distance in voxels between neighbours of a sequence of at least two."""
    y, x = np.divmod(forth, w)
    return float(np.hypot(np.diff(y), np.diff(x)).mean())
