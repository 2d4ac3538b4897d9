"""The convolutional encoder: the size of a CPU, and the ablation of Hiera."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from medk2n.models.layers.blocks import ChannelNorm, Film, ResidualBlock, scale_for_gelu
from medk2n.models.layers.shared_passes import own
from medk2n.models.layers.unet_trunk import Pyramid
from medk2n.models.medk2n_parts.frame_encoder import CONTEXT_STRIDES, STRIDES, EncoderSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """Nothing to choose: its channels are the model's `widths`."""

    name: Literal["conv"] = "conv"


class Stem(nn.Conv2d):
    """A modality's own first convolution, to stride 2."""

    def __init__(self, slices: int, channels: int) -> None:
        super().__init__(slices, channels, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        """x (f, s, h, w) -> [(f, c, h / 2, w / 2)]."""
        return [super().forward(x)]


class ConvEncoder(nn.Module):
    """A stem that goes to stride 2 at once and residual stages at 4, 8, 16, all conditioned on the modality.

    The first convolution is each modality's own (specific beside shared parts: they help, and cost nothing);
    everything after it is shared. It is kept light: there is one pass a frame, and what is seen only where inputs are
    compared voxel by voxel is the synthesizer's work.
    """

    strides = CONTEXT_STRIDES

    def __init__(self, params: Params, m: int, slices: int, channels: dict[int, int], embedding: int) -> None:
        super().__init__()
        self.stem = nn.ModuleList(Stem(slices, channels[2]) for _ in range(m))
        self.film = Film(embedding, channels[2])
        self.down, self.stage = nn.ModuleDict(), nn.ModuleDict()
        for stride in STRIDES[1:]:
            self.down[str(stride)] = nn.Conv2d(channels[stride // 2], channels[stride], 3, stride=2, padding=1)
            self.stage[str(stride)] = ResidualBlock(channels[stride], embedding)
        self.norm = nn.ModuleDict({str(s): ChannelNorm(channels[s]) for s in CONTEXT_STRIDES})
        scale_for_gelu(self)
        for stem in self.stem:
            nn.init.uniform_(stem.bias, -1.0, 1.0)  # a reference beside which a channel norm keeps brightness

    def forward(self, frames: Tensor, modality: Tensor, e: Tensor) -> Pyramid:
        """As the contract says."""
        frames = frames.contiguous(memory_format=torch.channels_last)
        first = own(self.stem, (frames - 0.4) / 0.25, modality)[0]
        pyramid = {2: functional.gelu(self.film(first, e))}
        for stride in STRIDES[1:]:
            pyramid[stride] = self.stage[str(stride)](self.down[str(stride)](pyramid[stride // 2]), e)
        return {s: self.norm[str(s)](pyramid[s]) for s in CONTEXT_STRIDES}


COMPONENT = EncoderSpec(name="conv", params=Params, build=ConvEncoder)
