"""The base image: the least-squares map from the frames that were let in to a target.

Solved from what training subjects say about pairs of modalities. It carries detail finer than the working grid from the
inputs to the output, as far as the synthesized image follows it (`inference/predictor.py`). (A precision-weighted mean
of the pairs' maps, which takes their errors for independent, was 0.5 dB worse than the better of two: docs/lab-log.md.)
"""

import torch
from torch import Tensor, nn

from medk2n.models._spec import Statistics


class LinearMaps(nn.Module):
    """L_S for any set S of sources and any target, from means, deviations and correlations of pairs."""

    def __init__(self, statistics: Statistics) -> None:
        super().__init__()
        for name in ("mean", "deviation", "correlation"):
            self.register_buffer(name, getattr(statistics, name).clone())

    def forward(self, members: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """members (q, m) bool, target (q,) -> slopes (q, m), 0 where not a member, and intercepts (q,)."""
        inside = members.to(self.correlation.dtype)
        both = inside[:, :, None] * inside[:, None, :]
        system = self.correlation * both + torch.diag_embed(1 - inside)
        beta = torch.linalg.solve(system, inside * self.correlation[target])
        # moments of the sources, and of the target, among the subjects that have both
        centre, spread = self.mean.T[target], self.deviation.T[target]
        share = inside / inside.sum(dim=1, keepdim=True).clamp_min(1)
        height, width = (share * self.mean[target]).sum(dim=1), (share * self.deviation[target]).sum(dim=1)
        slope = width[:, None] * beta / spread
        return slope, height - (slope * centre).sum(dim=1)
