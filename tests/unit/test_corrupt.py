"""Damage to inputs while training: in its place, as strong as it says, and never in targets."""

import numpy as np
import pytest
import torch

from medk2n.data import corrupt as damage
from medk2n.data.corrupt import FARTHEST_PX, KINDS, corrupt

B, M, S, H, W = 3, 4, 3, 48, 40


def smooth_images() -> torch.Tensor:
    """(b, m, s, h, w) in [0, 1]: blobs, each modality another."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0.1, 0.9, (B * M, S, 6, 5)).astype(np.float32))
    fine = torch.nn.functional.interpolate(coarse, size=(H, W), mode="bilinear", align_corners=True)
    return fine.reshape(B, M, S, H, W)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_grows_with_severity(kind: str) -> None:
    image = smooth_images()[0, 0]
    errors = []
    for severity in (0.0, 0.1, 0.4, 1.0):
        bad = [KINDS[kind](np.random.default_rng(seed), image, severity) for seed in range(8)]
        assert all(b.shape == image.shape and b.min() >= 0 and b.max() <= 1 for b in bad)
        errors.append(float(np.mean([(b - image).square().mean() for b in bad])))
    assert errors[0] < 1e-6
    assert errors == sorted(errors)
    assert errors[3] > 5e-3


def test_nothing_is_left_of_what_noise_or_a_blank_replaces() -> None:
    image = smooth_images()[0, 0]
    for kind in ("noise", "blank"):
        one, other = (KINDS[kind](np.random.default_rng(0), x, 1.0) for x in (image, 1 - image))
        torch.testing.assert_close(one, other)


def test_only_acquired_inputs_are_damaged_and_severity_says_which() -> None:
    images = smooth_images()
    acquired = torch.ones(B, M, dtype=torch.bool)
    acquired[0, 1] = acquired[2, 3] = False
    images[~acquired] = torch.nan
    kept = images.clone()
    bad, severity = corrupt(images, acquired, np.random.default_rng(1), 0.5)
    torch.testing.assert_close(images, kept, equal_nan=True, rtol=0, atol=0)  # what came in is as it was
    changed = ((bad != images) & ~torch.isnan(bad)).flatten(2).any(dim=2)
    assert not torch.isnan(bad[acquired]).any()  # blends read acquired images alone
    assert torch.equal(changed, severity > 0)
    assert 0 < int(changed.sum()) < int(acquired.sum())
    assert not changed[~acquired].any()


def test_no_share_is_no_damage() -> None:
    images, acquired = smooth_images(), torch.ones(B, M, dtype=torch.bool)
    bad, severity = corrupt(images, acquired, np.random.default_rng(0), 0.0)
    assert torch.equal(bad, images)
    assert not severity.any()


def test_blends_need_something_to_blend_with() -> None:
    """One modality of one crop: neither another modality nor another crop is there."""
    images, acquired = smooth_images()[:1, :1], torch.ones(1, 1, dtype=torch.bool)
    for seed in range(40):
        bad, severity = corrupt(images, acquired, np.random.default_rng(seed), 1.0)
        assert bool((bad != images).any()) == bool(severity > 0)


def test_what_is_misplaced_is_so_in_every_direction_and_as_far_as_its_severity_says() -> None:
    image = torch.zeros(1, 96, 96)
    image[0, 48, 48] = 1
    for severity in (0.25, 1.0):
        moved = [KINDS["misplaced"](np.random.default_rng(seed), image, severity)[0] for seed in range(40)]
        shifts = np.array([bad.nonzero()[0].tolist() for bad in moved]) - 48
        np.testing.assert_allclose(np.hypot(*shifts.T), FARTHEST_PX * severity, atol=1)
        assert (np.ptp(shifts, axis=0) > 1.5 * FARTHEST_PX * severity).all()


def test_a_blend_holds_as_much_of_the_other_image_as_its_severity_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four flat images with values that tell how much of which is in a blend."""
    monkeypatch.setattr(damage, "KINDS", {})
    level = torch.tensor([[0.0, 0.1], [0.4, 1.0]])
    images = level[:, :, None, None, None].expand(2, 2, 1, 4, 4)
    for seed in range(20):
        bad, severity = corrupt(images, torch.ones(2, 2, dtype=torch.bool), np.random.default_rng(seed), 1.0)
        for b, m in np.ndindex(2, 2):
            found, own, s = float(bad[b, m].mean()), float(level[b, m]), float(severity[b, m])
            mixed = [own + s * (float(level[at]) - own) for at in ((b, 1 - m), (1 - b, m))]
            assert min(abs(found - x) for x in mixed) < 1e-6
            assert 0 < s < 1
