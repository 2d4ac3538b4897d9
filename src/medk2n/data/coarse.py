"""Small copies of volumes, to look at them quickly."""

import numpy as np

from medk2n.geometry.grid import Grid
from medk2n.geometry.orient import to_canonical
from medk2n.io.volume import Volume

_COARSE_MM = 3.0
LEAST_VOXELS = 8
"""Along each axis: what has as many keeps as many, and what has fewer cannot be registered."""


def coarse(volume: Volume) -> Volume:
    """A copy in RAS order with voxels of about 3 mm, means of whole blocks of its own."""
    array, grid = to_canonical(volume.array, volume.grid)
    blocks = np.maximum(1, np.rint(_COARSE_MM / grid.spacing_mm)).astype(int)
    blocks = np.minimum(blocks, np.maximum(1, np.array(grid.shape) // LEAST_VOXELS))
    x, y, z = shape = np.array(grid.shape) // blocks
    a, b, c = blocks
    whole = array[: x * a, : y * b, : z * c].astype(np.float32)
    means = whole.reshape(x, a, y, b, z, c).mean(axis=(1, 3, 5))
    index = np.diag([*blocks.astype(float), 1.0])
    index[:3, 3] = (blocks - 1) / 2
    return Volume(means, Grid(tuple(shape), grid.affine @ index), volume.modality, volume.provenance)
