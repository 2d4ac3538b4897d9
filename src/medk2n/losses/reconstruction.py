"""How far an image is from its target, inside the foreground.

Shapes: predicted and target (q, h, w) scaled, inside (q, h, w) bool -> (q,).
"""

import torch
from torch import Tensor

_FLOOR = 1e-3  # 30 dB: what is as good as that, such as a re-made input, no longer drowns what is to be learned


def mean_squared_error(predicted: Tensor, target: Tensor, inside: Tensor) -> Tensor:
    """Mean over the foreground; targets may hold anything outside."""
    squared = torch.where(inside, predicted - target, 0.0).square()
    return squared.sum(dim=(1, 2)) / inside.sum(dim=(1, 2)).clamp_min(1)


def log_mse(predicted: Tensor, target: Tensor, inside: Tensor) -> Tensor:
    """Half the log of the mean squared error: minimising it maximises the mean PSNR (CodeBrain's choice)."""
    return 0.5 * (mean_squared_error(predicted, target, inside) + _FLOOR).log()


def edge_error(predicted: Tensor, target: Tensor, inside: Tensor) -> Tensor:
    """Mean absolute difference of the finite differences: keeps what is sharp sharp."""
    total = 0.0
    error = torch.where(inside, predicted - target, 0.0)
    for dim in (1, 2):
        both = inside.narrow(dim, 1, inside.shape[dim] - 1) & inside.narrow(dim, 0, inside.shape[dim] - 1)
        step = torch.where(both, error.diff(dim=dim), 0.0)
        total = total + step.abs().sum(dim=(1, 2)) / both.sum(dim=(1, 2)).clamp_min(1)
    return total


def absolute_error(predicted: Tensor, target: Tensor, inside: Tensor) -> Tensor:
    """Mean absolute error over the foreground: the pixel-wise loss of most papers."""
    error = torch.where(inside, predicted - target, 0.0).abs()
    return error.sum(dim=(1, 2)) / inside.sum(dim=(1, 2)).clamp_min(1)
