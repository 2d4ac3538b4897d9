"""PreWeightNet: what a frame is worth to a target, given the state: W_ij, a predicted gain in dB.

The gain is 10 log10 of the target's mean squared error without the frame over that with it: signed, so that a frame
that does harm has a weight below 0. It is regressed on gains measured while training, and moved by nothing else
(`losses/gains.py`).

Shapes: q queries, d embedding width, f facts.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from medk2n.models.layers.blocks import full_precision, mlp

MOST_DB = 10.0
"""Gains beyond this are as good, or as bad, as this."""


class PreWeightNet(nn.Module):
    """W_ij = MLP[x_ij; m_ij]: x_ij encodes the evidence and both embeddings, m_ij is read from memory bank M_j.

    M_j holds `slots` learned pairs of key and value a target, read by attention between normalised query and keys with
    a learned temperature: patterns of evidence that were met with this target before, and what they meant.
    """

    def __init__(self, m: int, facts: int, embedding: int, slots: int, hidden: int = 64) -> None:
        super().__init__()
        self.encode = mlp(facts + 2 * embedding, hidden, hidden)
        self.query = nn.Linear(hidden, embedding, bias=False)
        self.keys = nn.Parameter(torch.randn(m, slots, embedding))
        self.values = nn.Parameter(torch.randn(m, slots, embedding) * embedding**-0.5)
        self.sharpness = nn.Parameter(torch.tensor(2.0))  # log of the attention's scale
        self.weigh = mlp(hidden + embedding, hidden, 1)

    @full_precision
    def forward(self, facts: Tensor, e_i: Tensor, e_j: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """facts (q, f); e_i, e_j (q, d); target (q,).

        Returns W (q,) in dB, memory m_ij (q, d) and the attention over the slots (q, L).
        """
        x = self.encode(torch.cat([facts, e_i, e_j], dim=1))
        asked, keys = functional.normalize(self.query(x), dim=1), functional.normalize(self.keys[target], dim=2)
        attention = (self.sharpness.clamp(max=4.0).exp() * (keys @ asked[:, :, None]).squeeze(2)).softmax(dim=1)
        memory = (attention[:, :, None] * self.values[target]).sum(dim=1)
        weight = self.weigh(torch.cat([functional.gelu(x), memory], dim=1)).squeeze(1)
        return MOST_DB * torch.tanh(weight / 3), memory, attention
