"""Damage to inputs as `data/corrupt.py` does it, drawn and done for a whole batch at once on its device.

Every kind is computed for every image and one is chosen: shapes then depend on nothing that is drawn, and the host
never waits for the device.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from medk2n.data.corrupt import FARTHEST_PX, GHOST_LINES, GHOST_PX, KINDS, MIXED


class Chance:
    """Draws on one device from one generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator, self.device = generator, generator.device

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Even over low to high."""
        return torch.rand(shape, device=self.device, generator=self.generator) * (high - low) + low

    def normal(self, *shape: int) -> Tensor:
        """Zero mean, unit deviation."""
        return torch.randn(shape, device=self.device, generator=self.generator)

    def one_of(self, allowed: Tensor) -> Tensor:
        """allowed (..., n) bool -> (...) index of one that is allowed; of any where none is."""
        return self.uniform(*allowed.shape).add_(allowed).argmax(dim=-1)


def damage(images: Tensor, acquired: Tensor, chance: Chance, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Damage a share of the inputs, each in one way, with a severity drawn evenly from 0 to 1.

    Args:
        images: (b, m, s, h, w) in [0, 1]; what is not acquired may hold anything finite.
        acquired: (b, m) bool.
        share: chance of each input.

    Returns:
        As `corrupt`: the images; the severity (b, m) of each; and (b, m) which modality was blended in, -1 for none.
    """
    b, m = acquired.shape
    strength = chance.uniform(b, m)
    kind = (chance.uniform(b, m) * (len(KINDS) + len(MIXED))).long()
    chosen = (chance.uniform(b, m) < share) & acquired
    out = images
    flat, level = images.flatten(0, 1), strength.flatten()
    for k, name in enumerate(KINDS):
        out = torch.where(_spread(kind == k), _ALONE[name](chance, flat, level).view_as(images), out)
    mixed = torch.full_like(kind, -1)
    for k, (other, there, modality) in enumerate(_others(images, acquired, chance), len(KINDS)):
        out = torch.where(_spread(kind == k), torch.lerp(images, other, _spread(strength)), out)
        chosen = chosen & (there | (kind != k))
        mixed = torch.where(kind == k, modality, mixed)
    return torch.where(_spread(chosen), out, images), torch.where(chosen, strength, 0.0), mixed.where(chosen, -1)


def _others(images: Tensor, acquired: Tensor, chance: Chance) -> list[tuple[Tensor, Tensor, Tensor]]:
    """What `MIXED` blends in, (b, m) bool whether there is such an image, and which modality of the crop it is."""
    b, m = acquired.shape
    device = images.device
    rows, columns = torch.arange(b, device=device)[:, None], torch.arange(m, device=device)
    modality = acquired[:, None, :] & ~torch.eye(m, dtype=torch.bool, device=device)  # (b, m, another m)
    sample = acquired.T[None] & ~torch.eye(b, dtype=torch.bool, device=device)[:, None]  # (b, m, another b)
    which = chance.one_of(modality)
    elsewhere = images[chance.one_of(sample), columns]
    none = torch.full_like(which, -1)
    return [(images[rows, which], modality.any(dim=-1), which), (elsewhere, sample.any(dim=-1), none)]


def _spread(values: Tensor) -> Tensor:
    """To the axes of images."""
    return values[..., None, None, None]


def _noise(chance: Chance, images: Tensor, level: Tensor) -> Tensor:
    return torch.lerp(images, (0.5 + 0.2 * chance.normal(*images.shape)).clamp_(0, 1), _spread(level))


def _blank(chance: Chance, images: Tensor, level: Tensor) -> Tensor:
    grey = chance.uniform(len(images), low=0.1, high=0.9)
    return torch.lerp(images, _spread(grey).expand_as(images), _spread(level))


def _motion(chance: Chance, images: Tensor, level: Tensor) -> Tensor:
    n, lines = len(images), images.shape[2]
    moved = chance.uniform(n, max(2, lines // GHOST_LINES), low=-1.0, high=1.0)
    moved = moved.repeat_interleave(GHOST_LINES, dim=1)[:, :lines]
    shift = functional.pad(moved, (0, lines - moved.shape[1])) * level[:, None] * GHOST_PX
    angle = -2 * torch.pi * torch.fft.fftfreq(lines, device=images.device) * shift
    phase = torch.polar(torch.ones_like(angle), angle)
    return torch.fft.ifft(torch.fft.fft(images, dim=2) * phase[:, None, :, None], dim=2).abs().clamp_(0, 1)


def _bias(chance: Chance, images: Tensor, level: Tensor) -> Tensor:
    coarse = chance.uniform(len(images), 1, 3, 3, low=-1.2, high=1.2)
    field = functional.interpolate(coarse, size=images.shape[2:], mode="bicubic", align_corners=True)
    return (images * (_spread(level) * field).exp()).clamp_(0, 1)


def _misplaced(chance: Chance, images: Tensor, level: Tensor) -> Tensor:
    n, _, h, w = images.shape
    angle, far = chance.uniform(n, high=2 * torch.pi), level * FARTHEST_PX
    rows = torch.arange(h, device=images.device) - (far * angle.cos()).round().long()[:, None]
    columns = torch.arange(w, device=images.device) - (far * angle.sin()).round().long()[:, None]
    at = torch.arange(n, device=images.device)[:, None, None]
    rolled = images.transpose(0, 1)[:, at, (rows % h)[:, :, None], (columns % w)[:, None, :]]
    return rolled.transpose(0, 1)


def _partly(chance: Chance, images: Tensor, level: Tensor) -> Tensor:
    coarse = chance.normal(len(images), 1, 4, 4)
    field = functional.interpolate(coarse, size=images.shape[2:], mode="bicubic", align_corners=True)
    shown = (images.amax(dim=1) > 0).flatten(1)
    shown = shown | ~shown.any(dim=1, keepdim=True)
    ranked = field.flatten(1).masked_fill(~shown, -torch.inf).sort(dim=1, descending=True).values
    place = level[:, None] / 2 * (shown.sum(dim=1, keepdim=True) - 1)
    above, below = ranked.gather(1, place.floor().long()), ranked.gather(1, place.ceil().long())
    edge = torch.lerp(above, below, place.frac())
    noise = (0.5 + 0.2 * chance.normal(*images.shape)).clamp_(0, 1)
    instead = noise * _spread(chance.uniform(len(images)) < 0.5)
    return torch.lerp(images, instead, (8 * (field - edge[..., None, None])).clamp(0, 1))


_ALONE: dict[str, Callable[[Chance, Tensor, Tensor], Tensor]] = {
    "noise": _noise,
    "blank": _blank,
    "motion": _motion,
    "bias": _bias,
    "misplaced": _misplaced,
    "partly": _partly,
}
