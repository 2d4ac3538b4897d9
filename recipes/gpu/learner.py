"""The two networks that learn on a card, their loss, and what a step of them does."""

import argparse
import copy
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from loaded import SLICES

from medk2n import checkpoint
from medk2n.config.schema import LossWeights, Optimiser
from medk2n.data.batches import Batch
from medk2n.errors import ConfigError
from medk2n.losses.likelihood import gaussian_nll
from medk2n.losses.reconstruction import edge_error, log_mse
from medk2n.models._spec import Statistics
from medk2n.models.layers.shared_passes import stacked
from medk2n.models.medk2n import MedK2N
from medk2n.models.medk2n import Params as MedK2NParams
from medk2n.models.unet import Params as UNetParams
from medk2n.models.unet import UNet
from medk2n.training.device_damage import Chance
from medk2n.training.groups import optimisers

Images = tuple[Tensor, Tensor | None]
"""Mean image and log variance (or None) of every modality, (b, m, h, w) each."""


class UNetImages(nn.Module):
    """The reference: x (b, m slices + m, h, w) -> mean of every modality, no log variance."""

    maps = False

    def __init__(self, m: int, widths: Sequence[int], known: Statistics) -> None:
        super().__init__()
        self.net = UNet(UNetParams(widths=tuple(widths)), m, known)

    def forward(self, x: Tensor) -> Images:
        return self.net.out(self.net.trunk(x)), None


class MedK2NImages(nn.Module):
    """The synthesizer and its heads: x (b, m slices + m, h, w) -> mean and log variance of every modality."""

    maps = True

    def __init__(self, m: int, widths: Sequence[int], known: Statistics) -> None:
        super().__init__()
        self.net = MedK2N(MedK2NParams(widths=tuple(widths)), m, known)

    def forward(self, x: Tensor) -> Images:
        everything = torch.arange(self.net.m, device=x.device)
        return self.net.heads(self.net.trunk.trunk(x), self.net.embeddings, everything)


def statistics(mean: Tensor) -> Statistics:
    """As far as a few crops tell: the mean (m,) of each modality."""
    known = Statistics.neutral(len(mean))
    return replace(known, mean=mean[:, None].expand(-1, len(mean)).clone())


def read_statistics(path: Path, modalities: Sequence[str]) -> tuple[Statistics, checkpoint.Statistics]:
    """What `recipes/gpu/pair_statistics.py` wrote, as models take it and as their folders keep it.

    Raises:
        ConfigError: no such file, or of other modalities.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if told["modalities"] != list(modalities):
            raise ConfigError(f"{path}: of {', '.join(told['modalities'])}; expected {', '.join(modalities)}")
        parts = [torch.tensor(told[name]) for name in ("mean", "deviation", "correlation", "variance")]
        maps = {
            target: {
                source: (told["slope"][i][j], told["intercept"][i][j], told["residual"][i][j])
                for i, source in enumerate(modalities)
            }
            for j, target in enumerate(modalities)
        }
        variance = dict(zip(modalities, told["variance"], strict=True))
        typical = {name: (low, high) for name, (low, high) in told["typical"].items()}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{path}: expected what recipes/gpu/pair_statistics.py writes ({error})") from error
    return Statistics(*parts), checkpoint.Statistics(affine_maps=maps, variance=variance, typical_scaling=typical)


NETWORKS: dict[str, Callable[[int, Sequence[int], Statistics], nn.Module]] = {
    "medk2n": MedK2NImages,
    "unet": UNetImages,
}


def loss_of(images: Images, batch: Batch, sources: Tensor, weights: LossWeights) -> Tensor:
    """Every image that may be asked for of a crop is judged as an answer; one that is also an input counts little."""
    mean, log_variance = images
    askable = batch.askable(torch.arange(len(sources), device=sources.device), sources)
    target = torch.where(batch.acquired[..., None, None], batch.targets, 0.0).flatten(0, 1)
    inside = batch.foreground[:, None].expand_as(batch.targets).flatten(0, 1)
    share = (torch.where(sources, weights.remade, 1.0) * askable).flatten()
    image = mean.float().flatten(0, 1)
    error = weights.log_mse * log_mse(image, target, inside) + weights.edges * edge_error(image, target, inside)
    if log_variance is not None:
        likelihood = gaussian_nll(image, log_variance.float().flatten(0, 1), target, inside)
        error = error + weights.likelihood * likelihood
    return (share * error).sum() / share.sum()


@dataclass
class Learner:
    """A network, its averaged twin and its optimisers."""

    name: str
    module: nn.Module
    settings: Optimiser
    chance: Chance | None = None
    hide: float = 0.0
    averaged: nn.Module = field(init=False)
    optimisers: list[torch.optim.Optimizer] = field(init=False)
    run: Callable[[Tensor], Images] = field(init=False)

    def __post_init__(self) -> None:
        self.averaged = copy.deepcopy(self.module).requires_grad_(False).eval()
        self.optimisers = optimisers(self.module, self.settings)
        self.run = self.module

    def loss(self, batch: Batch, sources: Tensor, weights: LossWeights, *, bf16: bool) -> Tensor:
        """Of one batch; the forward pass in bfloat16 where asked for, the loss never."""
        x = stacked(batch.images, sources)
        if self.module.maps and self.chance is not None:
            m = sources.shape[1]
            presence = hidden(sources, x.shape[-2:], self.chance, self.hide)
            seen = x[:, :-m].unflatten(1, (m, SLICES)) * presence[:, :, None]
            x = torch.cat([seen.flatten(1, 2), presence], dim=1)
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            images = self.run(x)
        return loss_of(images, batch, sources, weights)

    def step(self, loss: Tensor, rate: float, steps: int) -> None:
        """One optimiser step, the number `steps`."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.clip)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * group["scale"]
            optimiser.step()
        self.module.zero_grad(set_to_none=True)
        decay = min(self.settings.ema, (1 + steps) / (10 + steps))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.parameters()), list(self.module.parameters()), 1 - decay)

    def compile(self, seconds: int, mode: str, loss: Callable[[], Tensor]) -> bool:
        """Compile within so many seconds, or stay as it is; `loss` gives one of this learner's."""
        self.run = torch.compile(self.module, mode=mode)
        try:
            with _alarm(seconds):
                loss().backward()
            return True
        except _Late:
            torch._dynamo.reset()
            self.run = self.module
            return False
        finally:
            self.module.zero_grad(set_to_none=True)


