"""MM-Synthesis (Chartsias 2018): an encoder and a decoder a modality around one latent space, fused by its maximum.

Each modality has its own encoder f_i to one latent space and its own decoder g_j out of it; the latents of the
sources are fused voxel by voxel, z = max_i f_i(x_i), and the answer is g_j(z). Any number of sources can be fused.
While it trains, each source's latent is decoded alone too: the paper's loss asks for it (losses/papers).
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
    """Sizes.

    Attributes:
        slices: neighbouring slices of a frame, odd.
        widths: channels of an encoder at strides 1, 2, 4 (in the paper 32, 64, 128); a decoder has the first.
        latent: channels of the latent space, 16 in the paper.
    """

    slices: int = 3
    widths: tuple[int, int, int] = (16, 32, 64)
    latent: int = 16


class Encoder(nn.Module):
    """f_i: a U-Net of two levels from a frame to a latent of the image's size."""

    def __init__(self, slices: int, widths: tuple[int, int, int], latent: int) -> None:
        super().__init__()
        a, b, c = widths
        self.down = nn.ModuleList([Double(slices, a), Double(a, b), Double(b, c)])
        self.up = nn.ModuleList([Double(b + c, b), Double(a + b, a)])
        self.out = nn.Conv2d(a, latent, 3, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        """x (f, s, h, w), h and w multiples of 4 -> [latent (f, latent, h, w)]."""
        skips = [self.down[0](x)]
        for stage in self.down[1:]:
            skips.append(stage(functional.max_pool2d(skips[-1], 2)))
        x = skips.pop()
        for stage in self.up:
            x = stage(torch.cat([functional.interpolate(x, scale_factor=2.0, mode="nearest"), skips.pop()], dim=1))
        return [functional.leaky_relu(self.out(x), 0.3)]


class Decoder(nn.Module):
    """g_j: convolutions at full size, with two skips past them; starts at the modality's mean."""

    def __init__(self, latent: int, width: int, mean: float) -> None:
        super().__init__()
        self.first = Double(latent, width)
        self.second = Double(latent + width, width)
        self.out = nn.Conv2d(latent + 2 * width, 1, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.constant_(self.out.bias, mean)

    def forward(self, z: Tensor) -> list[Tensor]:
        """z (r, latent, h, w) -> [image (r, h, w)]."""
        x = torch.cat([z, self.first(z)], dim=1)
        x = torch.cat([x, self.second(x)], dim=1)
        return [self.out(x).squeeze(1)]


@dataclass(frozen=True, slots=True)
class MMSynthesisPrediction(Prediction):
    """Beside the images, while training: the latents apart.

    Attributes:
        variance: (p,) of the latents of each pass.
        of: (r,) query of each latent that is not alone.
        alone: (r, h, w) what it gives without the others.
    """

    variance: Tensor | None = None
    of: Tensor | None = None
    alone: Tensor | None = None


class MMSynthesis(nn.Module):
    """An encoder and a decoder a modality around one latent space."""

    def __init__(self, params: Params, m: int, statistics: Statistics) -> None:
        super().__init__()
        self.params = params
        means = statistics.mean.diagonal().tolist()
        self.encoders = nn.ModuleList(Encoder(params.slices, params.widths, params.latent) for _ in range(m))
        self.decoders = nn.ModuleList(Decoder(params.latent, params.widths[0], mean) for mean in means)

    def forward(
        self, images: Tensor, query: Query, *, generator: torch.Generator | None = None
    ) -> "MMSynthesisPrediction":
        """One image per query; while training, also what each latent gives alone, and how they differ."""
        h, w = images.shape[-2:]
        passes = Passes.of(query)
        frames = SharedFrames.of(padded(images, 4), passes)
        latents = own(self.encoders, frames.images, frames.modality)[0][..., :h, :w][frames.slots]
        fused = fuse(latents, frames.filled)
        image = own(self.decoders, fused[passes.which], query.target)[0]
        if not self.training:
            return MMSynthesisPrediction(image)
        return MMSynthesisPrediction(image, None, *self._apart(latents, frames.filled, passes.which, query.target))

    def _apart(self, latents: Tensor, filled: Tensor, which: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `MMSynthesisPrediction` names them."""
        several = filled[which] & (filled.sum(dim=1) > 1)[which, None]
        of, slot = several.nonzero().unbind(dim=1)
        alone = own(self.decoders, latents[which[of], slot], target[of])[0] if len(of) else latents.new_zeros(0)
        return variance(latents, filled), of, alone


def fuse(latents: Tensor, filled: Tensor) -> Tensor:
    """Voxel-wise maximum over the filled slots: latents (p, k, c, h, w), filled (p, k) -> (p, c, h, w)."""
    return latents.masked_fill(~filled[:, :, None, None, None], -torch.inf).amax(dim=1)


def variance(latents: Tensor, filled: Tensor) -> Tensor:
    """Variance of the latents of each pass over its filled slots, mean over voxels and channels: (p,)."""
    share = filled / filled.sum(dim=1, keepdim=True)
    share = share[:, :, None, None, None]
    centre = (share * latents).sum(dim=1, keepdim=True)
    return (share * (latents - centre).square()).sum(dim=1).mean(dim=(1, 2, 3))


COMPONENT = ModelSpec(
    name="mm_synthesis", params=Params, build=MMSynthesis, every_target=True, objective="mm_synthesis"
)
