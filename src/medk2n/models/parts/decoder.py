"""One decoder for all targets, conditioned on e_j (design, section 6), and structurally different heads."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from medk2n.models.parts.blocks import ChannelNorm, FaintConv2d, Film
from medk2n.models.parts.encoder import FUSED_STRIDES, STRIDES, Pyramid


class Decoder(nn.Module):
    """Coarse to fine: a target's fused state on top of what the joint pass shows; its embedding modulates every level.

    Channels are reduced before upsampling and skips are added, not concatenated: the finest level costs most
    of the time and sees a third of the multiplications this way.
    """

    def __init__(self, channels: dict[int, int], embedding: int) -> None:
        super().__init__()
        strides = STRIDES[-2::-1]
        self.reduce = nn.ModuleDict({str(s): FaintConv2d(channels[2 * s], channels[s], 1) for s in strides})
        self.norm = nn.ModuleDict({str(s): ChannelNorm(channels[s]) for s in strides})
        self.merge = nn.ModuleDict({str(s): nn.Conv2d(channels[s], channels[s], 3, padding=1) for s in strides})
        self.film = nn.ModuleDict({str(s): Film(embedding, channels[s]) for s in strides})

    def forward(self, state: Pyramid, context: Pyramid, e: Tensor) -> Tensor:
        """state (strides 4, 8, 16), context (2 too), e (q, embedding) -> features (q, c2, h / 2, w / 2)."""
        x = state[STRIDES[-1]] + context[STRIDES[-1]]
        for stride in STRIDES[-2::-1]:
            key = str(stride)
            x = functional.interpolate(self.reduce[key](x), scale_factor=2.0, mode="nearest") + context[stride]
            if stride in FUSED_STRIDES:
                x = x + state[stride]
            x = functional.gelu(self.film[key](self.merge[key](functional.gelu(self.norm[key](x))), e))
        return x


class OwnLinear(nn.Module):
    """A 1 x 1 convolution with weights of each target's own; zero at the start."""

    def __init__(self, m: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(m, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(m, 1, outputs))

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """x (q, inputs, h, w), target (q,) -> (q, outputs, h, w)."""
        voxels = x.permute(0, 2, 3, 1)
        out = torch.baddbmm(self.bias[target], voxels.flatten(1, 2), self.weight[target])
        return out.unflatten(1, voxels.shape[1:3]).permute(0, 3, 1, 2)


class SmoothHead(nn.Module):
    """One value a voxel of stride 2, interpolated: good at smooth regions."""

    def __init__(self, m: int, channels: dict[int, int], outputs: int) -> None:
        super().__init__()
        self.out = OwnLinear(m, channels[2], outputs)

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        """-> (q, outputs, h, w), each query by its target's own weights."""
        return functional.interpolate(self.out(features, target), scale_factor=2.0, mode="bilinear")


class SubPixelHead(nn.Module):
    """Shuffles channels into pixels (Shi 2016): good at fine texture."""

    def __init__(self, m: int, channels: dict[int, int], outputs: int) -> None:
        super().__init__()
        self.out = OwnLinear(m, channels[2], 4 * outputs)

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        """-> (q, outputs, h, w), each query by its target's own weights."""
        return functional.pixel_shuffle(self.out(features, target), 2)


class TaskHeadNet(nn.Module):
    """A per-voxel mixture of the heads: each follows the base image and the proposal so far and adds a residual.

    A head gives a gain of the base image, one of what the proposal adds to it, a residual, a log-variance and a vote.
    The log-variance starts at the level that the state predicts for the whole image, and says where it is off.
    The mixture's variance is the total variance, sum pi (s^2 + mu^2) - mean^2, with mu and pi detached: the variance
    follows the mean and never teaches it, so hard voxels are not starved. Training starts at the proposal.
    """

    HEADS = (SmoothHead, SubPixelHead)
    LOGIT_SCALE = 10.0
    """Of log-variances and votes, which have to move by whole units where images move by hundredths: Adam steps alike
    in all, and without it the variance stayed where it had started (docs/lab-log.md)."""

    def __init__(self, m: int, channels: dict[int, int]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(head(m, channels, 5) for head in self.HEADS)
        for head in self.heads:
            # pixel_shuffle takes channel c * 4 + k to channel c, so outputs are contiguous groups
            head.out.bias.data.view(m, 5, -1)[:, :2] = 1.0

    def forward(
        self, features: Tensor, base: Tensor, proposal: Tensor, level: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, (q, h, w) each.

        Args:
            features: (q, c2, h / 2, w / 2).
            base: (q, h, w).
            proposal: (q, h, w), learned from its own error alone: no gradient goes there.
            level: (q,), log mean squared error that is expected of the image; no gradient goes there either.
            target: (q,).
        """
        outputs = torch.stack([head(features, target) for head in self.heads], dim=1)  # (q, heads, 5, h, w)
        gain, trust, residual, doubt, vote = outputs.unbind(dim=2)
        pi = (self.LOGIT_SCALE * vote).softmax(dim=1)
        image = gain * base[:, None] + trust * (proposal.detach() - base)[:, None] + residual
        mean = (pi * image).sum(dim=1)
        mu, share = image.detach(), pi.detach()
        log_variance = (level.detach()[:, None, None, None] + self.LOGIT_SCALE * doubt).clamp(-12, 3)
        # around the mean: far fewer digits are lost than in sum pi mu^2 - mean^2
        spread = (mu - mean.detach()[:, None]).square()
        variance = (share * (log_variance.exp() + spread)).sum(dim=1)
        return mean, variance.clamp_min(1e-6).log()
