"""The SSIM map under the windows of others, each held against the library it is named for."""

import math

import numpy as np
import pytest
import torch
from monai.metrics import SSIMMetric
from skimage.metrics import structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

from medk2n.metrics._similarity import (
    SLICE_WINDOW,
    SLICE_WINDOW_SKIMAGE,
    SLICE_WINDOW_TORCHMETRICS,
    VOLUME_WINDOW_MONAI_7,
    VOLUME_WINDOW_SKIMAGE,
    VOLUME_WINDOW_TORCHMETRICS,
    Window,
    mean_similarity,
    similarity,
)

SHAPE = (13, 17, 23)
WINDOWS = {
    "slice": SLICE_WINDOW,
    "slice, scikit-image": SLICE_WINDOW_SKIMAGE,
    "slice, torchmetrics": SLICE_WINDOW_TORCHMETRICS,
    "volume, MONAI": VOLUME_WINDOW_MONAI_7,
    "volume, scikit-image": VOLUME_WINDOW_SKIMAGE,
    "volume, torchmetrics": VOLUME_WINDOW_TORCHMETRICS,
}


def pair(seed=0, shape=SHAPE):
    rng = np.random.default_rng(seed)
    reference = rng.random(shape).astype(np.float32)
    return np.clip(reference + 0.1 * rng.standard_normal(shape), 0, 1).astype(np.float32), reference


def tensors(*images):
    """(1, 1, s, h, w) each."""
    return [torch.from_numpy(image)[None, None] for image in images]


@pytest.mark.parametrize("data_range", [1.0, 3.7])
def test_scikit_images_default_on_a_volume(data_range):
    predicted, reference = pair()
    expected = structural_similarity(reference, predicted, data_range=data_range)
    assert mean_similarity(predicted, reference, data_range, VOLUME_WINDOW_SKIMAGE) == pytest.approx(expected, abs=1e-6)


def test_scikit_images_default_on_slices():
    predicted, reference = pair()
    expected = np.mean([structural_similarity(r, p, data_range=1) for r, p in zip(reference, predicted, strict=True)])
    assert mean_similarity(predicted, reference, 1, SLICE_WINDOW_SKIMAGE) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("data_range", [1.0, 3.7])
def test_torchmetrics_on_slices_and_on_a_volume(data_range):
    predicted, reference = tensors(*pair())
    slices = (x[0].transpose(0, 1) for x in (predicted, reference))
    expected = structural_similarity_index_measure(*slices, data_range=data_range).item()
    assert mean_similarity(*pair(), data_range, SLICE_WINDOW_TORCHMETRICS) == pytest.approx(expected, abs=1e-6)
    expected = structural_similarity_index_measure(predicted, reference, data_range=data_range).item()
    assert mean_similarity(*pair(), data_range, VOLUME_WINDOW_TORCHMETRICS) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("dimensions", "size"), [(3, 7), (3, 11), (2, 11)])
def test_monai_with_its_windows(dimensions, size):
    predicted, reference = pair()
    window = Window(axes=(0, 1, 2)[-dimensions:], size=size)
    batch = tensors(predicted, reference) if dimensions == 3 else [torch.from_numpy(x)[:, None] for x in pair()]
    expected = SSIMMetric(spatial_dims=dimensions, win_size=size)(*batch).mean().item()
    assert mean_similarity(predicted, reference, 1.0, window) == pytest.approx(expected, abs=1e-6)


def test_the_window_of_the_masked_volume_is_monais():
    assert Window(axes=(0, 1, 2), size=7) == VOLUME_WINDOW_MONAI_7


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize(
    "place", [np.s_[4:8, 6:11, 9:14], np.s_[:3, 6:, :2], np.s_[:, :, :]], ids=["in", "edge", "all"]
)
def test_the_box_around_the_content_changes_nothing(window, place):
    predicted, reference = (np.zeros(SHAPE, np.float32) for _ in range(2))
    predicted[place], reference[place] = (image[place] for image in pair())
    values = similarity(predicted, reference, 1.0, window)[window.counted(SHAPE)]
    expected = values.mean(dtype=np.float64)
    assert mean_similarity(predicted, reference, 1.0, window) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_empty_images_are_alike_and_too_small_ones_have_no_value(window):
    empty = np.zeros(SHAPE, np.float32)
    assert mean_similarity(empty, empty, 1.0, window) == 1
    small = pair(shape=(13, 6, 23))
    assert math.isnan(mean_similarity(*small, 1.0, window)) == (not window.whole)
