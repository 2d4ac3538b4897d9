"""From one grid to another: resampling, overlap, and the grid that a model works on."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from medk2n.errors import GeometryError
from medk2n.geometry.grid import Grid
from medk2n.geometry.limits import check_growth
from medk2n.geometry.orient import canonical_grid

AXIAL = 2
_FWHM_TO_SIGMA = 1.0 / (2.0 * np.sqrt(2.0 * np.log(2.0)))
_EDGE = 0.5 + 1e-3  # a voxel reaches half an index past its centre; the rest is for rounding
_SAMPLES = 12  # points a side for the overlap of two fields of view
_SAME_SPACING = 0.01  # closer than this share, an axis is kept instead of being resampled


@dataclass(frozen=True)
class WorkingGrid:
    """The grid a model sees, and the axis across its slices (0, 1 or 2)."""

    grid: Grid
    slice_axis: int


def resample(array: np.ndarray, grid: Grid, onto: Grid, *, order: int = 1, fill: float = 0.0) -> np.ndarray:
    """Bring an (x, y, z) array from `grid` onto another grid of the same scanner space.

    Axes that lose resolution are blurred first so that nothing aliases (the Gaussian's full width
    makes up for the difference of the voxel sizes, Cardoso et al., MICCAI 2015).

    Args:
        array: any real dtype.
        order: 0 nearest (labels: neither blurred nor mixed), 1 linear, 3 cubic.
        fill: value outside the field of view of `grid`.

    Returns:
        float32 array of `onto.shape`; the input itself (as float32) if the grids are the same.
    """
    array = np.asarray(array).astype(np.float32, copy=False)
    if grid.same_as(onto):
        return array
    voxel_to_voxel = np.linalg.inv(grid.affine) @ onto.affine
    matrix, offset = voxel_to_voxel[:3, :3], voxel_to_voxel[:3, 3]
    if order > 0:
        array = _blurred(array, np.linalg.norm(matrix, axis=1))
    # scipy walks a diagonal map much faster: turn the source so that the map is diagonal, where it can be
    turn = [int(np.argmax(np.abs(matrix[:, axis]))) for axis in range(3)]
    if sorted(turn) == [0, 1, 2]:
        matrix, offset, array = matrix[turn], offset[turn], array.transpose(turn)
    diagonal = np.diag(matrix)
    is_diagonal = _is_diagonal(matrix, onto.shape)
    out = ndimage.affine_transform(
        array,
        diagonal if is_diagonal else matrix,
        offset=offset,
        output_shape=onto.shape,
        output=np.float32,
        order=order,
        mode="nearest",
    )
    _fill_outside(out, matrix, offset, array.shape, fill)
    return out


def _blurred(array: np.ndarray, source_voxels_per_step: np.ndarray) -> np.ndarray:
    for axis, step in enumerate(source_voxels_per_step):
        step = min(step, 4 * array.shape[axis])  # no blur is wider than the image, or it would take for ever
        if step > 1.0 + _SAME_SPACING and array.shape[axis] > 1:
            sigma = _FWHM_TO_SIGMA * np.sqrt(step**2 - 1.0)
            array = ndimage.gaussian_filter1d(array, sigma, axis=axis, mode="nearest", truncate=3.0)
    return array


def _is_diagonal(matrix: np.ndarray, shape: tuple[int, int, int]) -> bool:
    """Whether leaving out what is off the diagonal moves no voxel by more than a thousandth of a voxel."""
    return bool(np.abs((matrix - np.diag(np.diag(matrix))) @ np.asarray(shape)).max() < 1e-3)


def _fill_outside(
    out: np.ndarray, matrix: np.ndarray, offset: np.ndarray, source: tuple[int, ...], fill: float
) -> None:
    """Set `fill` where `out` lies beyond the outer faces of the source voxels; in place."""
    i, j, k = (np.arange(n, dtype=np.float32) for n in out.shape)
    corners = np.stack(np.meshgrid(*((0, n - 1) for n in out.shape), indexing="ij"), -1).reshape(-1, 3)
    for row, start, size in zip(matrix, offset, source, strict=True):
        reach = corners @ row + start
        if reach.min() >= -_EDGE and reach.max() <= size - 1 + _EDGE:
            continue
        position = (row[0] * i + start)[:, None, None] + (row[1] * j)[:, None] + row[2] * k
        out[(position < -_EDGE) | (position > size - 1 + _EDGE)] = fill


def overlap_fraction(a: Grid, b: Grid) -> float:
    """Share (0 to 1) of b's field of view that a covers, from a lattice of 12 x 12 x 12 points."""
    axes = ((np.arange(_SAMPLES) + 0.5) / _SAMPLES * n - 0.5 for n in b.shape)
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    b_to_a = np.linalg.inv(a.affine) @ b.affine
    in_a = points @ b_to_a[:3, :3].T + b_to_a[:3, 3]
    inside = (in_a >= -_EDGE) & (in_a <= np.asarray(a.shape) - 1 + _EDGE)
    return float(inside.all(axis=1).mean())


def check_overlap(a: Grid, b: Grid, name_a: str, name_b: str, *, at_least: float = 0.05) -> None:
    """Both must see the same part of the patient: one covers `at_least` that share of the other.

    Raises:
        GeometryError: naming both.
    """
    if max(overlap_fraction(a, b), overlap_fraction(b, a)) < at_least:
        raise GeometryError(
            f"{name_a} and {name_b} do not overlap in scanner space: inputs of one study must show the same "
            "part of the patient; check that both are of one patient and register them first"
        )


def working_grid(grid: Grid, spacing_mm: float | None, slice_axis: int | None = None) -> WorkingGrid:
    """The RAS grid that a model works on: slices kept as they are, in-plane spacing set.

    Slices run across the coarsest axis; across z where z is within 5 % of the coarsest.

    Args:
        spacing_mm: in-plane spacing wanted; None keeps the grid's own. Field of view and its centre stay
            (rounded up to whole voxels).
        slice_axis: of the RAS axes, where it is known: a grid that was resampled before no longer tells.

    Raises:
        GeometryError: a spacing of 0 or less, or one at which the grid would be too large (`geometry/limits.py`).
    """
    canonical = canonical_grid(grid)
    spacing = canonical.spacing_mm
    if slice_axis is None:
        slice_axis = AXIAL if spacing[AXIAL] * 1.05 >= spacing.max() else int(np.argmax(spacing))
    if spacing_mm is None:
        return WorkingGrid(canonical, slice_axis)
    if not spacing_mm > 0:
        raise GeometryError(f"working spacing must be above 0 mm, not {spacing_mm}")
    step = np.full(3, float(spacing_mm)) / spacing
    step[slice_axis] = 1.0
    step[np.abs(step - 1.0) < _SAME_SPACING] = 1.0
    old = np.asarray(canonical.shape)
    with np.errstate(divide="ignore", over="ignore"):
        wanted = np.maximum(1, np.ceil(old / step - 1e-3))
    check_growth(old.tolist(), wanted.tolist(), spacing_mm)
    new = wanted.astype(int)
    index_map = np.diag([*step, 1.0])
    index_map[:3, 3] = (old - 1) / 2 - step * (new - 1) / 2
    return WorkingGrid(Grid(tuple(new), canonical.affine @ index_map), slice_axis)
