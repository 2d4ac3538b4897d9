"""Background stays background, by one rule for every method and row.

A voxel is outside if it is zero in every input and connected, through such voxels of its
slice, to the slice's edge. Holes (dark fluid that the scaling clipped to zero) stay inside.
"""

from collections.abc import Mapping

import numpy as np
from scipy import ndimage


def inside_inputs(images: Mapping[str, np.ndarray]) -> np.ndarray:
    """(s, h, w) bool: where the inputs show a patient. Sees the inputs only, never a target."""
    empty = np.logical_and.reduce([image == 0 for image in images.values()])
    in_plane = ndimage.generate_binary_structure(3, 1)
    in_plane[0] = in_plane[2] = False
    labels, _ = ndimage.label(empty, in_plane)
    edges = (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1])
    outside = np.unique(np.concatenate([edge.ravel() for edge in edges]))
    return ~np.isin(labels, outside[outside > 0], kind="table")
