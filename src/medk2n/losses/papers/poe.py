"""The negative evidence lower bound of a hierarchical VAE (in the manner of MMHVAE, Dorent 2025), with a weighted KL.

|x_j - y_j| + BETA sum over levels l of KL(q(z_l | z_>l, x_S) || p(z_l | z_>l)), in nats a voxel.
"""

import torch
from torch import Tensor, nn

from medk2n.losses._spec import Asked
from medk2n.losses.reconstruction import absolute_error
from medk2n.models.poe import PoEPrediction

BETA = 1e-3
"""As of a Laplace likelihood of that scale; ours, and not tuned."""


def objective(prediction: PoEPrediction, asked: Asked, adversary: nn.Module | None) -> dict[str, Tensor]:
    """Parts of the loss."""
    pixels = absolute_error(prediction.mean, asked.target, asked.inside)
    latents = prediction.latents
    voxels = latents[0][0].mean[:, 0].numel()
    moments = [(q.mean, q.log_variance, p.mean, p.log_variance) for q, p in latents]
    nats = sum(divergence(*level).sum() for level in moments) / voxels
    return {"pixels": (asked.share * pixels).sum(), "divergence": BETA * nats}


def divergence(mean: Tensor, log_variance: Tensor, prior_mean: Tensor, prior_log_variance: Tensor) -> Tensor:
    """KL of one normal distribution from another, element by element."""
    ratio = log_variance - prior_log_variance
    apart = (mean - prior_mean).square() * torch.exp(-prior_log_variance)
    return 0.5 * (ratio.exp() + apart - 1 - ratio)


COMPONENT = objective