class _Late(BaseException):
    """The time limit of a compilation has passed; no `Exception`, which a compiler might catch."""


def hidden(sources: Tensor, size: torch.Size, chance: Chance, share: float) -> Tensor:
    """Presence maps (b, m, h, w) of sets (b, m), as `training/lessons/medk2n.py` draws them, for a batch at once."""
    b, m = sources.shape
    chosen = sources & (chance.uniform(b, m) < share) & (sources.sum(dim=1, keepdim=True) > 1)
    field = nn.functional.interpolate(chance.normal(b, m, 4, 4), size=size, mode="bicubic", align_corners=True)
    edge, left = chance.uniform(b, m, high=0.8), chance.uniform(b, m) * (chance.uniform(b, m) > 0.7)
    outside = torch.sigmoid(8 * (edge[..., None, None] - field))
    left = left[..., None, None]
    return torch.where(chosen[..., None, None], left + (1 - left) * outside, 1.0) * sources[..., None, None]


def spared(sources: Tensor, severity: Tensor, chance: Chance) -> Tensor:
    """Half of the damaged members of sets (b, m) left out where another is left."""
    kept = sources & ~((severity > 0) & (chance.uniform(*sources.shape) < 0.5))
    return torch.where(kept.any(dim=1, keepdim=True), kept, sources)


@contextmanager
def _alarm(seconds: int) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise _Late

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def learners_of(asked: argparse.Namespace, batch: Batch, settings: Optimiser, device: torch.device) -> list[Learner]:
    """Fresh networks, whose images start at the mean of each modality."""
    inside = batch.foreground[:, None] & batch.acquired[..., None, None]
    mean = torch.where(inside, batch.targets, 0.0).sum(dim=(0, 2, 3)) / inside.sum(dim=(0, 2, 3)).clamp_min(1)
    made = []
    for name in asked.networks.split(","):
        widths = [int(width) for width in asked.widths.split(",")]
        known = (
            read_statistics(asked.statistics, asked.modalities.split(","))[0]
            if asked.statistics
            else statistics(mean.cpu())
        )
        module = NETWORKS[name](len(mean), widths, known).to(device, memory_format=torch.channels_last)
        chance = Chance(torch.Generator(device=device).manual_seed(asked.seed + 7))
        made.append(Learner(name, module, settings, chance, asked.hide))
    return made
