"""TaskHeadNet: light heads of different structure make every target's image and its error from shared features.

A head says of every voxel an image, a log-variance and a vote; the image is the mean of the heads by their votes, the
variance that of the mixture (total variance). Each target's weights are made from its embedding e_j, so that a new
target needs no new head. The variance follows the image and never teaches it (its inputs are detached): hard voxels,
such as lesions, are not starved (Seitzer 2022).

Shapes: p passes, n targets, c channels, d embedding width.
"""

import torch
from torch import Tensor, nn

from medk2n.models.layers.blocks import ChannelNorm, scale_for_gelu

_LOGITS = 4.0
"""Votes and log-variances move by whole units where images move by hundredths, and Adam steps alike in all."""
_START = -4.6
"""Log-variance at the start: that of an error of a tenth of the range."""


class TaskHeadNet(nn.Module):
    """A sharp head (each voxel's own features) and a smooth one (features of 7 x 7 voxels around it).

    Args:
        channels: of the features.
        embedding: width of e_j.
        mean: (m,), scaled, of each modality: where its image starts.
        doubt: channels of the path to the variance, at full resolution.
    """

    HEADS = ("sharp", "smooth")

    def __init__(self, channels: int, embedding: int, mean: Tensor, doubt: int = 12) -> None:
        super().__init__()
        self.wide = nn.Sequential(
            nn.Conv2d(channels, channels, 7, padding=3, groups=channels), ChannelNorm(channels), nn.GELU()
        )
        self.doubt = nn.Sequential(
            nn.Conv2d(channels, doubt, 3, padding=1),
            ChannelNorm(doubt),
            nn.GELU(),
            nn.Conv2d(doubt, doubt, 1),
            nn.GELU(),
        )
        scale_for_gelu(self)
        heads = len(self.HEADS)
        self.seen = nn.Linear(embedding, heads * 2 * channels)
        self.level = nn.Linear(embedding, heads * 2)
        self.doubted = nn.Linear(embedding, heads * (doubt + 1))
        for layer in (self.seen, self.level, self.doubted):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.register_buffer("mean", mean.clone())

    def forward(self, features: Tensor, e: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of every target from every pass, (p, n, h, w) each; 32-bit under autocast too.

        Args:
            features: (p, c, h, w).
            e: (n, d), embeddings of the targets.
            target: (n,), their indices.
        """
        heads, n = len(self.HEADS), len(target)
        views = (features, self.wide(features))
        doubt = self.doubt(features.detach())
        with torch.autocast(features.device.type, enabled=False):
            e = e.float()
            seen = self.seen(e).view(n, heads, 2, -1)
            level = self.level(e).view(n, heads, 2)
            doubted = self.doubted(e.detach()).view(n, heads, -1)
            images, votes, spreads = [], [], []
            for k, view in enumerate(views):
                said = _linear(view.float(), seen[:, k].flatten(0, 1), level[:, k].flatten()).unflatten(1, (n, 2))
                images.append(self.mean[target][:, None, None] + said[:, :, 0])
                votes.append(_LOGITS * said[:, :, 1])
                spreads.append(_LOGITS * _linear(doubt.float(), doubted[:, k, :-1], doubted[:, k, -1]) + _START)
            image, share = torch.stack(images), torch.stack(votes).softmax(dim=0)
            mean = (share * image).sum(dim=0)
            apart = (image.detach() - mean.detach()).square()  # around the mean: fewer digits are lost
            variance = (share.detach() * (torch.stack(spreads).clamp(-12, 3).exp() + apart)).sum(dim=0)
            return mean, variance.clamp_min(1e-6).log()


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (p, c, h, w), weight (n, c), bias (n,) -> (p, n, h, w); a product of matrices, however x lies in memory."""
    return torch.baddbmm(bias[:, None], weight.expand(len(x), -1, -1), x.flatten(2)).unflatten(2, x.shape[2:])
