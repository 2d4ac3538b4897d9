"""A U-Net's layers (Ronneberger 2015): the reference row, and what Med-K2N's synthesizer runs on."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from medk2n.models.layers.blocks import ChannelNorm

TRUNK_STRIDES = (1, 2, 4, 8, 16)
SIZES = ((24, 40, 72, 112, 144), (32, 64, 96, 160, 224), (64, 128, 256, 384, 512))
"""Channels at these strides, small to large."""

Pyramid = dict[int, Tensor]
"""Stride -> (f, c, h / stride, w / stride)."""


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
    """Down and up again with skips: channels in, features at full resolution out.

    Args:
        inputs: channels.
        widths: channels at strides 1, 2, 4, 8, 16.
    """

    def __init__(self, inputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.first = Double(inputs, widths[0])
        self.down = nn.ModuleList(Double(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.up = nn.ModuleList(Double(a + b, a) for a, b in zip(widths[-2::-1], widths[:0:-1], strict=True))

    def forward(self, x: Tensor, beside: Pyramid | None = None) -> Tensor:
        """x (d, inputs, h, w), h and w multiples of 16 -> (d, widths[0], h, w).

        Args:
            beside: stride -> what is added to the features of that stride on the way down.
        """
        x = self.first(x.contiguous(memory_format=torch.channels_last))
        skips = [x]
        for stride, stage in zip(TRUNK_STRIDES[1:], self.down, strict=True):
            x = stage(functional.max_pool2d(x, 2))
            if beside and stride in beside:
                x = x + beside[stride]
            skips.append(x)
        x = skips.pop()
        for stage in self.up:
            x = stage(torch.cat([functional.interpolate(x, scale_factor=2.0, mode="nearest"), skips.pop()], dim=1))
        return x
