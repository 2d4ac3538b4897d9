"""The error estimate: Gaussian negative log-likelihood on a detached mean."""

import torch
from torch import Tensor


def gaussian_nll(mean: Tensor, log_variance: Tensor, target: Tensor, inside: Tensor) -> Tensor:
    """(q, h, w) each -> (q,). The mean is detached: hard voxels (lesions) are not starved (Seitzer 2022)."""
    squared = torch.where(inside, target - mean.detach(), 0.0).square()
    value = 0.5 * (log_variance + squared * (-log_variance).exp())
    return torch.where(inside, value, 0.0).sum(dim=(1, 2)) / inside.sum(dim=(1, 2)).clamp_min(1)
