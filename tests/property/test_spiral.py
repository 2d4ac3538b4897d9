"""The order in which a feature map is read."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medk2n.models.medk2n_parts.spiral import ORDERS, mean_jump, order

SIDE = st.integers(1, 40)


@pytest.mark.parametrize("name", ORDERS)
@given(h=SIDE, w=SIDE)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_an_order_names_every_voxel_once_and_its_inverse_leads_back(name: str, h: int, w: int) -> None:
    forth, back = order(name, h, w, torch.device("cpu"))
    assert sorted(forth.tolist()) == list(range(h * w))
    x = torch.arange(h * w) * 3
    assert torch.equal(x[forth][back], x)


@pytest.mark.parametrize(("h", "w"), [(1, 12), (12, 1), (5, 8), (24, 24), (17, 30)])
def test_the_spiral_runs_from_the_centre_to_the_rim(h: int, w: int) -> None:
    y, x = np.divmod(ORDERS["spiral"](h, w), w)
    radius = np.hypot(y - (h - 1) / 2, x - (w - 1) / 2)
    quarters = [part.mean() for part in np.array_split(radius, 4)]
    assert quarters == sorted(quarters)
    assert quarters[0] < 0.6 * quarters[3]


@pytest.mark.parametrize(("h", "w"), [(24, 24), (20, 28), (12, 12), (17, 13)])
def test_neighbours_in_the_sequence_are_neighbours_in_the_image(h: int, w: int) -> None:
    """Nearer than row by row, and far nearer than the seeds of a sunflower in their own order."""
    spiral, raster = (mean_jump(ORDERS[name](h, w), w) for name in ("spiral", "raster"))
    assert spiral < 1.8 < mean_jump(golden_angle(h, w), w) / 3
    assert spiral < raster
    assert raster == pytest.approx((h * (w - 1) + (h - 1) * np.hypot(w - 1, 1)) / (h * w - 1))


def golden_angle(h: int, w: int) -> np.ndarray:
    """Voxels by the nearest seed of a sunflower that covers them, four seeds a voxel."""
    y, x = np.mgrid[:h, :w]
    k = np.arange(4 * h * w)
    radius, angle = np.hypot(h, w) / 2 * np.sqrt(k / len(k)), k * np.pi * (3 - np.sqrt(5))
    away = (x.ravel()[:, None] - (w - 1) / 2 - radius * np.cos(angle)) ** 2
    away = away + (y.ravel()[:, None] - (h - 1) / 2 - radius * np.sin(angle)) ** 2
    return np.argsort(away.argmin(axis=1), kind="stable")
