"""What must hold for any grid."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from medk2n.geometry.grid import Grid
from medk2n.geometry.orient import from_canonical, to_canonical
from medk2n.geometry.resample import overlap_fraction, resample, working_grid

FEW = settings(max_examples=25, derandomize=True, deadline=None, database=None)


@st.composite
def grids(draw):
    """Any shape, spacing, rotation and origin."""
    number = st.floats(-1, 1, allow_nan=False)
    q = np.array([draw(number) for _ in range(4)])
    w, x, y, z = q / np.linalg.norm(q) if np.linalg.norm(q) > 1e-2 else (1.0, 0.0, 0.0, 0.0)
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    affine = np.eye(4)
    affine[:3, :3] = rotation * [draw(st.floats(0.4, 6)) for _ in range(3)]
    affine[:3, 3] = [draw(st.floats(-200, 200)) for _ in range(3)]
    return Grid(tuple(draw(st.integers(1, 9)) for _ in range(3)), affine)


@FEW
@given(grids())
def test_orientation_round_trip_is_exact(grid):
    array = np.arange(np.prod(grid.shape)).reshape(grid.shape)
    canonical, canonical_grid = to_canonical(array, grid)
    np.testing.assert_array_equal(from_canonical(canonical, grid), array)
    np.testing.assert_allclose(to_canonical(canonical, canonical_grid)[0], canonical)
    np.testing.assert_allclose(sorted(canonical_grid.spacing_mm), sorted(grid.spacing_mm))


@FEW
@given(grids(), st.floats(0.5, 4))
def test_a_constant_stays_constant_there_and_back(grid, spacing):
    working = working_grid(grid, spacing).grid
    assert overlap_fraction(working, grid) == 1
    there = resample(np.full(grid.shape, 7.0), grid, working, fill=7.0)
    back = resample(there, working, grid, fill=np.nan)
    np.testing.assert_allclose(back, 7.0, rtol=1e-5)


@FEW
@given(grids(), grids())
def test_resampling_never_leaves_the_range_of_values(source, onto):
    array = np.random.default_rng(0).uniform(2, 5, size=source.shape)
    out = resample(array, source, onto, fill=3.0)
    assert out.shape == onto.shape
    assert out.dtype == np.float32
    assert out.min() >= 2 - 1e-4
    assert out.max() <= 5 + 1e-4
