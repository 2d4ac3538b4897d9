"""EffiWeightNet: where a frame that was let in counts: P_ij, a presence map in [0, 1].

P_ij = g_ij sigmoid(Conv[evidence | W_ij, tau_ij, m_ij, e_i, e_j]), from evidence of windows of 8 x 8 voxels and, for
what is larger, of 32 x 32. It is taught by the sign of what the frame removed of the squared error in each window,
weighted by its size (`losses/gains.py`).

Shapes: q queries, l kinds of evidence, d embedding width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from medk2n.models.layers.blocks import Film, full_precision

WINDOW = 8
"""Side of a window in voxels."""
_WIDER = 4


class EffiWeightNet(nn.Module):
    """Two scales of evidence, conditioned on what the other two networks said."""

    def __init__(self, kinds: int, embedding: int, width: int = 24) -> None:
        super().__init__()
        self.condition = nn.Linear(3 * embedding + 2, embedding)
        self.squeeze = nn.Conv2d(2 * kinds + 1, width, 1)
        self.film = Film(embedding, width)
        self.look = nn.Conv2d(width, width, 3, padding=1)
        self.out = nn.Conv2d(width, 1, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.constant_(self.out.bias, 3.0)  # a frame that was let in counts, until something speaks against it

    @full_precision
    def forward(self, local: Tensor, mass: Tensor, said: Tensor) -> Tensor:
        """Logit of P in each window, (q, 1, h / 8, w / 8), before the gate.

        Args:
            local: (q, l, h / 8, w / 8) evidence.
            mass: (q, 1, h / 8, w / 8) share of the patient in each window.
            said: (q, 3 d + 2) W, tau, memory and both embeddings.
        """
        h, w = local.shape[-2:]
        weighed = functional.avg_pool2d(torch.cat([local * mass, mass], dim=1), _WIDER, ceil_mode=True)
        wider = weighed[:, :-1] / weighed[:, -1:].clamp_min(1e-3)
        wider = functional.interpolate(wider, scale_factor=float(_WIDER), mode="nearest")[..., :h, :w]
        x = self.squeeze(torch.cat([local, wider, mass], dim=1))
        x = functional.gelu(self.film(x, functional.gelu(self.condition(said.detach()))))
        return self.out(functional.gelu(self.look(x)))


def as_map(logit: Tensor, size: tuple[int, int]) -> Tensor:
    """Windows (q, 1, h / 8, w / 8) -> P (q, h, w) of that size."""
    fine = functional.interpolate(logit.sigmoid(), scale_factor=float(WINDOW), mode="bilinear", align_corners=False)
    return fine[:, 0, : size[0], : size[1]]
