"""Signal equations against hand-computed values, and smooth deformations that never fold."""

from types import SimpleNamespace

import numpy as np
import pytest

from medk2n.geometry.grid import Grid
from medk2n.phantom import acquire, ceilings
from medk2n.phantom.acquire import rician, voxel_blur
from medk2n.phantom.deform import (
    STEP_MM,
    exponentiate,
    jacobian_determinant,
    lattice_points,
    random_affine,
    random_deformation,
    random_velocity,
    sample,
)
from medk2n.phantom.fields import smooth_field
from medk2n.phantom.signal import (
    FIXED,
    RANDOM_MODALITIES,
    apparent_diffusion,
    diffusion,
    enhanced,
    inversion_recovery,
    mr_signal,
    random_protocol,
    spin_echo,
    spoiled_gradient_echo,
)
from medk2n.phantom.tissues import TISSUES, draw_tissues


def test_spin_echo_by_hand() -> None:
    # 0.7 (1 - e^-1) e^-2
    assert spin_echo(500.0, 50.0, 0.7, tr_ms=500, te_ms=100) == pytest.approx(0.7 * 0.632121 * 0.135335, rel=1e-5)


def test_long_echo_darkens_short_t2_most() -> None:
    short, long = (spin_echo(900.0, t2, 1.0, 4000, 120) / spin_echo(900.0, t2, 1.0, 4000, 10) for t2 in (50.0, 200.0))
    assert short < 0.3 * long


def test_inversion_recovery_is_null_at_t1_ln2() -> None:
    t1 = 1400.0
    null = inversion_recovery(t1, 100.0, 1.0, tr_ms=40 * t1, te_ms=10, ti_ms=t1 * np.log(2))
    assert null == pytest.approx(0, abs=1e-9)
    assert inversion_recovery(t1, 100.0, 1.0, 40 * t1, 10, 2 * t1) > 0.6


def test_spoiled_gradient_echo_by_hand_and_brightest_at_the_ernst_angle() -> None:
    # flip 90 degrees: PD (1 - E1) exp(-TE / (T2/2))
    assert spoiled_gradient_echo(1000.0, 80.0, 0.8, 100, 4, 90) == pytest.approx(
        0.8 * (1 - np.exp(-0.1)) * np.exp(-0.1), rel=1e-6
    )
    angles = np.arange(2, 60)
    signal = spoiled_gradient_echo(1000.0, 80.0, 1.0, 20, 0, angles)
    ernst = np.rad2deg(np.arccos(np.exp(-20 / 1000)))
    assert angles[np.argmax(signal)] == pytest.approx(ernst, abs=0.6)


def test_adc_recovers_from_two_diffusion_images() -> None:
    adc = np.array([300.0, 720.0, 3000.0])
    images = [diffusion(1000.0, 80.0, 0.8, adc, 8000, 80, b) for b in (0.0, 1000.0)]
    assert images[1][1] == pytest.approx(images[0][1] * np.exp(-0.72), rel=1e-6)
    np.testing.assert_allclose(apparent_diffusion(*images, 1000.0), adc, rtol=1e-6)


def test_gadolinium_shortens_both_times() -> None:
    # 1/1.0 s + 5.0 * 0.2 = 2.0 / s; 1/0.1 s + 7.1 * 0.2 = 11.42 / s
    t1, t2 = enhanced(1000.0, 100.0, 0.2)
    assert t1 == pytest.approx(500.0)
    assert t2 == pytest.approx(1000 / 11.42)
    plain, bright = (mr_signal(FIXED[m], 1500, 125, 0.84, 1000, 0.6) for m in ("t1n", "t1c"))
    assert bright > 1.5 * plain


def test_flow_void_in_spin_echo_not_in_gradient_echo() -> None:
    row = TISSUES["vessel"]
    values = (row.t1_ms, row.t2_ms, row.pd, row.adc)
    for name, factor in (("t2w", 0.1), ("t1c", 1.0)):
        flowing, still = (mr_signal(FIXED[name], *values, flow=f) for f in (0.1, 1.0))
        assert flowing == pytest.approx(factor * still)


def test_an_unknown_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="'ct'"):
        mr_signal(FIXED["ct"], 1000, 100, 1, 700)


@pytest.mark.parametrize("name", RANDOM_MODALITIES)
def test_random_protocols_keep_the_contrast_of_their_name(name: str) -> None:
    rng = np.random.default_rng(0)
    grey, white, csf = (TISSUES[t] for t in ("grey", "white", "csf"))
    for _ in range(20):
        protocol = random_protocol(rng, name)
        g, w, c = (mr_signal(protocol, t.t1_ms, t.t2_ms, t.pd, t.adc) for t in (grey, white, csf))
        assert protocol.contrast == (name == "t1c")
        if name in ("t1n", "t1c"):
            assert w > g > c
        elif name == "t2w":
            assert c > g > w
        elif name in ("t2f", "dwi"):
            assert g > w > c
        else:
            assert g > w


def test_random_protocols_differ_and_quantities_have_none() -> None:
    rng = np.random.default_rng(0)
    assert random_protocol(rng, "t2w") != random_protocol(rng, "t2w")
    with pytest.raises(KeyError, match="adc"):
        random_protocol(rng, "adc")


def test_subjects_vary_around_the_table() -> None:
    drawn = [draw_tissues(np.random.default_rng(i))["white"].t1_ms for i in range(200)]
    assert np.mean(drawn) == pytest.approx(TISSUES["white"].t1_ms, rel=0.02)
    assert 0.5 < np.std(drawn) / TISSUES["white"].t1_ms / TISSUES["white"].spread < 1.5
    assert all(row.source for row in TISSUES.values())


