"""A layer with weights of each target's own."""

import torch
from torch import Tensor, nn


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
