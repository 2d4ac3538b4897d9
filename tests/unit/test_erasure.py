"""An erased lesion: how it is filled, and what the sensitivity of a metric is."""

import math

import numpy as np
import pytest

from medk2n.data.intensity import Scaling
from medk2n.data.working import WorkingStudy
from medk2n.errors import UsageError
from medk2n.evaluation.erasure import MILD_DB, Sensitivity, erase, sensitivities
from medk2n.evaluation.panel import PROTOCOLS
from medk2n.registry import resolve

SHAPE = (20, 44, 48)


def masks():
    tissue, lesion = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    tissue[2:-2, 4:-4, 4:-4] = True
    lesion[8:12, 16:24, 20:30] = True
    return tissue, lesion


def make_study(bright=0.4):
    tissue, lesion = masks()
    ramp = np.linspace(0.3, 0.5, SHAPE[2], dtype=np.float32)
    image = np.where(tissue, ramp + bright * lesion, 0).astype(np.float32)
    return WorkingStudy("a", {"t2f": image}, tissue, {"t2f": Scaling(0.0, 900.0)}, lesion=lesion)


def test_a_lesion_becomes_what_surrounds_it_and_the_rest_stays():
    study, (tissue, lesion) = make_study(), masks()
    erased = erase(study.images["t2f"], lesion, tissue, np.random.default_rng(0))
    truth_without = make_study(bright=0).images["t2f"]
    np.testing.assert_allclose(erased[lesion], truth_without[lesion], atol=0.12)
    assert abs(erased[lesion].mean() - truth_without[lesion].mean()) < 0.01
    assert np.array_equal(erased[~lesion][:100], study.images["t2f"][~lesion][:100])
    far = np.ones(SHAPE, bool)
    far[7:13, 15:25, 19:31] = False
    np.testing.assert_array_equal(erased[far], study.images["t2f"][far])


def test_the_fill_has_the_texture_of_its_surroundings():
    tissue, lesion = masks()
    image = np.where(tissue, 0.5 + 0.05 * np.random.default_rng(1).standard_normal(SHAPE), 0)
    erased = erase(np.where(lesion, 0.95, image), lesion, tissue, np.random.default_rng(0))
    assert erased[lesion].std() == pytest.approx(0.05, rel=0.1)
    assert erased[lesion].mean() == pytest.approx(0.5, abs=0.01)


def test_air_and_the_lesions_own_rim_do_not_bleed_in():
    tissue, lesion = masks()
    lesion[:] = False
    lesion[8:12, 5:10, 20:30] = True  # beside the air
    image = np.where(tissue, 0.5, 0)
    image[7:13, 4:12, 18:32] = 0.9  # what is called lesion, and two voxels more
    erased = erase(image, lesion, tissue, np.random.default_rng(0))
    np.testing.assert_allclose(erased[lesion], 0.5, atol=1e-6)


def test_without_a_lesion_nothing_is_erased_and_without_healthy_tissue_nothing_can_be():
    tissue, _ = masks()
    image = np.where(tissue, 0.5, 0)
    np.testing.assert_array_equal(erase(image, np.zeros(SHAPE, bool), tissue, np.random.default_rng(0)), image)
    with pytest.raises(UsageError, match="no healthy tissue around the lesion"):
        erase(image, tissue, tissue, np.random.default_rng(0))


def found(study, *protocols):
    chosen = [resolve(PROTOCOLS, name) for name in protocols]
    return {(s.protocol, s.region, s.metric): s for s in sensitivities(study, "t2f", chosen, np.random.default_rng(0))}


def test_sensitivity_of_psnr_is_what_arithmetic_says():
    study = make_study()
    s = found(study, "foreground")["foreground", "foreground", "psnr"]
    assert s.mild == pytest.approx(MILD_DB, abs=0.01)
    assert s.doubled == pytest.approx(MILD_DB - 10 * math.log10(2), abs=0.01)
    erased = erase(study.images["t2f"], study.lesion, study.foreground, np.random.default_rng(1))
    lost = np.mean(np.square(erased - study.images["t2f"])[study.foreground])
    assert s.value == pytest.approx(math.log2(1 + lost / 10 ** (-MILD_DB / 10)), rel=0.1)


def test_the_lesion_region_sees_it_and_the_healthy_one_is_blind():
    values = found(make_study(), "foreground", "brasyn_documented")
    assert values["foreground", "lesion", "psnr"].value > 3 > values["foreground", "foreground", "psnr"].value > 0.1
    assert abs(values["brasyn_documented", "healthy", "psnr"].value) < 0.2


def test_a_fainter_lesion_is_missed_less():
    faint, bright = (found(make_study(b), "foreground")["foreground", "whole", "mae"].value for b in (0.1, 0.4))
    assert 0 < faint < bright


def test_a_metric_that_noise_does_not_cost_has_no_sensitivity():
    assert math.isnan(Sensitivity("a", "t2f", "p", "whole", "ssim", 0.9, 0.9, 0.5).value)
    assert Sensitivity("a", "t2f", "p", "whole", "ssim", 0.9, 0.8, 0.7).value == pytest.approx(2)
    assert Sensitivity("a", "t2f", "p", "whole", "mae", 0.1, 0.2, 0.15).value == pytest.approx(0.5)


def test_a_subject_without_a_lesion_is_refused():
    study = make_study()
    study.lesion[:] = False
    with pytest.raises(UsageError, match="subject a has no lesion to erase"):
        list(sensitivities(study, "t2f", [], np.random.default_rng(0)))


def test_the_bright_rim_of_a_lesion_is_erased_with_it():
    """Masks are drawn a voxel short as often as not."""
    tissue, lesion = masks()
    rim = np.zeros_like(lesion)
    rim[7:13, 15:25, 19:31] = True
    image = np.where(tissue, 0.4 + 0.4 * rim, 0).astype(np.float32)
    healthy = erase(image, lesion, tissue, np.random.default_rng(0))
    assert healthy[rim].max() < 0.5
