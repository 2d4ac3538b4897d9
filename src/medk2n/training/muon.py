"""Muon: the momentum of a hidden convolution is made orthogonal before it is applied (Jordan 2024)."""

from collections.abc import Iterable

import torch
from torch import Tensor

_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Odd polynomial that drives singular values into about 0.7 to 1.2 (Jordan 2024)."""

_ADAMW_RMS = 0.2
"""Root mean square of a usual AdamW update: with it both take the same learning rate (Liu 2025, equation 4)."""


class Muon(torch.optim.Optimizer):
    """For weights (outputs, inputs, ...) of convolutions; biases, gains and layers of few channels want AdamW.

    torch.optim.Muon takes matrices alone and orthogonalises in bfloat16, which takes 60 times as long on a CPU
    without bfloat16 units; this takes convolutions, in their own precision.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float = 0.0, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update with Nesterov momentum; `closure` is not used."""
        for group in self.param_groups:
            momentum = group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                mean = state["momentum"].lerp_(p.grad, 1 - momentum)
                update = orthogonal(p.grad.lerp(mean, momentum).flatten(1))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.view(p.shape), alpha=-group["lr"] * _ADAMW_RMS * max(update.shape) ** 0.5)


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """(rows, columns) -> about U V^T of its singular value decomposition, by Newton-Schulz iteration.

    All steps are polynomials of one Gram matrix, so they are multiplied as small squares and applied once.
    """
    a, b, c = _QUINTIC
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = x / (x.norm() + 1e-7)
    gram = x @ x.T
    whole = torch.eye(len(gram), dtype=x.dtype, device=x.device)
    for _ in range(steps):
        once = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        once.diagonal().add_(a)
        whole = once @ whole
        gram = once @ gram @ once
    x = whole @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T
