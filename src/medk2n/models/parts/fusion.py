"""The three weighting networks of progressive fusion (design, section 5).

PreWeightNet says how much a source helps a target given the state; ThresholdNet says how much
help is enough; EffiWeightNet says where. All three see content, the pair (source, target) and
the state's quality; none sees a signal that is not there. What they decide is 32-bit under autocast too.

Shapes: q queries, d embedding width, p pooled width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medk2n.models.parts.blocks import Film, mlp, rms_norm
from medk2n.models.parts.encoder import FUSED_STRIDES, Pyramid


@dataclass(frozen=True, slots=True)
class Step:
    """What the networks thought of one frame for every query.

    Attributes:
        frame: (q,) row of the frame among the encoded ones, -1 where the query has no such step.
        source: (q,) modality index, -1 where there is none.
        weight: (q,) W_ij^global in [0, 1], the predicted share of the error that the frame removes.
        threshold: (q,) tau_ij; 0 for the key frame.
        gate: (q,) g_ij in [0, 1]; 1 for the key frame.
        memory: (q, d) what the memory bank answered.
        effective: (q,) mean of the finest W_eff map over the foreground; 1 for the key frame.
        maps: stride -> (q, 1, h / stride, w / stride), W_eff before gate and bounds; empty for the key frame.
    """

    frame: Tensor
    source: Tensor
    weight: Tensor
    threshold: Tensor
    gate: Tensor
    memory: Tensor
    effective: Tensor
    maps: Pyramid


class PreWeightNet(nn.Module):
    """Global contribution W_ij = sigmoid(MLP[x_ij; m_ij]) with a memory bank M_j per target.

    x_ij encodes the pooled state and frame, both embeddings and the state's quality; m_ij is read
    from M_j by attention. W is anchored by measured gains (losses/fusion.py).
    """

    def __init__(self, m: int, pooled: int, embedding: int, slots: int) -> None:
        super().__init__()
        self.encode = mlp(2 * pooled + 2 * embedding + 1, embedding, embedding)
        self.query = nn.Linear(embedding, embedding, bias=False)
        self.keys = nn.Parameter(torch.randn(m, slots, embedding) * embedding**-0.5)
        self.values = nn.Parameter(torch.randn(m, slots, embedding) * embedding**-0.5)
        self.weigh = mlp(2 * embedding, embedding, 1)

    def forward(
        self, state: Tensor, frame: Tensor, e_i: Tensor, e_j: Tensor, quality: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """state, frame (q, p); e_i, e_j (q, d); quality, target (q,).

        Returns W (q,), memory m_ij (q, d) and the attention over the slots (q, L).
        """
        x = self.encode(torch.cat([state, frame, e_i, e_j, quality[:, None]], dim=1))
        scores = (self.keys[target] @ self.query(x)[:, :, None]).squeeze(2) * x.shape[1] ** -0.5
        attention = scores.softmax(dim=1)
        memory = (attention[:, :, None] * self.values[target]).sum(dim=1)
        weight = self.weigh(torch.cat([x, memory], dim=1)).squeeze(1).float().sigmoid()
        return weight, memory, attention


class ThresholdNet(nn.Module):
    """Adaptive filter: tau_ij from the pair, the measured history of the pair and its compatibility."""

    def __init__(self, embedding: int, lowest: float, highest: float) -> None:
        super().__init__()
        self.lowest, self.highest = lowest, highest
        self.bilinear = nn.Parameter(torch.eye(embedding) / embedding)
        self.decide = mlp(2 * embedding + 3, embedding, 1)

    def forward(self, state: Tensor, frame: Tensor, e_i: Tensor, e_j: Tensor, history: Tensor) -> Tensor:
        """state, frame (q, p); e_i, e_j (q, d); history p_ij (q,) -> tau (q,) within its bounds."""
        compatible = ((e_i @ self.bilinear) * e_j).sum(dim=1, keepdim=True)
        agreement = torch.cosine_similarity(state, frame, dim=1)[:, None]
        facts = torch.cat([e_i, e_j, history[:, None], compatible, agreement], dim=1)
        return self.lowest + (self.highest - self.lowest) * self.decide(facts).squeeze(1).float().sigmoid()


class EffiWeightNet(nn.Module):
    """Effective weights: one map per scale, W_ij^eff = g_ij sigmoid(Conv[f, F_i | W, tau, m, e_i, e_j]) in [0, 1].

    Anchored by gains measured where they arose (losses/fusion.py), and by nothing else: it reads without a gradient, as
    PreWeightNet does.
    """

    def __init__(self, channels: dict[int, int], embedding: int, width: int) -> None:
        super().__init__()
        self.condition = nn.Linear(3 * embedding + 2, embedding)
        self.squeeze = nn.ModuleDict({str(s): nn.Conv2d(2 * channels[s], width, 1) for s in FUSED_STRIDES})
        self.film = nn.ModuleDict({str(s): Film(embedding, width) for s in FUSED_STRIDES})
        self.map = nn.ModuleDict({str(s): nn.Conv2d(width, 1, 3, padding=1) for s in FUSED_STRIDES})

    def forward(self, state: Pyramid, frame: Pyramid, facts: Tensor) -> Pyramid:
        """facts (q, 3 d + 2) -> stride -> (q, 1, h / stride, w / stride), in [0, 1], before the gate."""
        c = nn.functional.gelu(self.condition(facts.detach()))
        maps = {}
        for stride in FUSED_STRIDES:
            key = str(stride)
            x = self.squeeze[key](torch.cat([state[stride], frame[stride]], dim=1).detach())
            x = nn.functional.gelu(self.film[key](x, c))
            maps[stride] = self.map[key](x).float().sigmoid()
        return maps


class Refinement(nn.Module):
    """R(F_i, f): what a frame adds to the state, RMS-normalised so that W_eff has a scale."""

    def __init__(self, channels: dict[int, int], embedding: int) -> None:
        super().__init__()
        self.mix = nn.ModuleDict({str(s): nn.Conv2d(2 * channels[s], channels[s], 1) for s in FUSED_STRIDES})
        self.film = nn.ModuleDict({str(s): Film(2 * embedding, channels[s]) for s in FUSED_STRIDES})
        self.first = nn.ModuleDict({str(s): nn.Conv2d(channels[s], channels[s], 1) for s in FUSED_STRIDES})

    def forward(self, state: Tensor, frame: Tensor, stride: int, pair: Tensor) -> Tensor:
        """state, frame (q, c, h, w), pair [e_i; e_j] (q, 2 d) -> (q, c, h, w)."""
        key = str(stride)
        return self.film[key](rms_norm(self.mix[key](torch.cat([state, frame], dim=1))), pair)

    def key(self, frame: Tensor, stride: int, pair: Tensor) -> Tensor:
        """What the key frame (q, c, h, w) starts the state with."""
        key = str(stride)
        return self.film[key](rms_norm(self.first[key](frame)), pair)


def straight_through_gate(weight: Tensor, threshold: Tensor, temperature: float, hard: bool) -> Tensor:
    """g_ij from (W - tau) / T: soft while warming up; then 0 or 1 forward, with the soft gradient backward."""
    soft = ((weight - threshold) / temperature).sigmoid()
    if not hard:
        return soft
    return (weight > threshold).to(soft.dtype) + (soft - soft.detach())  # exactly 0 or 1 forward
