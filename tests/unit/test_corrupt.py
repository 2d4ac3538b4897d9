"""Damage to inputs while training: in its place, as strong as it says, and never in targets."""

import numpy as np
import pytest
import torch

from medk2n.data import corrupt as damage
from medk2n.data.batches import Batch
from medk2n.data.corrupt import FARTHEST_PX, KINDS, corrupt
from medk2n.training.device_damage import Chance
from medk2n.training.device_damage import damage as damage_on_device

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
    bad, severity, _ = corrupt(images, acquired, np.random.default_rng(1), 0.5)
    torch.testing.assert_close(images, kept, equal_nan=True, rtol=0, atol=0)  # what came in is as it was
    changed = ((bad != images) & ~torch.isnan(bad)).flatten(2).any(dim=2)
    assert not torch.isnan(bad[acquired]).any()  # blends read acquired images alone
    assert torch.equal(changed, severity > 0)
    assert 0 < int(changed.sum()) < int(acquired.sum())
    assert not changed[~acquired].any()


def test_no_share_is_no_damage() -> None:
    images, acquired = smooth_images(), torch.ones(B, M, dtype=torch.bool)
    bad, severity, _ = corrupt(images, acquired, np.random.default_rng(0), 0.0)
    assert torch.equal(bad, images)
    assert not severity.any()


def test_blends_need_something_to_blend_with() -> None:
    """One modality of one crop: neither another modality nor another crop is there."""
    images, acquired = smooth_images()[:1, :1], torch.ones(1, 1, dtype=torch.bool)
    for seed in range(40):
        bad, severity, _ = corrupt(images, acquired, np.random.default_rng(seed), 1.0)
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
        bad, severity, _ = corrupt(images, torch.ones(2, 2, dtype=torch.bool), np.random.default_rng(seed), 1.0)
        for b, m in np.ndindex(2, 2):
            found, own, s = float(bad[b, m].mean()), float(level[b, m]), float(severity[b, m])
            mixed = [own + s * (float(level[at]) - own) for at in ((b, 1 - m), (1 - b, m))]
            assert min(abs(found - x) for x in mixed) < 1e-6
            assert 0 < s < 1


@pytest.mark.parametrize("where", ["host", "device"])
def test_no_input_holds_anything_of_what_it_is_asked_for(where: str) -> None:
    """Change an image: whatever may be asked of from sets without it, all that these hold is as before."""
    torch.manual_seed(0)
    images, acquired = torch.rand(B, M, S, 16, 16), torch.ones(B, M, dtype=torch.bool)
    acquired[0, 1] = False
    samples = torch.arange(B).repeat_interleave(2**M - 1)
    sources = ((torch.arange(1, 2**M)[:, None] >> torch.arange(M)) % 2 > 0).repeat(B, 1) & acquired[samples]
    refused = 0
    for seed in range(8):

        def damaged(x: torch.Tensor, seed: int = seed) -> tuple[torch.Tensor, ...]:
            if where == "device":
                return damage_on_device(x, acquired, Chance(torch.Generator().manual_seed(seed)), 1.0)
            return corrupt(x, acquired, np.random.default_rng(seed), 1.0)

        bad, severity, mixed = damaged(images)
        askable = Batch(bad, acquired, images[:, :, 1], acquired, severity, mixed).askable(samples, sources)
        assert not (askable & ~acquired[samples]).any()
        fewer = sources.any(dim=1) & (sources.sum(dim=1) < acquired[samples].sum(dim=1))
        assert askable[fewer].any(dim=1).all()  # each input withdraws one image at most
        for b, t in acquired.nonzero().tolist():
            other = images.clone()
            other[b, t] = 1 - images[b, t]
            touched = (damaged(other)[0] != bad).flatten(2).any(dim=2)[b]
            rows = (samples == b) & ~sources[:, t]
            assert torch.equal(askable[rows, t], ~(sources[rows] & touched).any(dim=1))
            refused += int((~askable[rows, t]).sum())
    assert refused > 20
