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
        self.skip = nn.ModuleDict({str(s): Film(embedding, channels[s]) for s in strides})
        self.merge = nn.ModuleDict({str(s): nn.Conv2d(channels[s], channels[s], 3, padding=1) for s in strides})
        self.norm = nn.ModuleDict({str(s): nn.GroupNorm(8, channels[s]) for s in strides})
        self.film = nn.ModuleDict({str(s): Film(embedding, channels[s]) for s in strides})
        self.refine = nn.ModuleDict({str(s): ResidualBlock(channels[s], embedding) for s in (8, 4)})

    def forward(self, state: Pyramid, e: Tensor) -> tuple[Tensor, Tensor]:
        """state of q queries, e (q, embedding) -> features (q, c1, h, w) and (q, c2, h / 2, w / 2)."""
        half = x = self.bottom(state[16], e)
        for stride in (8, 4, 2, 1):
            half, key = x, str(stride)  # after the loop: the features at stride 2
            x = functional.interpolate(self.reduce[key](x), scale_factor=2.0, mode="nearest")
            x = functional.gelu(self.norm[key](x + self.skip[key](state[stride], e)))
            x = x + functional.gelu(self.film[key](self.merge[key](x), e))
            if stride >= 4:
                x = self.refine[key](x, e)
        return x, half


class ConvHead(nn.Module):
    """Reads the full-resolution features: good at fine texture."""

    def __init__(self, channels: dict[int, int], outputs: int) -> None:
        super().__init__()
        self.out = nn.Conv2d(channels[1], outputs, 3, padding=1)

    def forward(self, full: Tensor, half: Tensor) -> Tensor:
        return self.out(full)


class SubPixelHead(nn.Module):
    """Reads the half-resolution features and shuffles channels into pixels (Shi 2016): good at smooth regions."""

    def __init__(self, channels: dict[int, int], outputs: int) -> None:
        super().__init__()
        self.out = nn.Conv2d(channels[2], 4 * outputs, 3, padding=1)

    def forward(self, full: Tensor, half: Tensor) -> Tensor:
        return functional.pixel_shuffle(self.out(half), 2)


class TaskHeadNet(nn.Module):
    """A per-voxel mixture of the heads: each gives a residual to the base image, a log-variance and a vote.

    The mixture's variance is the total variance, sum pi (s^2 + mu^2) - mean^2, with mu and pi
    detached: the variance follows the mean and never teaches it, so hard voxels are not starved.
    Heads start at zero, so training starts at the base image.
    """

    HEADS = (ConvHead, SubPixelHead)

    def __init__(self, channels: dict[int, int], start_log_variance: float) -> None:
        super().__init__()
        self.heads = nn.ModuleList(head(channels, 3) for head in self.HEADS)
        for head in self.heads:
            nn.init.zeros_(head.out.weight)
            bias = torch.zeros(3, len(head.out.bias) // 3)
            bias[1] = start_log_variance
            # pixel_shuffle takes channel c * 4 + k to channel c, so outputs are contiguous groups
            head.out.bias.data = bias.reshape(-1)

    def forward(self, full: Tensor, half: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
        """base (q, h, w) -> mean and log-variance, both (q, h, w)."""
        outputs = torch.stack([head(full, half) for head in self.heads], dim=1)  # (q, heads, 3, h, w)
        residual, log_variance, vote = outputs.unbind(dim=2)
        pi = vote.softmax(dim=1)
        mean = (pi * residual).sum(dim=1)
        mu, share = residual.detach(), pi.detach()
        variance = (share * (log_variance.clamp(-12, 3).exp() + mu.square())).sum(dim=1)
        variance = variance - (share * mu).sum(dim=1).square()
        return base + mean, variance.clamp_min(1e-6).log()
