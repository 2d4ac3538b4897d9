"""One decoder for all targets, conditioned on e_j (design, section 6), and structurally different heads."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from medk2n.models.parts.blocks import Film, ResidualBlock
from medk2n.models.parts.encoder import Pyramid


class Decoder(nn.Module):
    """Coarse to fine; the target's embedding modulates every level.

    Channels are reduced before upsampling and skips are added, not concatenated: the two finest
    levels cost most of the time and see a third of the multiplications this way.
    """

    def __init__(self, channels: dict[int, int], embedding: int) -> None:
        super().__init__()
        self.bottom = ResidualBlock(channels[16], embedding)
        strides = (8, 4, 2, 1)
        self.reduce = nn.ModuleDict({str(s): nn.Conv2d(channels[2 * s], channels[s], 1) for s in strides})
        self.norm = nn.ModuleDict({str(s): nn.GroupNorm(4, channels[s]) for s in strides})
        self.merge = nn.ModuleDict({str(s): nn.Conv2d(channels[s], channels[s], 3, padding=1) for s in strides})
        self.film = nn.ModuleDict({str(s): Film(embedding, channels[s]) for s in strides})
        self.refine = ResidualBlock(channels[8], embedding)

    def forward(self, state: Pyramid, e: Tensor) -> tuple[Tensor, Tensor]:
        """state of q queries, e (q, embedding) -> features (q, c1, h, w) and (q, c2, h / 2, w / 2)."""
        half = x = self.bottom(state[16], e)
        for stride in (8, 4, 2, 1):
            half, key = x, str(stride)  # after the loop: the features at stride 2
            x = functional.interpolate(self.reduce[key](x), scale_factor=2.0, mode="nearest") + state[stride]
            x = functional.gelu(self.film[key](self.merge[key](functional.gelu(self.norm[key](x))), e))
            if stride == 8:
                x = self.refine(x, e)
        return x, half


class ConvHead(nn.Module):
    """Reads the full-resolution features: good at fine texture."""

    def __init__(self, m: int, channels: dict[int, int], outputs: int) -> None:
        super().__init__()
        self.m = m
        self.out = nn.Conv2d(channels[1], m * outputs, 1)

    def forward(self, full: Tensor, half: Tensor, target: Tensor) -> Tensor:
        """-> (q, outputs, h, w), each query by its target's own weights."""
        return _own(self.out(full), self.m, target)


class SubPixelHead(nn.Module):
    """Reads the half-resolution features and shuffles channels into pixels (Shi 2016): good at smooth regions."""

    def __init__(self, m: int, channels: dict[int, int], outputs: int) -> None:
        super().__init__()
        self.m = m
        self.out = nn.Conv2d(channels[2], m * 4 * outputs, 1)

    def forward(self, full: Tensor, half: Tensor, target: Tensor) -> Tensor:
        """-> (q, outputs, h, w), each query by its target's own weights."""
        return functional.pixel_shuffle(_own(self.out(half), self.m, target), 2)


def _own(everything: Tensor, m: int, target: Tensor) -> Tensor:
    """(q, m outputs, h, w) -> (q, outputs, h, w) of each query's target."""
    rows = torch.arange(len(target), device=target.device)
    return everything.unflatten(1, (m, -1))[rows, target]


class TaskHeadNet(nn.Module):
    """A per-voxel mixture of the heads: each gives a residual to the base image, a log-variance and a vote.

    The mixture's variance is the total variance, sum pi (s^2 + mu^2) - mean^2, with mu and pi
    detached: the variance follows the mean and never teaches it, so hard voxels are not starved.
    Heads start at zero, so training starts at the base image.
    """

    HEADS = (ConvHead, SubPixelHead)

    def __init__(self, m: int, channels: dict[int, int], start_log_variance: float) -> None:
        super().__init__()
        self.heads = nn.ModuleList(head(m, channels, 3) for head in self.HEADS)
        for head in self.heads:
            nn.init.zeros_(head.out.weight)
            # pixel_shuffle takes channel c * 4 + k to channel c, so outputs are contiguous groups
            bias = torch.zeros(m, 3, len(head.out.bias) // (3 * m))
            bias[:, 1] = start_log_variance
            head.out.bias.data = bias.reshape(-1)

    def forward(self, full: Tensor, half: Tensor, base: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """base (q, h, w), target (q,) -> mean and log-variance, both (q, h, w)."""
        outputs = torch.stack([head(full, half, target) for head in self.heads], dim=1)  # (q, heads, 3, h, w)
        residual, log_variance, vote = outputs.unbind(dim=2)
        pi = vote.softmax(dim=1)
        mean = (pi * residual).sum(dim=1)
        mu, share = residual.detach(), pi.detach()
        variance = (share * (log_variance.clamp(-12, 3).exp() + mu.square())).sum(dim=1)
        variance = variance - (share * mu).sum(dim=1).square()
        return base + mean, variance.clamp_min(1e-6).log()
