"""Modality as frame: one encoder turns every 2.5-D frame into a pyramid (design, section 3).

The convolutional trunk is the CPU size; the trunk is a plug-in, so that Hiera can take its place:
whatever has `channels` and maps frames to strides 1, 2, 4, 8, 16 fits.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from medk2n.models.parts.blocks import ChannelNorm, Film, ResidualBlock

STRIDES = (1, 2, 4, 8, 16)
FUSED_STRIDES = (4, 8, 16)

Pyramid = dict[int, Tensor]
"""Stride -> (f, c, h / stride, w / stride)."""


class ConvEncoder(nn.Module):
    """A stem at strides 1 and 2 and residual stages at 4, 8, 16, all conditioned on the modality.

    The first convolution is each modality's own (specific beside shared parts: they help, and cost nothing);
    everything after it is shared.
    """

    def __init__(self, m: int, slices: int, channels: dict[int, int], embedding: int) -> None:
        super().__init__()
        self.channels = channels
        self.stem1 = nn.ModuleList(nn.Conv2d(slices, channels[1], 3, padding=1) for _ in range(m))
        self.film1 = Film(embedding, channels[1])
        self.stem2 = nn.Conv2d(channels[1], channels[2], 3, stride=2, padding=1)
        self.norm2 = ChannelNorm(channels[2])
        self.film2 = Film(embedding, channels[2])
        self.refine2 = nn.Conv2d(channels[2], channels[2], 3, padding=1)
        self.down = nn.ModuleDict()
        self.stage = nn.ModuleDict()
        self.norm = nn.ModuleDict()
        for stride in FUSED_STRIDES:
            self.down[str(stride)] = nn.Conv2d(channels[stride // 2], channels[stride], 3, stride=2, padding=1)
            blocks = 1 if stride == 4 else 2
            self.stage[str(stride)] = nn.ModuleList(ResidualBlock(channels[stride], embedding) for _ in range(blocks))
            self.norm[str(stride)] = ChannelNorm(channels[stride])

    def forward(self, frames: Tensor, modality: Tensor, e: Tensor) -> Pyramid:
        """frames (f, s, h, w) with h and w multiples of 16, modality (f,), e (f, embedding) -> the pyramid."""
        first = frames.new_empty(len(frames), self.channels[1], *frames.shape[2:])
        first = first.contiguous(memory_format=torch.channels_last)
        for i in modality.unique().tolist():
            rows = (modality == i).nonzero().squeeze(1)
            first = first.index_copy(0, rows, self.stem1[i]((frames[rows] - 0.4) / 0.25))
        pyramid = {1: functional.gelu(self.film1(first, e))}
        x = functional.gelu(self.film2(self.norm2(self.stem2(pyramid[1])), e))
        pyramid[2] = functional.gelu(self.refine2(x)) + x
        for stride in FUSED_STRIDES:
            x = self.down[str(stride)](pyramid[stride // 2])
            for block in self.stage[str(stride)]:
                x = block(x, e)
            pyramid[stride] = x = self.norm[str(stride)](x)
        return pyramid
