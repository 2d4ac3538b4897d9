"""Protocols: each against the libraries its source uses, fixed numbers, and what it forgives or does not see."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.metrics import PSNRMetric, SSIMMetric
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import peak_signal_noise_ratio as torch_psnr
from torchmetrics.functional.image import structural_similarity_index_measure as torch_ssim

from medk2n.data.intensity import Scaling
from medk2n.evaluation.panel import PROTOCOLS, affine_matched
from medk2n.evaluation.protocols._protocol import Pair
from medk2n.registry import names, resolve

ALL = {name: resolve(PROTOCOLS, name) for name in names(PROTOCOLS)}
SHAPE = (14, 36, 40)
SCALING = Scaling(150.0, 950.0)
GOLDEN = {
    "brasyn": {
        ("lesion", "ssim"): 0.999743,
        ("healthy", "ssim"): 0.96453,
    },
    "brasyn_documented": {
        ("lesion", "psnr"): 16.7661,
        ("lesion", "ssim"): 0.976213,
        ("healthy", "psnr"): 29.3986,
        ("healthy", "ssim"): 0.982075,
    },
    "foreground": {
        ("foreground", "mae"): 0.0522018,
        ("whole", "mae"): 0.0164814,
        ("brain", "mae"): 0.0566713,
        ("lesion", "mae"): 0.263831,
        ("foreground", "psnr"): 23.4566,
        ("whole", "psnr"): 28.4635,
        ("brain", "psnr"): 22.26,
        ("lesion", "psnr"): 11.4166,
        ("foreground", "ssim"): 0.844595,
        ("whole", "ssim"): 0.882009,
        ("brain", "ssim"): 0.705528,
        ("lesion", "ssim"): 0.550243,
        ("foreground", "sharpness"): 0.0836732,
        ("whole", "sharpness"): 0.0836732,
        ("brain", "sharpness"): 0.0830111,
        ("lesion", "sharpness"): 0.0838198,
        ("foreground", "slice_consistency"): 0.0478339,
        ("whole", "slice_consistency"): 0.0182484,
        ("brain", "slice_consistency"): 0.0513323,
        ("lesion", "slice_consistency"): 0.0437397,
    },
    "masked_volume": {
        ("whole", "psnr"): 29.3835,
        ("whole", "ssim"): 0.929726,
        ("whole", "mae"): 0.0148976,
    },
    "own_maximum": {
        ("whole", "psnr"): 19.0699,
        ("whole", "ssim"): 0.898382,
        ("whole", "mae"): 0.0607897,
    },
    "own_mean": {
        ("brain", "psnr"): 21.2777,
        ("brain", "ssim"): 0.889581,
        ("brain", "mae"): 0.0734102,
    },
    "slice_maximum": {
        ("whole", "psnr"): 20.2569,
    },
    "slices": {
        ("whole", "psnr"): 32.8781,
        ("whole", "ssim"): 0.929693,
        ("whole", "mae"): 0.0177492,
    },
    "synthrad": {
        ("foreground", "hu_error"): 156.605,
        ("foreground", "psnr"): 26.0074,
    },
}


def ellipsoid(radii, centre=(7, 18, 20)):
    grid = np.ogrid[tuple(slice(0, n) for n in SHAPE)]
    return sum(((x - c) / r) ** 2 for x, c, r in zip(grid, centre, radii, strict=True)) <= 1


def make_pair(change=None, target="t2f", scaling=SCALING, lesion=True):
    """A head of waves with a bright lesion, and a prediction: smoother, fainter, without most of the lesion.

    Waves, not noise, so that another numpy makes the same numbers.
    """
    z, y, x = np.mgrid[tuple(slice(0, n) for n in SHAPE)].astype(float)
    inside, hole = ellipsoid((6, 15, 17)), ellipsoid((2.2, 3.5, 4.5), (7, 12, 24))
    waves = 0.45 + 0.2 * np.sin(x / 3 + y / 5) * np.cos(z / 4) + 0.1 * np.sin(1.7 * x - 1.1 * y + z)
    reference = np.where(inside, np.clip(waves + 0.35 * hole, 0, 1), 0).astype(np.float32)
    smooth = 0.45 + 0.19 * np.sin(x / 3 + y / 5) * np.cos(z / 4) + 0.03 * np.sin(1.7 * x - 1.1 * y + z)
    predicted = np.where(inside, np.clip(0.93 * smooth + 0.1 * hole + 0.02, 0, 1), 0).astype(np.float32)
    regions = {"foreground": inside, "whole": None, "brain": ellipsoid((4.9, 12, 14))}
    regions |= {"lesion": hole} if lesion else {}
    return Pair(target, predicted if change is None else change(predicted, reference), reference, scaling, regions)


def pair_for(name, change=None):
    """A pair that the protocol says something about."""
    ct = {"target": "ct", "scaling": Scaling(-1000.0, 2000.0, kind="fixed")}
    return make_pair(change, **(ct if name == "synthrad" else {}))


def values(name, pair):
    return {(v.region, v.metric): v.value for v in ALL[name].measure(pair)}


def stored(pair):
    """As a file would hold both: air is 0, tissue starts at `low`."""
    inside = pair.regions["foreground"]
    images = (pair.predicted, pair.reference)
    return [np.where(inside, x.astype(float) * (SCALING.high - SCALING.low) + SCALING.low, 0) for x in images]


def tensor(image):
    return torch.from_numpy(np.ascontiguousarray(image, np.float32))[None, None]


# Against what their sources call


def test_own_maximum_is_scikit_image_on_volumes_divided_by_their_maxima():
    pair = make_pair()
    predicted, reference = (image / image.max() for image in stored(pair))
    found = values("own_maximum", pair)
    assert found["whole", "psnr"] == pytest.approx(
        peak_signal_noise_ratio(reference, predicted, data_range=1), abs=1e-5
    )
    assert found["whole", "ssim"] == pytest.approx(structural_similarity(reference, predicted, data_range=1), abs=1e-6)
    assert found["whole", "mae"] == pytest.approx(np.abs(predicted - reference).mean(), abs=1e-6)


def test_masked_volume_is_monai_after_a_mask_of_the_reference():
    pair = make_pair()
    predicted, reference = stored(pair)
    low, high = np.quantile(reference, (0.001, 0.999))
    predicted, reference = ((np.clip(x, low, high) - low) / (high - low) for x in (predicted, reference))
    images = [tensor(x * (reference > 0.01)) for x in (predicted, reference)]
    found = values("masked_volume", pair)
    assert found["whole", "psnr"] == pytest.approx(PSNRMetric(max_val=1.0)(*images).item(), abs=1e-5)
    assert found["whole", "ssim"] == pytest.approx(SSIMMetric(spatial_dims=3, win_size=7)(*images).item(), abs=1e-6)


def test_slices_is_torchmetrics_slice_by_slice():
    pair = make_pair()
    used = [i for i in range(SHAPE[0]) if pair.regions["foreground"][i].any()]
    assert len(used) < SHAPE[0]
    pairs = [(tensor(pair.predicted[i]), tensor(pair.reference[i])) for i in used]
    found = values("slices", pair)
    expected = np.mean([torch_psnr(p, r, data_range=1.0).item() for p, r in pairs])
    assert found["whole", "psnr"] == pytest.approx(expected, abs=1e-5)
    expected = np.mean([torch_ssim(p, r, data_range=1.0).item() for p, r in pairs])
    assert found["whole", "ssim"] == pytest.approx(expected, abs=1e-6)


def test_slice_maximum_is_the_mean_of_slices_of_maximum_one():
    pair = make_pair()
    expected = []
    for predicted, reference in zip(pair.predicted.astype(float), pair.reference.astype(float), strict=True):
        if np.count_nonzero(reference) > 1:  # one voxel alone is exact once it is divided by itself
            p, r = predicted / predicted.max(), reference / reference.max()
            expected.append(20 * np.log10(p.max() / np.sqrt(np.mean((p - r) ** 2))))
    assert values("slice_maximum", pair) == {("whole", "psnr"): pytest.approx(np.mean(expected), abs=1e-5)}


def test_own_mean_is_scikit_image_on_brain_boxes_with_a_joint_range():
    pair = make_pair()
    expected = []
    for predicted, reference, mask in zip(*pair.images, pair.regions["brain"], strict=True):
        if not mask.any():
            continue
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        assert len(rows) >= 7 <= len(columns), "the widening of small boxes has its own test"
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        scaled, relative = [], []
        for image in (predicted, reference):
            grey = np.rint((image.astype(float) - image.min()) / np.ptp(image) * 255)
            low, high = np.percentile(grey[grey > 0], (1, 99))
            grey = (np.clip(grey, low, high) - low) / (high - low)
            scaled.append((grey * 1.0)[box] * mask[box])
            relative.append((grey / grey.mean())[box] * mask[box])
        joint = max(x.max() for x in relative) - min(x.min() for x in relative)
        expected.append(
            (
                peak_signal_noise_ratio(relative[1], relative[0], data_range=joint),
                structural_similarity(relative[0], relative[1], data_range=joint),
                np.abs(scaled[0] - scaled[1]).mean(),
            )
        )
    found = values("own_mean", pair)
    for metric, value in zip(("psnr", "ssim", "mae"), np.mean(expected, axis=0), strict=True):
        assert found["brain", metric] == pytest.approx(value, abs=1e-6)


def test_own_mean_widens_small_boxes_to_the_window():
    from medk2n.evaluation.protocols.own_mean import _span

    used = np.zeros(20, bool)
    used[9:11] = True
    assert _span(used) == slice(7, 14)
    used[:] = [i == 0 for i in range(20)]
    assert _span(used) == slice(0, 4), "as in the source, no more than there is room for"


def percentiles(image, of):
    low, high = np.percentile(of, (0.5, 99.5))
    return (np.clip(image, low, high) - low) / (high - low)


def test_brasyn_is_torchmetrics_on_what_a_mask_leaves():
    pair = make_pair()
    predicted, reference = (percentiles(image, image) for image in stored(pair))
    found = values("brasyn", pair)
    for region, mask in (("lesion", pair.regions["lesion"]), ("healthy", ~pair.regions["lesion"])):
        expected = torch_ssim(tensor(predicted * mask), tensor(reference * mask)).item()
        assert found[region, "ssim"] == pytest.approx(expected, abs=1e-6)


def test_brasyn_documented_is_torchmetrics_inside_the_mask():
    pair = make_pair()
    predicted, reference = stored(pair)
    of = reference * ~pair.regions["lesion"]
    predicted, reference = percentiles(predicted, of), percentiles(reference, of)
    found = values("brasyn_documented", pair)
    for region, mask in (("lesion", pair.regions["lesion"]), ("healthy", ~pair.regions["lesion"])):
        images = tensor(predicted * mask), tensor(reference * mask)
        _, full = torch_ssim(*images, return_full_image=True)
        assert found[region, "ssim"] == pytest.approx(full[0, 0].numpy()[mask].mean(), abs=2e-6)
        inside = (torch.from_numpy(image[mask]) for image in (predicted, reference))
        assert found[region, "psnr"] == pytest.approx(torch_psnr(*inside, data_range=1.0).item(), abs=1e-5)


def test_synthrad_is_in_hounsfield_units_inside_the_patient():
    pair = make_pair(target="ct", scaling=Scaling(-1000.0, 2000.0, kind="fixed"))
    inside = pair.regions["foreground"]
    predicted, reference = (image[inside].astype(float) * 3000 - 1000 for image in pair.images)
    found = values("synthrad", pair)
    assert found["foreground", "hu_error"] == pytest.approx(np.abs(predicted - reference).mean(), rel=1e-6)
    expected = peak_signal_noise_ratio(reference, predicted, data_range=4024)
    assert found["foreground", "psnr"] == pytest.approx(expected, abs=1e-5)


def test_synthrad_says_nothing_of_mr_nor_of_ct_that_lost_its_units():
    assert values("synthrad", make_pair()) == {}
    assert values("synthrad", make_pair(target="ct", scaling=Scaling(3.0, 250.0, kind="robust"))) == {}


# Fixed numbers


@pytest.mark.parametrize("name", ALL)
def test_golden_values(name):
    found = values(name, pair_for(name))
    assert found == {place: pytest.approx(value, abs=2e-5, rel=1e-5) for place, value in GOLDEN[name].items()}


# What all have in common


def test_every_protocol_is_named_as_its_file_and_says_what_it_does():
    assert len(ALL) == 9
    for name, protocol in ALL.items():
        assert protocol.name == name
        for words in (protocol.label, protocol.source, protocol.region, protocol.scaling, protocol.data_range):
            assert words.strip()


@pytest.mark.parametrize("name", ALL)
def test_a_perfect_prediction_is_perfect(name):
    perfect = {"psnr": math.inf, "ssim": pytest.approx(1, abs=1e-6), "sharpness": 1}
    found = values(name, pair_for(name, lambda predicted, reference: reference))
    assert found
    for (_, metric), value in found.items():
        assert value == perfect.get(metric, 0)


@pytest.mark.parametrize("name", ALL)
def test_more_damage_is_never_better(name):
    noise = np.random.default_rng(0).standard_normal(SHAPE)

    def noisy(level):
        def change(predicted, reference):
            return np.where(reference > 0, np.clip(reference + level * noise, 0, 1), 0).astype(np.float32)

        return values(name, pair_for(name, change))

    for (place, little), much in zip(noisy(0.05).items(), noisy(0.15).values(), strict=True):
        badness = resolve("metrics", place[1]).badness
        assert badness(much) > badness(little), place


@pytest.mark.parametrize("name", ["brasyn", "brasyn_documented"])
def test_brasyn_says_nothing_without_a_tumour(name):
    assert values(name, make_pair(lesion=False)) == {}


def test_a_slice_without_contrast_does_not_spoil_the_mean():
    here = np.arange(SHAPE[0]) == 7
    flat = make_pair(lambda predicted, reference: np.where(here[:, None, None], 0, predicted))
    without = flat.regions["brain"] & ~here[:, None, None]
    expected = values("own_mean", replace(flat, regions={**flat.regions, "brain": without}))
    assert values("own_mean", flat) == expected
    assert all(np.isfinite(value) for value in (*expected.values(), *values("slice_maximum", flat).values()))


def test_an_exact_slice_is_no_exact_volume():
    def one_exact_slice(predicted, reference):
        return np.where(np.arange(SHAPE[0])[:, None, None] == 7, reference, predicted)

    for name in ("own_mean", "slice_maximum", "slices"):
        assert all(np.isfinite(value) for value in values(name, make_pair(one_exact_slice)).values())


def test_a_prediction_without_contrast_has_no_value_or_a_bad_one():
    flat = make_pair(lambda predicted, reference: np.where(reference > 0, -SCALING.low / 800, 0).astype(np.float32))
    assert all(map(math.isnan, values("brasyn", flat).values())), "as stored it is 0: no percentiles to scale by"
    flat = make_pair(lambda predicted, reference: np.zeros_like(predicted))
    for name in ALL:
        for (_, metric), value in values(name, flat).items():
            assert math.isnan(value) or metric != "psnr" or value < 25


# What they forgive and what they do not see


def gain(factor):
    return lambda predicted, reference: (factor * reference).astype(np.float32)


def test_own_mean_forgives_a_gain_and_the_foreground_does_not():
    assert values("own_mean", make_pair(gain(0.8)))["brain", "psnr"] > 40
    assert values("foreground", make_pair(gain(0.8)))["foreground", "psnr"] < 22


def test_masked_volume_does_not_see_what_is_painted_into_the_air():
    def paint(predicted, reference):
        return np.where(reference > 0, reference, 0.8).astype(np.float32)

    assert values("masked_volume", make_pair(paint))["whole", "psnr"] == math.inf
    assert values("slices", make_pair(paint))["whole", "psnr"] < 10


def test_brasyn_as_run_hardly_moves_where_as_documented_it_does():
    as_run = 1 - values("brasyn", make_pair())["lesion", "ssim"]
    documented = 1 - values("brasyn_documented", make_pair())["lesion", "ssim"]
    assert documented > 50 * as_run, "voxels that were set to 0 in both agree, and they are nearly all"


# The best gain and offset


def test_gain_and_offset_are_found_exactly():
    def changed(predicted, reference):
        return np.where(reference > 0, 0.7 * reference + 0.1, 0).astype(np.float32)

    matched = affine_matched(make_pair(changed))
    np.testing.assert_allclose(matched.predicted, matched.reference, atol=1e-6)


def test_matching_never_costs_inside_the_foreground_and_leaves_the_air_alone():
    pair = make_pair(lambda predicted, reference: np.where(reference > 0, predicted, 0.3).astype(np.float32))
    matched = affine_matched(pair)
    assert values("foreground", matched)["foreground", "psnr"] > values("foreground", pair)["foreground", "psnr"]
    outside = ~pair.regions["foreground"]
    np.testing.assert_array_equal(matched.predicted[outside], pair.predicted[outside])
    assert matched.predicted.dtype == np.float32


def test_the_fit_is_least_squares():
    pair = make_pair()
    inside = pair.regions["foreground"]
    design = np.stack([pair.predicted[inside], np.ones(inside.sum())], axis=1).astype(float)
    slope, offset = np.linalg.lstsq(design, pair.reference[inside].astype(float))[0]
    expected = np.clip(slope * pair.predicted[inside] + offset, 0, 1)
    np.testing.assert_allclose(affine_matched(pair).predicted[inside], expected, atol=1e-6)


def test_a_constant_prediction_becomes_the_mean():
    pair = make_pair(lambda predicted, reference: np.full_like(predicted, 0.2))
    inside = pair.regions["foreground"]
    np.testing.assert_allclose(affine_matched(pair).predicted[inside], pair.reference[inside].mean(), atol=1e-6)