@pytest.mark.parametrize("lesion", ["oedema", "wm_lesion"])
def test_lesions_are_bright_on_flair_in_every_subject(lesion: str) -> None:
    for i in range(300):
        rows = draw_tissues(np.random.default_rng(i))
        ill, white = (mr_signal(FIXED["t2f"], r.t1_ms, r.t2_ms, r.pd, r.adc) for r in (rows[lesion], rows["white"]))
        assert 1.15 < ill / white < 2.3


def test_rician_mean_in_air_and_in_strong_signal() -> None:
    rng = np.random.default_rng(0)
    air = rician(rng, np.zeros((30, 31, 32), np.float32), 2.0)
    assert air.mean() == pytest.approx(2.0 * np.sqrt(np.pi / 2), rel=0.02)
    tissue = rician(rng, np.full((30, 31, 32), 100, np.float32), 2.0)
    assert tissue.mean() == pytest.approx(np.sqrt(100**2 + 2.0**2), rel=2e-3)
    assert tissue.std() == pytest.approx(2.0, rel=0.05)


def test_thick_slices_blur_along_z_alone() -> None:
    point = np.zeros((15, 16, 17), np.float32)
    point[7, 8, 8] = 1
    blurred = voxel_blur(point, 1.0, 0.0, 5.0)
    assert blurred[7, 8, 6] > 0.05
    assert blurred[6, 8, 8] == 0
    assert blurred.sum() == pytest.approx(1, rel=1e-3)
    assert voxel_blur(point, 1.0, 0.9, None) is point


@pytest.mark.parametrize("seed", range(4))
def test_deformations_never_fold(seed: int) -> None:
    origin, size = np.array([-60.0, -70.0, -50.0]), np.array([120.0, 140.0, 100.0])
    deformation = random_deformation(np.random.default_rng(seed), origin, size, np.full(3, 0.9), strength=8.0)
    assert jacobian_determinant(deformation.displacement_mm).min() > 0
    assert np.linalg.det(deformation.affine) > 0.5


def test_jacobian_sees_a_fold() -> None:
    mirror = -2 * STEP_MM * np.moveaxis(np.indices((5, 6, 7)), 0, 0).astype(float)
    mirror[1:] = 0
    assert jacobian_determinant(mirror).max() == pytest.approx(-1)


def test_backward_flow_undoes_forward_flow() -> None:
    velocity = random_velocity(np.random.default_rng(1), (20, 22, 24))
    there, back = exponentiate(velocity), exponentiate(-velocity)
    points = lattice_points(velocity.shape[1:])
    moved = there.reshape(3, -1).T
    home = moved + sample(back, points + moved / STEP_MM).T
    inner = ((points > 4) & (points < np.array(velocity.shape[1:]) - 5)).all(axis=1)
    assert np.abs(moved[inner]).max() > 3
    assert np.abs(home[inner]).max() < 0.5


def test_a_constant_velocity_moves_by_itself() -> None:
    velocity = np.ones((3, 6, 7, 8), np.float32) * np.float32([3, -2, 1])[:, None, None, None]
    np.testing.assert_allclose(exponentiate(velocity), velocity, rtol=1e-5)


def test_affines_stay_gentle() -> None:
    scales = [np.linalg.det(random_affine(np.random.default_rng(i))[:3, :3]) for i in range(100)]
    assert 0.6 < min(scales) < max(scales) < 1.5


@pytest.mark.parametrize("wavelength", [6.0, 40.0])
def test_fields_are_standardised_and_as_smooth_as_asked(wavelength: float) -> None:
    field = smooth_field(np.random.default_rng(0), (50, 51, 52), 2.0, wavelength)
    assert field.shape == (50, 51, 52)
    assert field.dtype == np.float32
    assert 0.6 < field.std() < 1.2
    step = np.abs(np.diff(field, axis=0)).mean()
    assert 0.3 < step * wavelength / 2.0 / 3.5 < 2.5


def test_noise_of_a_scan_is_the_protocols_share_of_the_brain(monkeypatch: pytest.MonkeyPatch) -> None:
    brain = np.ones((40, 40, 40), bool)
    body = SimpleNamespace(grid=Grid(brain.shape, np.eye(4)), brain=brain)
    monkeypatch.setattr(acquire, "ideal_image", lambda *_: np.ones(brain.shape, np.float32))
    noisy, clean = acquire.scan(np.random.default_rng(0), body, {}, FIXED["t2w"], 1.0)
    assert (noisy - clean).std() / clean.mean() == pytest.approx(FIXED["t2w"].noise, rel=0.03)


def test_independent_errors_add_as_powers() -> None:
    assert ceilings.with_noise(30.0, 30.0) == pytest.approx(30 - 10 * np.log10(2), abs=0.01)
    assert ceilings.with_noise(20.0, 90.0) == pytest.approx(20, abs=0.01)


def test_each_region_of_a_ceiling_is_measured_in_itself() -> None:
    rng = np.random.default_rng(0)
    head = np.ones((12, 12, 12), bool)
    brain = np.zeros_like(head)
    brain[4:8, 4:8, 4:8] = True
    clean = rng.uniform(0, 1, head.shape)
    noisy = np.where(brain, clean, 1 - clean)
    rows = ceilings.noise_ceiling(noisy, clean, SimpleNamespace(brain=brain, head=head))
    told = {row["region"]: row["noise_psnr_db"] for row in rows}
    assert told["head"] < 12 < 60 < told["brain"]


def test_a_sidecar_states_the_times_of_its_protocol_in_seconds() -> None:
    """As BIDS has them."""
    told = FIXED["t2w"].sidecar()
    assert (told["EchoTime"], told["RepetitionTime"]) == pytest.approx((0.085, 4.5))
