"""Foreground masks and intensity scaling."""

import json

import numpy as np
import pytest

from medk2n.data.foreground import background_value, foreground
from medk2n.data.intensity import Scaling, fit_scaling, unit_doubt
from medk2n.errors import UnknownNameError, VolumeReadError

SHAPE = (40, 48, 20)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def ball(shape=SHAPE, radius=0.7):
    """An ellipsoid touching the last axis's faces, as a head does the lowest slice."""
    x, y, z = (np.linspace(-1, 1, n) for n in shape)
    return (x[:, None, None] ** 2 + y[:, None] ** 2 + 0.3 * z**2) < radius**2


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def brain(rng, background):
    inside = ball() & ~ball(radius=0.2)
    return np.where(inside, rng.normal(300, 30, SHAPE), background).astype(np.float32), inside


@pytest.mark.parametrize("background", [0.0, -1000.0, 37.0])
def test_a_stripped_image_is_what_differs_from_its_constant_and_its_holes(rng, background):
    array, inside = brain(rng, background)
    array[2, 2, 2] = 500  # a speck
    mask = foreground(array)
    assert background_value(array) == background
    assert background_value(array) is not None
    assert mask.dtype == bool
    assert not mask[2, 2, 2]
    assert (mask[inside]).all()
    assert not mask[~ball()].any()


def test_an_enclosed_hole_is_filled():
    array = np.zeros((12, 14, 16), np.float32)
    array[2:10, 2:12, 2:14] = np.arange(8)[:, None, None] + 5
    array[5:7, 5:7, 5:7] = 0
    assert foreground(array)[5:7, 5:7, 5:7].all()
    assert foreground(array).sum() == 8 * 10 * 12


def test_negative_values_inside_belong_to_the_inside(rng):
    array, inside = brain(rng, 0.0)
    array[inside] -= 290
    assert foreground(array)[inside].mean() > 0.99


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_head_in_noisy_air_is_told_from_the_air(rng, dtype):
    signal = np.where(ball(), 120.0, 0.0)
    array = np.abs(signal + rng.normal(0, 4, SHAPE)).astype(dtype)
    assert background_value(array) is None
    assert dice(foreground(array), ball()) > 0.95


def test_dark_tissue_beside_bright_belongs_to_the_head(rng):
    signal = np.where(ball(radius=0.4), 60.0, np.where(ball(), 300.0, 0.0))
    array = np.abs(signal + rng.normal(0, 5, SHAPE))
    assert dice(foreground(array), ball()) > 0.95


def test_ct_in_air_and_an_air_level_in_mid_range(rng):
    ct = np.where(ball(), 40.0, -1000.0) + rng.normal(0, 15, SHAPE)
    assert dice(foreground(ct), ball()) > 0.95
    left = np.arange(SHAPE[0])[:, None, None] < SHAPE[0] // 2
    signed = np.where(ball(), np.where(left, 20.0, 180.0), 80.0) + rng.normal(0, 3, SHAPE)
    assert dice(foreground(signed), ball()) > 0.9


def test_a_sprinkle_around_the_content_is_no_constant_background(rng):
    array, inside = brain(rng, 0.0)
    assert background_value(array) is not None
    sprinkled = ~inside & (rng.uniform(size=SHAPE) < 0.15)
    assert background_value(np.where(sprinkled, 60, array)) is None


def test_a_blank_frame_around_noisy_air_is_not_a_stripped_image(rng):
    array = np.abs(np.where(ball(radius=0.5), 120.0, 0.0) + rng.normal(3, 1, SHAPE)) + 1
    array[:3] = array[-3:] = 0
    array[:, :3] = array[:, -3:] = 0
    assert background_value(array) is None
    assert dice(foreground(array), ball(radius=0.5)) > 0.9


def test_one_slice_and_nothing_at_all():
    disc = ball((40, 48, 1))
    assert dice(foreground(disc * np.float32(9)), disc) == 1
    assert not foreground(np.zeros((6, 7, 8), np.float32)).any()


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.uint8])
def test_scaling_can_be_undone(rng, dtype):
    array = rng.integers(0, 255, SHAPE).astype(dtype)
    scaling = fit_scaling(array, np.ones(SHAPE, bool), "t1n")
    scaled = scaling.apply(array)
    assert scaled.dtype == np.float32
    assert scaled.min() < 0.01
    assert scaled.max() > 0.99
    np.testing.assert_allclose(scaling.invert(scaled), array, atol=1e-3)


