"""ThresholdNet: how large a predicted gain has to be before a frame is let in: tau_ij in dB.

It weighs risk: letting a bad frame in costs more than leaving a good one out, and W, a typical gain, says nothing of
that. The gate is g_ij = [W_ij > tau_ij]; tau is taught by the sign of the measured gain, weighted by its size, through
the logit (W - tau) / T (`losses/gains.py`), and W is not moved by it.

Shapes: q queries, d embedding width.
"""

import torch
from torch import Tensor, nn

from medk2n.models.layers.blocks import full_precision, mlp

LOWEST_DB, HIGHEST_DB = -1.0, 3.0
TEMPERATURE_DB = 0.5
"""T: a gate's gradient lives where W is within about 2 dB of tau."""


class ThresholdNet(nn.Module):
    """tau_ij from the pair, its measured history p_ij, compatibility C_ij and the state's quality."""

    def __init__(self, embedding: int, hidden: int = 32) -> None:
        super().__init__()
        self.bilinear = nn.Parameter(torch.eye(embedding) / embedding)
        self.decide = mlp(2 * embedding + 4, hidden, 1)
        nn.init.constant_(self.decide[-1].bias, -1.1)  # about 0 dB

    @full_precision
    def forward(self, e_i: Tensor, e_j: Tensor, history: Tensor, agreement: Tensor, quality: Tensor) -> Tensor:
        """e_i, e_j (q, d); history p_ij in dB, agreement and quality (q,) -> tau (q,) in dB."""
        compatible = ((e_i @ self.bilinear) * e_j).sum(dim=1)
        told = torch.stack([history, compatible, agreement, quality], dim=1)
        share = self.decide(torch.cat([e_i, e_j, told], dim=1)).squeeze(1).sigmoid()
        return LOWEST_DB + (HIGHEST_DB - LOWEST_DB) * share


def gate_logit(weight: Tensor, threshold: Tensor) -> Tensor:
    """(W - tau) / T; the gate is open above 0. W predicts a measurement: the gate's teaching does not move it."""
    return (weight.detach() - threshold) / TEMPERATURE_DB
