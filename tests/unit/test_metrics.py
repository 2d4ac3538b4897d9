"""Metrics: oracles, identities, and what must not count."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from medk2n.errors import UsageError
from medk2n.metrics.hu_error import hu_error
from medk2n.metrics.mae import mae
from medk2n.metrics.psnr import psnr
from medk2n.metrics.sharpness import sharpness
from medk2n.metrics.slice_consistency import slice_consistency
from medk2n.metrics.ssim import ssim
from medk2n.registry import names, resolve

SHAPE = (3, 17, 23)
ALL = {name: resolve("metrics", name) for name in names("metrics")}


def pair(seed=0, noise=0.1, shape=SHAPE, dtype=np.float32):
    rng = np.random.default_rng(seed)
    reference = rng.random(shape)
    predicted = np.clip(reference + noise * rng.standard_normal(shape), 0, 1)
    return predicted.astype(dtype), reference.astype(dtype)


def block(shape=SHAPE):
    mask = np.zeros(shape, bool)
    mask[1:, 4:9, 6:15] = True
    return mask


def skimage_map(predicted, reference, data_range):
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": data_range}
    return [structural_similarity(r, p, full=True, **options) for p, r in zip(predicted, reference, strict=True)]


def test_the_registry_lists_the_metrics_and_not_their_helpers():
    assert set(ALL) == {"psnr", "ssim", "mae", "hu_error", "sharpness", "slice_consistency"}
    assert all(metric.name == name for name, metric in ALL.items())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("data_range", [1.0, 0.37])
def test_whole_image_agrees_with_scikit_image(dtype, data_range):
    predicted, reference = pair(dtype=dtype)
    expected = np.mean([score for score, _ in skimage_map(predicted, reference, data_range)])
    assert ssim(predicted, reference, data_range=data_range) == pytest.approx(expected, abs=1e-6)
    expected = peak_signal_noise_ratio(reference, predicted, data_range=data_range)
    assert psnr(predicted, reference, data_range=data_range) == pytest.approx(expected, abs=1e-6)


def test_ssim_agrees_with_scikit_image_where_single_precision_cancels():
    predicted, reference = pair(noise=0.01)
    predicted, reference = 0.9 + 0.02 * predicted, 0.9 + 0.02 * reference
    expected = np.mean([score for score, _ in skimage_map(predicted.astype(float), reference.astype(float), 1.0)])
    assert ssim(predicted, reference, data_range=1.0) == pytest.approx(expected, abs=1e-6)


def test_masked_values_are_means_of_scikit_images_map_and_of_plain_formulas():
    predicted, reference = pair()
    mask = block()
    maps = [m for _, m in skimage_map(predicted, reference, 1.0)]
    expected = np.mean([maps[i][mask[i]].mean() for i in (1, 2)])
    assert ssim(predicted, reference, mask, data_range=1.0) == pytest.approx(expected, abs=1e-6)
    error = (predicted - reference)[mask].astype(float)
    assert psnr(predicted, reference, mask, data_range=1.0) == pytest.approx(
        -10 * np.log10(np.mean(error**2)), abs=1e-6
    )
    assert mae(predicted, reference, mask, data_range=1.0) == pytest.approx(np.mean(np.abs(error)), abs=1e-7)


def test_slices_weigh_alike_in_ssim():
    predicted, reference = pair(noise=0)
    predicted[2] = 1 - predicted[2]
    mask = block()
    mask[2, 5:] = False  # 9 voxels of a bad slice against 45 of a perfect one
    bad = ssim(predicted[2:], reference[2:], mask[2:], data_range=1.0)
    assert ssim(predicted, reference, mask, data_range=1.0) == pytest.approx((1 + bad) / 2, abs=1e-6)


def test_identical_images_are_perfect():
    _, reference = pair()
    assert psnr(reference, reference, block(), data_range=1.0) == math.inf
    assert mae(reference, reference, block(), data_range=1.0) == 0
    assert ssim(reference, reference, block(), data_range=1.0) == pytest.approx(1, abs=1e-6)
    assert hu_error(reference, reference, block(), data_range=1.0) == 0
    assert slice_consistency(reference, reference, block(), data_range=1.0) == 0
    assert sharpness(reference, reference, block(), data_range=1.0) == 1


@pytest.mark.parametrize("name", ALL)
def test_an_empty_mask_has_no_value(name):
    assert math.isnan(ALL[name].function(*pair(), np.zeros(SHAPE, bool), data_range=1.0))


@pytest.mark.parametrize("name", ["psnr", "mae", "hu_error", "slice_consistency"])
def test_voxels_outside_the_mask_do_not_count_even_if_not_finite(name):
    predicted, reference = pair()
    value = ALL[name].function(predicted, reference, block(), data_range=1.0)
    predicted[~block()] = np.nan
    assert ALL[name].function(predicted, reference, block(), data_range=1.0) == value


def test_slices_without_mask_voxels_do_not_count_in_ssim():
    predicted, reference = pair()
    value = ssim(predicted, reference, block(), data_range=1.0)
    predicted[0] = 0
    assert ssim(predicted, reference, block(), data_range=1.0) == value


def test_slices_smaller_than_the_window_have_no_whole_image_ssim():
    assert math.isnan(ssim(*pair(shape=(2, 10, 30)), data_range=1.0))


@settings(deadline=None, max_examples=25, derandomize=True)
@given(seed=st.integers(0, 10**6), low=st.floats(0.02, 0.2), factor=st.floats(1.5, 4))
def test_more_noise_is_never_better(seed, low, factor):
    noise = np.random.default_rng(seed).standard_normal(SHAPE)
    _, reference = pair(seed)
    for metric in (metric for name, metric in ALL.items() if name != "sharpness"):  # that has its own, below
        little = metric.function(reference + low * noise, reference, block(), data_range=1.0)
        much = metric.function(reference + factor * low * noise, reference, block(), data_range=1.0)
        assert metric.badness(much) > metric.badness(little)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 1000))
def test_values_do_not_depend_on_the_unit_and_are_symmetric(seed, scale):
    predicted, reference = pair(seed, dtype=np.float64)
    for metric in (ALL[name] for name in ("psnr", "ssim", "mae", "slice_consistency")):
        value = metric.function(predicted, reference, block(), data_range=1.0)
        assert metric.function(scale * predicted, scale * reference, block(), data_range=scale) == pytest.approx(value)
        assert metric.function(reference, predicted, block(), data_range=1.0) == pytest.approx(value)


def test_unsigned_integers_do_not_wrap_around():
    dark, bright = np.zeros(SHAPE, np.uint8), np.full(SHAPE, 51, np.uint8)
    assert mae(dark, bright, data_range=255) == pytest.approx(0.2)
    assert psnr(dark, bright, data_range=255) == pytest.approx(20 * math.log10(5))


@pytest.mark.parametrize(
    ("shape", "mask", "data_range", "match"),
    [
        ((3, 17, 22), None, 1.0, "one shape"),
        (SHAPE, np.ones((1, 17, 23), bool), 1.0, "bool mask of shape"),
        (SHAPE, np.ones(SHAPE), 1.0, "bool mask"),
        (SHAPE, None, 0.0, "positive data range"),
        (SHAPE, None, math.nan, "positive data range"),
    ],
)
def test_what_cannot_be_compared_is_refused(shape, mask, data_range, match):
    for metric in ALL.values():
        with pytest.raises(UsageError, match=match):
            metric.function(np.zeros(shape), np.zeros(SHAPE), mask, data_range=data_range)


# Sharpness, slice to slice, Hounsfield units


def head(shape=(4, 40, 44)):
    """A textured head in empty air, and where it is."""
    inside = np.zeros(shape, bool)
    inside[:, 8:32, 8:36] = True
    texture = gaussian_filter(np.random.default_rng(4).standard_normal(shape), (0, 1, 1))
    return np.where(inside, 0.5 + 0.2 * texture, 0).astype(np.float32), inside


def test_sharpness_falls_with_blur_and_rises_with_noise():
    image, inside = head()
    blurred = [np.where(inside, gaussian_filter(image, (0, s, s)), 0) for s in (0.4, 0.8, 1.6)]
    noisy = [np.where(inside, image + s * np.random.default_rng(5).standard_normal(image.shape), 0) for s in (0.1, 0.2)]
    values = [sharpness(x, image, inside, data_range=1.0) for x in (*blurred[::-1], image, *noisy)]
    assert values == sorted(values)
    assert values[0] < 0.1
    assert values[3] == 1


def test_sharpness_is_a_share_of_energy_and_the_step_to_air_does_not_hide_it():
    image, inside = head()
    faded = np.where(inside, 0.5 + 0.3 * (image - 0.5), 0)  # the step stays, 30 % of the texture is left
    assert sharpness(faded, image, inside, data_range=1.0) == pytest.approx(0.09, abs=1e-3)
    assert sharpness(faded, image, data_range=1.0) == pytest.approx(0.09, abs=1e-3)


def test_an_image_without_detail_has_no_sharpness():
    flat = np.full(SHAPE, 0.5, np.float32)
    assert math.isnan(sharpness(pair()[0], flat, block(), data_range=1.0))


def test_slice_consistency_sees_flicker_and_not_an_offset():
    _, reference = pair()
    assert slice_consistency(reference + 0.2, reference, data_range=1.0) == pytest.approx(0, abs=1e-6)
    flicker = reference + np.array([0.0, 0.1, -0.1], np.float32)[:, None, None]
    assert slice_consistency(flicker, reference, data_range=1.0) == pytest.approx((0.1 + 0.2) / 2, abs=1e-6)
    assert slice_consistency(flicker, reference, data_range=2.0) == pytest.approx(0.075, abs=1e-6)


def test_slice_consistency_counts_voxels_that_both_slices_have():
    _, reference = pair()
    mask = block()
    mask[2, :7] = False
    jump = reference.copy()
    jump[2, 7:9, 6:15] += 0.3
    assert slice_consistency(jump, reference, mask, data_range=1.0) == pytest.approx(0.3, abs=1e-6)
    assert math.isnan(slice_consistency(jump[:1], reference[:1], data_range=1.0))


def test_hu_error_is_in_hu_whatever_the_range():
    air, bone = np.full(SHAPE, -1000.0), np.full(SHAPE, 700.0)
    for data_range in (1.0, 4024.0):
        assert hu_error(bone, air, block(), data_range=data_range) == 1700


def test_badness_grows_away_from_what_is_right():
    assert ALL["psnr"].badness(20) > ALL["psnr"].badness(30)
    assert ALL["mae"].badness(0.2) > ALL["mae"].badness(0.1)
    assert ALL["sharpness"].badness(0.5) > ALL["sharpness"].badness(1.2) > ALL["sharpness"].badness(1.0)
