"""What only a CUDA device can show; skipped, saying so, where there is none."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from medk2n import checkpoint
from medk2n.config.schema import LossWeights, Optimiser
from medk2n.data.batches import Augmentation, Batch
from medk2n.data.intensity import Scaling
from medk2n.data.stored import Stored
from medk2n.data.working import WorkingStudy
from medk2n.losses.reconstruction import log_mse
from medk2n.models._spec import Statistics
from medk2n.models.unet import Params, UNet
from medk2n.training.device_damage import Chance
from medk2n.training.device_feed import DeviceFeed, draw_sources
from medk2n.training.groups import optimisers
from medk2n.training.queries import as_query, every_target

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
NAMES = ("t1c", "t1n", "t2f", "t2w")
ALL = Augmentation(strip=0.3, restyle=0.5, corrupt=0.3)


def feed_on(device: str) -> DeviceFeed:
    """A few smooth heads."""
    feed = DeviceFeed(len(NAMES), (80, 80), 200, torch.device(device))
    for seed in range(3):
        rng = np.random.default_rng(seed)
        inside = np.zeros((6, 80, 80), bool)
        inside[:, 8:-8, 12:-12] = True
        brain = np.zeros_like(inside)
        brain[1:-1, 20:-20, 24:-24] = True
        waves = np.indices((6, 80, 80)).transpose(1, 2, 3, 0) @ rng.uniform(0.05, 0.3, (3, len(NAMES)))
        images = {n: ((0.5 + 0.45 * np.sin(waves[..., k])) * inside).astype(np.float32) for k, n in enumerate(NAMES)}
        study = WorkingStudy(str(seed), images, inside, dict.fromkeys(NAMES, Scaling(0.0, 1.0)), brain=brain)
        feed.add(0, Stored.of(study, NAMES))
    feed.share_out([1.0])
    return feed


def chance_on(device: str, seed: int = 0) -> Chance:
    return Chance(torch.Generator(device=device).manual_seed(seed))


@pytest.mark.parametrize("model", ["brain", "default"])
@torch.no_grad()
def test_a_bundled_model_gives_what_the_cpu_gives(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    module, config = checkpoint.load(checkpoint.BUNDLED / model)
    module.fusion.taught.zero_()  # all gates open: a weight that lies at its threshold may fall to either side
    m = len(config.modalities)
    batch = feed_on("cpu").batch(chance_on("cpu"), 4, 64, 3, Augmentation())
    images = batch.images.repeat(1, -(-m // len(NAMES)), 1, 1, 1)[:, :m]
    acquired = torch.ones(4, m, dtype=torch.bool)
    sources = draw_sources(acquired, chance_on("cpu"), most=3).numpy()
    query = as_query(*every_target(acquired.numpy(), np.arange(4), sources))
    inside = batch.foreground[query.sample]

    def made(device: str, *, bf16: bool) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            mean = module.to(device)(images.to(device), query.to(torch.device(device))).mean
        return mean.float().cpu() * inside

    wanted = made("cpu", bf16=False)
    assert (made("cuda", bf16=False) - wanted).abs().max() < 1e-3
    half = made("cuda", bf16=True)
    assert -10 * torch.log10((half - wanted).square().mean()) > 40


def test_batches_are_distributed_as_on_the_cpu() -> None:
    here, there = (feed_on(d).batch(chance_on(d), 600, 64, 3, ALL) for d in ("cpu", "cuda"))
    assert there.images.device.type == "cuda"

    def numbers(batch: Batch) -> torch.Tensor:
        images, hurt = batch.images.cpu(), batch.severity.cpu()
        values = [images.mean(), images.std(), batch.targets.mean().cpu(), batch.foreground.float().mean().cpu()]
        return torch.stack([*values, (hurt > 0).float().mean(), hurt[hurt > 0].mean()])

    torch.testing.assert_close(numbers(there), numbers(here), rtol=0.05, atol=0.02)


def step_of(feed: DeviceFeed, *, bf16: bool) -> tuple[Callable[[], torch.Tensor], torch.nn.Module]:
    """A training step of a small trunk."""
    torch.manual_seed(0)
    trunk = UNet(Params(widths=(16, 16, 24, 24, 32)), len(NAMES), Statistics.neutral(len(NAMES)))
    trunk = trunk.to("cuda", memory_format=torch.channels_last)
    moving, chance, weights = optimisers(trunk, Optimiser()), chance_on("cuda"), LossWeights()

    def step() -> torch.Tensor:
        batch = feed.batch(chance, 16, 64, 3, ALL)
        sources = draw_sources(batch.acquired, chance, most=3)
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            images = trunk.images(batch.images, sources)
        inside = batch.foreground[:, None].expand_as(batch.targets).flatten(0, 1)
        error = log_mse(images.float().flatten(0, 1), batch.targets.flatten(0, 1), inside)
        loss = weights.log_mse * error.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trunk.parameters(), 1.0)
        for optimiser in moving:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        return loss.detach()

    return step, trunk


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_training_learns(bf16: bool) -> None:
    step, _ = step_of(feed_on("cuda"), bf16=bf16)
    losses = torch.stack([step() for _ in range(60)])
    assert torch.isfinite(losses).all()
    assert losses[-10:].mean() < losses[:10].mean() - 0.3


def test_a_step_never_waits_for_the_device() -> None:
    step, _ = step_of(feed_on("cuda"), bf16=True)
    for _ in range(3):
        step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        torch.cuda.set_sync_debug_mode("error")  # any operation that waits raises
        try:
            for _ in range(5):
                step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    names = {event.key for event in seen.key_averages()}
    assert not names & {"aten::item", "aten::_local_scalar_dense", "aten::nonzero"}


def test_the_same_seed_gives_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        found = []
        for _ in range(2):
            step, trunk = step_of(feed_on("cuda"), bf16=False)
            for _ in range(5):
                step()
            found.append(torch.cat([p.detach().flatten() for p in trunk.parameters()]))
        torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)
    finally:
        torch.use_deterministic_algorithms(False)
