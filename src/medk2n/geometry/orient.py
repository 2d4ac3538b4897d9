"""Orientation: the closest RAS order of axes, and exactly back."""

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from medk2n.geometry.grid import Grid


def canonical_grid(grid: Grid) -> Grid:
    """`grid` with its axes permuted and flipped so that they run closest to right, anterior, superior."""
    ornt = io_orientation(grid.affine)
    shape = np.empty(3, dtype=int)
    shape[ornt[:, 0].astype(int)] = grid.shape
    return Grid(tuple(shape), grid.affine @ inv_ornt_aff(ornt, grid.shape))


def to_canonical(array: np.ndarray, grid: Grid) -> tuple[np.ndarray, Grid]:
    """Permute and flip the axes of an (x, y, z) array to closest RAS; no voxel changes its value.

    Returns a view where numpy allows, and the grid that belongs to it. An oblique grid stays oblique.
    """
    return apply_orientation(array, io_orientation(grid.affine)), canonical_grid(grid)


def from_canonical(array: np.ndarray, original_grid: Grid) -> np.ndarray:
    """The exact inverse of `to_canonical`: back to the axes of `original_grid`."""
    ornt = io_orientation(original_grid.affine)
    back = np.empty_like(ornt)
    for axis, (canonical_axis, flip) in enumerate(ornt):
        back[int(canonical_axis)] = axis, flip
    return apply_orientation(array, back)