def test_robust_percentiles_are_those_inside_the_mask():
    array = np.zeros((10, 11, 100), np.float32)
    array[5] = np.linspace(100, 200, 100)
    array[5, 0, 0] = 1e6
    mask = np.zeros(array.shape, bool)
    mask[5] = True
    scaling = fit_scaling(array, mask, "flair")
    assert (scaling.low, scaling.high) == pytest.approx((100.5, 199.5), abs=1.1)
    assert scaling.kind == "robust"
    assert Scaling(**json.loads(json.dumps(scaling.to_json()))) == scaling


def test_ct_in_hounsfield_units_has_the_fixed_window_and_a_picture_of_ct_has_not(rng):
    hounsfield = np.where(ball(), 40.0, -1000.0) + rng.normal(0, 10, SHAPE)
    assert fit_scaling(hounsfield, ball(), "ct") == Scaling(-1000.0, 2000.0, "fixed")
    picture = rng.integers(0, 255, SHAPE).astype(np.uint8)
    assert fit_scaling(picture, ball(), "ct").kind == "robust"


@pytest.mark.parametrize(
    "altered",
    [
        lambda hu: np.clip(hu + 1024, 0, None),
        lambda hu: hu + 1000,
        lambda hu: hu - 1024,
        lambda hu: hu + 32768,
        lambda hu: (np.clip(hu, -1000, 2000) + 1000) / 3000,
        lambda hu: (np.clip(hu, -1000, 2000) + 1000) / 1500 - 1,
        lambda hu: (np.clip(hu, -1000, 2000) + 1000) / 3,
        lambda hu: (hu + 1000) / 6,
        lambda hu: (hu - hu.mean()) / hu.std(),
        lambda hu: hu / 1000,
        lambda hu: np.where(ball(), hu + 1024, 0),
    ],
)
def test_ct_that_cannot_be_in_hounsfield_units_is_scaled_by_its_own_range(rng, altered):
    hounsfield = np.where(ball(), 40.0, -1000.0) + rng.normal(0, 10, SHAPE)
    hounsfield[ball() & ~ball(radius=0.6)] += 900
    scaling = fit_scaling(altered(hounsfield), ball(), "ct")
    assert scaling.kind == "robust"
    assert "cannot be HU" in (unit_doubt(scaling, "ct") or "")


@pytest.mark.parametrize(
    "altered",
    [
        lambda hu: hu,
        lambda hu: np.where(ball(), hu, 0),
        lambda hu: np.where(ball(), hu, -1024),
        lambda hu: np.where(ball(), hu, -3024),
        lambda hu: np.clip(hu, -1024, 3071).round(),
        lambda hu: np.clip(hu, -160, 240),
        lambda hu: np.where(np.indices(SHAPE)[2] % 2 == 0, hu, hu - 700),  # half of it lungs
    ],
)
def test_ct_in_hounsfield_units_keeps_them_however_it_is_cut(rng, altered):
    hounsfield = np.where(ball(), 40.0, -1000.0) + rng.normal(0, 10, SHAPE)
    scaling = fit_scaling(altered(hounsfield), ball(), "ct")
    assert scaling.kind == "fixed"
    assert unit_doubt(scaling, "ct") is None
    assert unit_doubt(fit_scaling(hounsfield, ball(), "t1n"), "t1n") is None


def test_no_foreground_no_contrast_and_no_such_modality():
    array, mask = np.full((5, 6, 7), 3.0), np.ones((5, 6, 7), bool)
    with pytest.raises(VolumeReadError, match="no foreground found"):
        fit_scaling(array, ~mask, "t1n")
    with pytest.raises(VolumeReadError, match="no contrast inside the foreground"):
        fit_scaling(array, mask, "t1n")
    with pytest.raises(UnknownNameError, match="unknown modality"):
        fit_scaling(array, mask, "t7")


def test_a_scalp_far_brighter_than_the_brain_does_not_hide_the_brain(rng):
    head = ball(radius=0.95)
    signal = np.where(ball(radius=0.85), 40.0, np.where(head, 300.0, 0.0))
    signal[:, 22:26] = np.where(head, 40.0, 0.0)[:, 22:26]  # the bright ring is open
    array = np.abs(signal + rng.normal(0, 3, SHAPE))
    assert dice(foreground(array), head) > 0.95


def test_percentiles_are_half_a_percent_from_either_end():
    ramp = np.linspace(0, 1000, 10001, dtype=np.float32).reshape(1, 73, 137)
    found = fit_scaling(ramp, np.ones(ramp.shape, bool), "t1n")
    assert (found.low, found.high) == pytest.approx((5, 995), abs=0.2)


def test_a_cavity_of_a_head_in_noisy_air_belongs_to_the_head(rng):
    inside, cavity = ball(), ball(radius=0.2)
    image = np.abs(np.where(inside & ~cavity, 120.0, 0.0) + rng.normal(0, 4, SHAPE))
    assert background_value(image) is None
    assert foreground(image)[cavity & inside].all()
