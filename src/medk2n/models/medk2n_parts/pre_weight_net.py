"""PreWeightNet: what a frame is worth to a target, given the state: W_ij, a predicted gain in dB.

The gain is 10 log10 of the target's mean squared error without the frame over that with it: signed, so that a frame
that does harm has a weight below 0. It is regressed on gains measured while training, and moved by nothing else
(`losses/gains.py`). The paper's memory bank, and its history of a pair, said nothing that the evidence does not
(docs/lab-log.md).

Shapes: q queries, d embedding width, f facts.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from medk2n.models.layers.blocks import full_precision, mlp

MOST_DB = 10.0
"""Gains beyond this are as good, or as bad, as this."""


class PreWeightNet(nn.Module):
    """W_ij = MLP[x_ij]: x_ij encodes the evidence and both embeddings."""

    def __init__(self, facts: int, embedding: int, hidden: int = 64) -> None:
        super().__init__()
        self.encode = mlp(facts + 2 * embedding, hidden, hidden)
        self.weigh = mlp(hidden, hidden, 1)

    @full_precision
    def forward(self, facts: Tensor, e_i: Tensor, e_j: Tensor) -> Tensor:
        """facts (q, f); e_i, e_j (q, d) -> W (q,) in dB."""
        x = self.encode(torch.cat([facts, e_i, e_j], dim=1))
        return MOST_DB * torch.tanh(self.weigh(functional.gelu(x)).squeeze(1) / 3)
