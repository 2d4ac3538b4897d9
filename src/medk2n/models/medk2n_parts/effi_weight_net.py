"""EffiWeightNet: how far a frame is let in: P_ij = sigmoid((W_ij - tau_j) / T_j), the effective weight.

P is the share of the answer that sees the frame: y = P y(C + i) + (1 - P) y(C). Where the predicted gain lies far above
tau or far below it the frame is in or out; in doubt the answer lies between, which is nearer to the truth than either
is on average: two guesses err in different places. W, which predicts a measurement, is not moved by that.

In the paper P is a map. Maps from local evidence were built and measured: on scans that they had not seen they said
nothing beyond chance (docs/lab-log.md). What a user lays down still is a map.

Shapes: q queries.
"""

import torch
from torch import Tensor, nn

from medk2n.models.layers.blocks import full_precision
from medk2n.models.medk2n_parts.threshold_net import ThresholdNet

_ALL, _NONE = 0.95, 0.05


class EffiWeightNet(nn.Module):
    """The gate, with the threshold that it stands at."""

    def __init__(self, m: int) -> None:
        super().__init__()
        self.threshold = ThresholdNet(m)

    @full_precision
    def forward(self, weight: Tensor, target: Tensor) -> Tensor:
        """W (q,) in dB for targets (q,) -> P (q,) in [0, 1]."""
        tau, softness = self.threshold(target)
        return ((weight.detach() - tau) / softness).sigmoid()


def settled(presence: Tensor) -> Tensor:
    """P that is nearly 0 or 1 is 0 or 1: another pass would not show."""
    return torch.where(presence > _ALL, 1.0, torch.where(presence < _NONE, 0.0, presence))
