"""A hierarchical variational autoencoder with products of experts, in the manner of MMHVAE (Dorent 2025).

Each modality has its own encoder and its own last layers. At each stride a latent z_l is inferred from coarse to
fine: every source i says N(mu_i, s_i^2) of it, knowing what is coarser, the prior p(z_l | z_>l) is one more expert, and
their product is the approximate posterior, 1 / s^2 = sum 1 / s_i^2 and mu = s^2 sum mu_i / s_i^2. So any number of
sources can be fused, and one more never makes it less sure. Latents are drawn in training; an answer takes their means.
Deviations and sizes: docs/baselines.md.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from medk2n.models._spec import ModelSpec, Prediction, Query, Statistics
from medk2n.models.layers.shared_passes import Passes, SharedFrames, own, padded
from medk2n.models.layers.unet_trunk import Double


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """Sizes, at strides 1, 2, 4, 8, 16.

    Attributes:
        slices: neighbouring slices of a frame, odd.
        encoder: channels of each modality's encoder.
        decoder: channels of the path from coarse to fine that all share; its first are those of the last layers.
        latents: channels of the latents.
    """

    slices: int = 3
    encoder: tuple[int, ...] = (16, 24, 32, 48, 64)
    decoder: tuple[int, ...] = (16, 32, 48, 72, 96)
    latents: tuple[int, ...] = (8, 8, 16, 16, 16)


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Independent normal variables.

    Attributes:
        mean, log_variance: of one shape.
    """

    mean: Tensor
    log_variance: Tensor

    @classmethod
    def of(cls, x: Tensor, dim: int) -> "Gaussian":
        """Two halves of a layer's output; the log-variance is kept within what a float can invert."""
        mean, log_variance = x.chunk(2, dim=dim)
        return cls(mean, log_variance.clamp(-10, 10))

    def draw(self, generator: torch.Generator | None) -> Tensor:
        """A sample; the mean without a generator."""
        if generator is None:
            return self.mean
        noise = torch.randn(self.mean.shape, generator=generator).to(self.mean)
        return self.mean + (0.5 * self.log_variance).exp() * noise


def product(prior: Gaussian, experts: Gaussian, filled: Tensor) -> Gaussian:
    """The normalised product of a prior (p, c, h, w) and of the filled (p, k) of k experts (p, k, c, h, w)."""
    precision = (-experts.log_variance).exp() * filled[:, :, None, None, None]
    first = (-prior.log_variance).exp()
    total = first + precision.sum(dim=1)
    mean = (first * prior.mean + (precision * experts.mean).sum(dim=1)) / total
    return Gaussian(mean, -total.log())


class Encoder(nn.Module):
    """A frame to features at all strides."""

    def __init__(self, slices: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(Double(a, b) for a, b in zip((slices, *widths), widths, strict=False))

    def forward(self, x: Tensor) -> list[Tensor]:
        """x (f, s, h, w), h and w multiples of 16 -> (f, c, h / stride, w / stride) at strides 1, 2, 4, 8, 16."""
        features = []
        for k, stage in enumerate(self.stages):
            x = stage(functional.max_pool2d(x, 2) if k else x)
            features.append(x)
        return features


class Level(nn.Module):
    """One latent: its experts, its prior given what is coarser (a standard normal where nothing is), what follows."""

    def __init__(self, encoded: int, above: int, latent: int, width: int) -> None:
        super().__init__()
        self.latent = latent
        self.expert = nn.Conv2d(encoded + above, 2 * latent, 3, padding=1)
        nn.init.constant_(self.expert.bias[latent:], -4.0)  # noise of unit size drowns what is to be learned first
        self.prior = nn.Conv2d(above, 2 * latent, 3, padding=1) if above else None
        self.merge = Double(above + latent, width)

    def forward(
        self, features: Tensor, filled: Tensor, above: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Gaussian, Gaussian]:
        """features (p, k, c, h, w), above (p, c, h, w) -> what follows, the posterior and the prior."""
        p, k = filled.shape
        seen = features.flatten(0, 1)
        if above is None:
            zero = features.new_zeros(p, self.latent, *features.shape[-2:])
            prior = Gaussian(zero, zero)
        else:
            seen = torch.cat([seen, above.repeat_interleave(k, dim=0)], dim=1)
            prior = Gaussian.of(self.prior(above), dim=1)
        posterior = product(prior, Gaussian.of(self.expert(seen).unflatten(0, (p, k)), dim=2), filled)
        z = posterior.draw(generator)
        return self.merge(z if above is None else torch.cat([above, z], dim=1)), posterior, prior


class Head(nn.Module):
    """The last layers of a modality; starts at its mean."""

    def __init__(self, width: int, mean: float) -> None:
        super().__init__()
        self.body = Double(width, width)
        self.out = nn.Conv2d(width, 1, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.constant_(self.out.bias, mean)

    def forward(self, x: Tensor) -> list[Tensor]:
        """x (r, c, h, w) -> [image (r, h, w)]."""
        return [self.out(self.body(x)).squeeze(1)]


@dataclass(frozen=True, slots=True)
class PoEPrediction(Prediction):
    """Beside the images, `latents`: posterior and prior of each level, finest first, by pass."""

    latents: tuple[tuple[Gaussian, Gaussian], ...] = ()


class PoE(nn.Module):
    """Encoders apart, latents and the path from coarse to fine together, last layers apart."""

    def __init__(self, params: Params, m: int, statistics: Statistics) -> None:
        super().__init__()
        self.params = params
        above = (*params.decoder[1:], 0)
        sizes = zip(params.encoder, above, params.latents, params.decoder, strict=True)
        self.encoders = nn.ModuleList(Encoder(params.slices, params.encoder) for _ in range(m))
        self.levels = nn.ModuleList(Level(*size) for size in sizes)
        self.heads = nn.ModuleList(Head(params.decoder[0], mean) for mean in statistics.mean.diagonal().tolist())

    def forward(self, images: Tensor, query: Query, *, generator: torch.Generator | None = None) -> "PoEPrediction":
        """One image per query."""
        h, w = images.shape[-2:]
        passes = Passes.of(query)
        frames = SharedFrames.of(padded(images, 16), passes)
        features = own(self.encoders, frames.images, frames.modality)
        x, latents = None, []
        for level, seen in zip(reversed(self.levels), reversed(features), strict=True):
            above = None if x is None else functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x, posterior, prior = level(seen[frames.slots], frames.filled, above, generator)
            latents.insert(0, (posterior, prior))
        image = own(self.heads, x[passes.which], query.target)[0][:, :h, :w]
        return PoEPrediction(image, None, tuple(latents))


COMPONENT = ModelSpec(name="poe", params=Params, build=PoE, every_target=True, objective="poe")
