"""A U-Net's layers (Ronneberger 2015): the reference row, and what the joint pass runs on."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from medk2n.models.parts.blocks import ChannelNorm
from medk2n.models.parts.encoder import Pyramid

TRUNK_STRIDES = (1, 2, 4, 8, 16)
SIZES = ((24, 40, 72, 112, 144), (32, 64, 96, 160, 224), (64, 96, 160, 256, 320))
"""Channels at these strides, small to large."""


class Double(nn.Sequential):
    """Two 3 x 3 convolutions, each with norm and GELU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            ChannelNorm(outputs),
            nn.GELU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            ChannelNorm(outputs),
            nn.GELU(),
        )


class Trunk(nn.Module):
    """Down and up again with skips; an image of every modality comes out, and starts at that modality's mean.

    Args:
        inputs: channels.
        widths: channels at strides 1, 2, 4, 8, 16.
        mean: (m,), scaled, of each modality.
    """

    def __init__(self, inputs: int, widths: tuple[int, ...], mean: Tensor) -> None:
        super().__init__()
        self.first = Double(inputs, widths[0])
        self.down = nn.ModuleList(Double(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.up = nn.ModuleList(Double(a + b, a) for a, b in zip(widths[-2::-1], widths[:0:-1], strict=True))
        self.out = nn.Conv2d(widths[0], len(mean), 1)
        nn.init.zeros_(self.out.weight)
        self.out.bias.data.copy_(mean)

    def forward(self, x: Tensor) -> tuple[Pyramid, Tensor]:
        """x (d, inputs, h, w), h and w multiples of 16 -> features at all strides, images (d, m, h, w)."""
        x = self.first(x.contiguous(memory_format=torch.channels_last))
        skips = [x]
        for stage in self.down:
            x = stage(functional.max_pool2d(x, 2))
            skips.append(x)
        features = {TRUNK_STRIDES[-1]: skips.pop()}
        for stride, stage in zip(TRUNK_STRIDES[-2::-1], self.up, strict=True):
            x = stage(torch.cat([functional.interpolate(x, scale_factor=2.0, mode="nearest"), skips.pop()], dim=1))
            features[stride] = x
        return features, self.out(x)
