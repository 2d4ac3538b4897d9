"""MMT, the multi-contrast multi-scale transformer (Liu 2023): contrasts are sequences, a target is a query.

Sources are sequences of tokens. A Swin encoder lets the tokens of all sources see each other within windows, at four
strides; a Swin decoder starts from learned queries of the target's contrast and, coarse to fine, reads the encoder's
tokens of all sources in the same window by cross-attention. An adversary judges patches in training (losses/papers).
Deviations and sizes: docs/baselines.md.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from medk2n.models._spec import ModelSpec, Prediction, Query, Statistics
from medk2n.models.layers.own_linear import OwnLinear
from medk2n.models.layers.patch_critic import PatchCritic
from medk2n.models.layers.shared_passes import Passes, SharedFrames, own, padded
from medk2n.models.layers.swin import DecoderBlock, EncoderBlock, Expand, Merge

MULTIPLE = 16
"""Images are padded to multiples of the coarsest stride and cropped back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """Sizes.

    Attributes:
        slices: neighbouring slices of a frame, odd.
        widths: channels of the tokens at strides 2, 4, 8, 16; multiples of `head`.
        head: channels of an attention head.
        window: side of a window in tokens, even.
        pixels: channels of the last layer, at stride 1.
        critic: channels of the discriminator at stride 2.
    """

    slices: int = 3
    widths: tuple[int, int, int, int] = (16, 48, 96, 144)
    head: int = 16
    window: int = 6
    pixels: int = 16
    critic: int = 24


class Stem(nn.Module):
    """A contrast's own way from pixels to tokens of stride 2."""

    def __init__(self, slices: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(slices, channels, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        """x (f, s, h, w) -> [tokens (f, h / 2, w / 2, c)]."""
        return [self.conv(x).permute(0, 2, 3, 1)]


class MMT(nn.Module):
    """Encoder over all sources of a pass, decoder for each query."""

    def __init__(self, params: Params, m: int, statistics: Statistics) -> None:
        super().__init__()
        self.params = params
        c, window, shifts = params.widths, params.window, (0, params.window // 2)
        heads = [width // params.head for width in c]
        self.stems = nn.ModuleList(Stem(params.slices, c[0]) for _ in range(m))
        self.merge = nn.ModuleList(Merge(a, b) for a, b in zip(c, c[1:], strict=False))
        self.encoder = nn.ModuleList(
            nn.ModuleList(EncoderBlock(a, n, window, s) for s in shifts) for a, n in zip(c, heads, strict=True)
        )
        self.seen = nn.ModuleList(nn.LayerNorm(a) for a in c)
        self.queries = nn.ParameterList(0.5 * torch.randn(m, a) for a in c)
        self.expand = nn.ModuleList(Expand(b, a) for a, b in zip(c, c[1:], strict=False))
        self.decoder = nn.ModuleList(
            nn.ModuleList(DecoderBlock(a, n, window, s) for s in shifts) for a, n in zip(c, heads, strict=True)
        )
        self.to_pixels = Expand(c[0], params.pixels)
        self.smooth = nn.Conv2d(params.pixels, params.pixels, 3, padding=1)
        self.out = OwnLinear(m, params.pixels, 1)
        self.out.bias.data[:, 0, 0] = statistics.mean.diagonal()

    def encode(self, frames: SharedFrames) -> list[Tensor]:
        """Tokens (p, k, h, w, c) at strides 2, 4, 8, 16 of the sources of each pass."""
        x = own(self.stems, frames.images, frames.modality)[0][frames.slots]
        scales = []
        for k, (blocks, norm) in enumerate(zip(self.encoder, self.seen, strict=True)):
            x = self.merge[k - 1](x) if k else x
            for block in blocks:
                x = block(x, frames.filled)
            scales.append(norm(x))
        return scales

    def decode(self, scales: list[Tensor], filled: Tensor, target: Tensor) -> Tensor:
        """Encoder tokens and filled (q, k) of every query -> images (q, h, w)."""
        x = None
        for k in reversed(range(len(scales))):
            wanted = self.queries[k][target][:, None, None, None]
            x = wanted.expand(-1, 1, *scales[k].shape[2:4], -1) if x is None else self.expand[k](x) + wanted
            for block in self.decoder[k]:
                x = block(x, scales[k], filled)
        pixels = functional.gelu(self.smooth(self.to_pixels(x).squeeze(1).permute(0, 3, 1, 2)))
        return self.out(pixels, target).squeeze(1)

    def forward(self, images: Tensor, query: Query, *, generator: torch.Generator | None = None) -> Prediction:
        """One image per query; the sources of a pass are encoded once for all its targets."""
        h, w = images.shape[-2:]
        passes = Passes.of(query)
        frames = SharedFrames.of(padded(images, MULTIPLE), passes)
        scales = [tokens[passes.which] for tokens in self.encode(frames)]
        return Prediction(self.decode(scales, frames.filled[passes.which], query.target)[:, :h, :w])


class Critic(nn.Module):
    """D(y): sees the image and what contrast it claims to be."""

    def __init__(self, params: Params, m: int) -> None:
        super().__init__()
        self.patches = PatchCritic(m, 0, params.critic)

    def forward(self, images: Tensor, query: Query, image: Tensor) -> list[Tensor]:
        """image (q, h, w), real or synthetic -> features of all levels, the scores last; `images` are not looked at."""
        return self.patches(image, query.target)


COMPONENT = ModelSpec(name="mmt", params=Params, build=MMT, objective="mmt", adversary=Critic)
