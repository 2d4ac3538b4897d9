"""Orientation, resampling, overlap and the working grid."""

from itertools import permutations, product

import numpy as np
import pytest

from medk2n.errors import GeometryError
from medk2n.geometry.grid import Grid
from medk2n.geometry.orient import from_canonical, to_canonical
from medk2n.geometry.resample import check_overlap, overlap_fraction, resample, working_grid

SHAPE = (5, 6, 7)
ORIENTATIONS = [(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]


def oriented(order, signs, spacing=(1.0, 2.0, 3.0), shape=SHAPE):
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, axis] = sign * spacing[axis]
    affine[:3, 3] = (-10.5, 20.25, 3)
    return Grid(shape, affine)


def rotated(degrees, spacing=(1.0, 1.0, 1.0), shape=(20, 22, 24)):
    angle = np.deg2rad(degrees)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine[:3, :3] *= spacing
    return Grid(shape, affine)


def world_ramp(grid):
    """x + 10 y + 100 z in scanner millimetres: linear, so linear interpolation is exact."""
    index = np.indices(grid.shape).reshape(3, -1)
    world = grid.affine[:3, :3] @ index + grid.affine[:3, 3:]
    return ([1, 10, 100] @ world).reshape(grid.shape)


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_all_48_orientations_go_to_ras_and_exactly_back(order, signs):
    grid = oriented(order, signs)
    array = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    canonical, canonical_grid = to_canonical(array, grid)
    direction = canonical_grid.affine[:3, :3]
    np.testing.assert_array_equal(direction, np.diag(np.diag(direction)))
    assert (np.diag(direction) > 0).all()
    assert canonical.shape == canonical_grid.shape
    np.testing.assert_allclose(to_canonical(world_ramp(grid), grid)[0], world_ramp(canonical_grid))
    np.testing.assert_array_equal(from_canonical(canonical, grid), array)


def test_same_grid_is_returned_unchanged():
    grid = rotated(17)
    array = np.random.default_rng(0).normal(size=grid.shape).astype(np.float32)
    assert resample(array, grid, grid) is array


@pytest.mark.parametrize("degrees", [0, 90, 30])
def test_a_linear_ramp_survives_upsampling(degrees):
    source, onto = rotated(degrees), Grid((12, 9, 10), np.diag([0.5, 0.7, 0.9, 1]))
    onto = Grid(onto.shape, rotated(degrees).affine @ onto.affine @ np.array(
        [[1, 0, 0, 6], [0, 1, 0, 5], [0, 0, 1, 4], [0, 0, 0, 1]]))  # fmt: skip
    np.testing.assert_allclose(resample(world_ramp(source), source, onto), world_ramp(onto), rtol=1e-4)


def test_axes_in_another_order_are_resampled_to_their_place():
    source, onto = oriented((2, 0, 1), (1, -1, 1)), oriented((0, 1, 2), (1, 1, 1))
    onto = Grid(to_canonical(world_ramp(source), source)[1].shape, to_canonical(world_ramp(source), source)[1].affine)
    np.testing.assert_allclose(resample(world_ramp(source), source, onto), world_ramp(onto), rtol=1e-5)


def test_outside_gets_the_fill_and_the_outer_half_voxel_does_not():
    source = Grid((4, 5, 6), np.eye(4))
    wider = np.eye(4)
    wider[:3, 3] = -2
    out = resample(np.ones(source.shape), source, Grid((8, 9, 10), wider), fill=-1000)
    np.testing.assert_array_equal(out[2:6, 2:7, 2:8], 1)
    assert (out == -1000).sum() == out.size - 4 * 5 * 6
    finer = np.diag([0.5, 0.5, 0.5, 1.0])
    finer[:3, 3] = -0.25
    assert (resample(np.ones(source.shape), source, Grid((8, 10, 12), finer), fill=-1000) == 1).all()


def test_downsampling_blurs_stripes_away_and_labels_not():
    source = Grid((40, 6, 6), np.eye(4))
    stripes = np.broadcast_to((np.arange(40) % 2)[:, None, None], source.shape).astype(np.float32)
    onto = Grid((10, 6, 6), np.diag([4.0, 1, 1, 1]))
    np.testing.assert_allclose(resample(stripes, source, onto)[1:-1], 0.5, atol=0.02)
    assert set(np.unique(resample(stripes, source, onto, order=0))) <= {0.0, 1.0}


def test_one_slice_can_be_resampled_in_plane():
    source = Grid((8, 10, 1), np.eye(4))
    onto = working_grid(source, 0.5).grid
    assert onto.shape == (16, 20, 1)
    np.testing.assert_allclose(resample(np.full(source.shape, 3.0), source, onto), 3.0)


def test_overlap_is_the_share_of_the_second():
    a = Grid((24, 24, 24), np.eye(4))
    half = np.eye(4)
    half[0, 3] = 12
    assert overlap_fraction(a, a) == 1
    assert overlap_fraction(a, Grid(a.shape, half)) == pytest.approx(0.5, abs=0.05)
    assert overlap_fraction(a, Grid((6, 6, 6), half)) == 1


def test_grids_apart_are_refused_by_name():
    away = np.eye(4)
    away[2, 3] = 500
    a, b = Grid((9, 9, 9), np.eye(4)), Grid((9, 9, 9), away)
    with pytest.raises(GeometryError, match=r"a\.nii and b\.nii do not overlap"):
        check_overlap(a, b, "a.nii", "b.nii")
    check_overlap(a, Grid((90, 90, 1), np.eye(4)), "a.nii", "slice.nii")


@pytest.mark.parametrize(
    ("spacing", "axis"),
    [((1, 1, 1), 2), ((1, 1, 0.96), 2), ((0.5, 0.5, 5), 2), ((6, 1, 1), 0), ((1, 4, 1.2), 1), ((2, 1, 2), 2)],
)
def test_slices_run_across_the_coarsest_axis(spacing, axis):
    working = working_grid(Grid((20, 20, 20), np.diag([*spacing, 1.0])), 1.5)
    assert working.slice_axis == axis
    expected = [1.5] * 3
    expected[axis] = spacing[axis]
    np.testing.assert_allclose(working.grid.spacing_mm, expected)


def test_the_working_grid_is_ras_and_keeps_field_of_view_and_centre():
    grid = oriented((1, 2, 0), (-1, 1, -1), spacing=(0.9, 0.9, 5.0), shape=(50, 40, 12))
    working = working_grid(grid, 1.3)
    assert working.slice_axis == 0
    assert (np.diag(working.grid.affine)[:3] > 0).all()
    assert overlap_fraction(working.grid, grid) == 1
    centre = [g.affine @ [*((np.array(g.shape) - 1) / 2), 1] for g in (grid, working.grid)]
    np.testing.assert_allclose(*centre, atol=1e-9)
    np.testing.assert_allclose(working_grid(grid, None).grid.spacing_mm, [5.0, 0.9, 0.9])


def test_no_spacing_below_zero():
    with pytest.raises(GeometryError, match="above 0 mm"):
        working_grid(rotated(0), 0.0)
