"""A discriminator that judges patches (Isola 2017): the adversary of pgan and mmt, in training alone."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from medk2n.models.layers.blocks import ChannelNorm


class PatchCritic(nn.Module):
    """Scores of overlapping patches of 54 x 54 voxels: real images should get 1, synthetic ones 0.

    Args:
        m: modalities; which one the image claims to be is told by a channel each.
        condition: further channels that are shown beside the image.
        width: channels at stride 2; twice and four times as many after.
    """

    def __init__(self, m: int, condition: int, width: int) -> None:
        super().__init__()
        self.m = m
        widths = (width, 2 * width, 4 * width)
        inputs = (1 + m + condition, *widths)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in zip(inputs, widths, strict=False))
        self.norm = nn.ModuleList([nn.Identity(), *(ChannelNorm(c) for c in widths[1:])])
        self.last = nn.Conv2d(widths[-1], widths[-1], 3, padding=1)
        self.out = nn.Conv2d(widths[-1], 1, 3, padding=1)

    def forward(self, image: Tensor, target: Tensor, *condition: Tensor) -> list[Tensor]:
        """image (q, h, w), target (q,), conditions (q, c, h, w) -> features of all levels, the scores last."""
        claim = functional.one_hot(target, self.m).to(image.dtype)[:, :, None, None].expand(-1, -1, *image.shape[1:])
        x = torch.cat([image[:, None], claim, *condition], dim=1)
        features = []
        for conv, norm in zip(self.down, self.norm, strict=True):
            x = functional.leaky_relu(norm(conv(x)), 0.2)
            features.append(x)
        features.append(functional.leaky_relu(self.last(x), 0.2))
        return [*features, self.out(features[-1])]
