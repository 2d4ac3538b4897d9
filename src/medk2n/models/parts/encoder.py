"""Modality as frame: one encoder turns every 2.5-D frame into a pyramid (design, section 3).

The convolutional trunk is the CPU size; the trunk is a plug-in, so that Hiera can take its place:
whatever has `channels` and maps frames to strides 2, 4, 8, 16 fits.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from medk2n.models.parts.blocks import ChannelNorm, FaintConv2d, Film, ResidualBlock

STRIDES = (2, 4, 8, 16)
FUSED_STRIDES = (4, 8, 16)

Pyramid = dict[int, Tensor]
"""Stride -> (f, c, h / stride, w / stride)."""


class ConvEncoder(nn.Module):
    """A stem that goes to stride 2 at once, residual stages at 4, 8, 16 and a neck, all conditioned on the modality.

    The first convolution is each modality's own (specific beside shared parts: they help, and cost nothing);
    everything after it is shared. Nothing is computed at stride 1, where most time went: four sub-pixels are channels
    of their voxel, and the heads lay them out again.
    """

    def __init__(self, m: int, slices: int, channels: dict[int, int], embedding: int) -> None:
        super().__init__()
        self.channels = channels
        self.stem = nn.ModuleList(nn.Conv2d(slices, channels[2], 4, stride=2, padding=1) for _ in range(m))
        self.film = Film(embedding, channels[2])
        self.down, self.stage = nn.ModuleDict(), nn.ModuleDict()
        for stride in STRIDES[1:]:
            self.down[str(stride)] = nn.Conv2d(channels[stride // 2], channels[stride], 3, stride=2, padding=1)
            self.stage[str(stride)] = ResidualBlock(channels[stride], embedding)
        self.neck = Neck(channels, embedding)

    def forward(self, frames: Tensor, modality: Tensor, e: Tensor) -> Pyramid:
        """frames (f, s, h, w) with h and w multiples of 16, modality (f,), e (f, embedding) -> the pyramid."""
        rows = [(modality == i).nonzero().squeeze(1) for i in modality.unique()]
        parts = [self.stem[int(modality[r[0]])]((frames[r] - 0.4) / 0.25) for r in rows]
        first = torch.cat(parts)[torch.cat(rows).argsort()]
        pyramid = {2: functional.gelu(self.film(first, e))}
        for stride in STRIDES[1:]:
            pyramid[stride] = self.stage[str(stride)](self.down[str(stride)](pyramid[stride // 2]), e)
        return self.neck(pyramid, e)


class Neck(nn.Module):
    """Top-down path of a feature pyramid (Lin 2017): every stride comes to know its surroundings.

    Understanding a frame is done here, once per frame, so that what is done per target can stay light.
    """

    def __init__(self, channels: dict[int, int], embedding: int) -> None:
        super().__init__()
        finer = STRIDES[-2::-1]
        self.reduce = nn.ModuleDict({str(s): FaintConv2d(channels[2 * s], channels[s], 1) for s in finer})
        self.block = nn.ModuleDict({str(s): ResidualBlock(channels[s], embedding) for s in finer})
        self.norm = nn.ModuleDict({str(s): ChannelNorm(channels[s]) for s in STRIDES})

    def forward(self, pyramid: Pyramid, e: Tensor) -> Pyramid:
        """Bottom-up pyramid of f frames, e (f, embedding) -> the same shapes, every voxel normalised."""
        x = pyramid[STRIDES[-1]]
        out = {STRIDES[-1]: self.norm[str(STRIDES[-1])](x)}
        for stride in STRIDES[-2::-1]:
            key = str(stride)
            x = functional.interpolate(self.reduce[key](x), scale_factor=2.0, mode="nearest") + pyramid[stride]
            x = self.block[key](x, e)
            out[stride] = self.norm[key](x)
        return out
