"""ThresholdNet: what a predicted gain is held against: tau_j in dB, and T_j, within how many dB it is in doubt.

Both are numbers of each target, learned from the error of the answer that they lead to (`losses/gains.py`). A network
that knew the pair, its history, their compatibility and the state's quality, as in the paper, gave no better threshold:
W is a gain, and whatever makes it likely speaks in W already (docs/lab-log.md).

Shapes: q queries.
"""

import math

import torch
from torch import Tensor, nn

_SOFTNESS_DB = 0.25


class ThresholdNet(nn.Module):
    """tau_j and T_j of each of m targets."""

    def __init__(self, m: int) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros(m))
        self.softness = nn.Parameter(torch.full((m,), math.log(_SOFTNESS_DB)))  # log of T

    def forward(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Targets (q,) -> tau and T (q,) in dB."""
        return self.level[target], self.softness[target].exp()
