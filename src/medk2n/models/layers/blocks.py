"""Small blocks used by two or more parts."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Film(nn.Module):
    """Feature-wise linear modulation (Perez 2018): x (1 + scale(e)) + shift(e).

    Starts near the identity, not at it: embeddings that differ must act differently from the first step on.
    """

    def __init__(self, embedding: int, channels: int) -> None:
        super().__init__()
        self.project = nn.Linear(embedding, 2 * channels)
        nn.init.normal_(self.project.weight, std=0.04)
        nn.init.zeros_(self.project.bias)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """x (f, c, h, w), e (f, embedding) -> (f, c, h, w)."""
        scale, shift = self.project(e)[:, :, None, None].chunk(2, dim=1)
        return x * (1 + scale) + shift


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of every voxel (as in NAFNet, Chen 2022).

    Nothing is averaged over the image, so a crop, a whole slice and a slice full of background are treated
    alike: with group norm the models learned on crops and failed on whole heads (docs/lab-log.md).
    """

    def forward(self, x: Tensor) -> Tensor:
        """x (f, c, h, w) -> the same shape."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class FaintConv2d(nn.Conv2d):
    """A convolution whose output is added to something finer or earlier, and starts at a tenth of its strength.

    Until the coarse and the deep learn, they are noise: at full strength they drowned what the finest stride
    already knew (docs/lab-log.md).
    """


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions, normalised; FiLM between them says which modality is meant."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = Film(embedding, channels)
        self.conv2 = FaintConv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.conv1(functional.gelu(self.norm1(x)))
        return x + self.conv2(functional.gelu(self.film(h, e)))


def full_precision(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A module's forward in 32 bits, under autocast too: what decides must not hang on rounding."""

    @wraps(forward)
    def wrapped(self: nn.Module, first: Tensor, *others: Tensor) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return forward(self, first, *others)

    return wrapped


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """One hidden layer."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


def scale_for_gelu(module: nn.Module) -> None:
    """He initialisation of every convolution (He 2015): torch's default lets deep features fade away."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            nn.init.zeros_(part.bias)
        if isinstance(part, FaintConv2d):
            part.weight.data.mul_(0.1)
