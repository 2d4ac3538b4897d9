"""What a user lays down about the fusion, and what a study's fusion decided: orders, bounds, plans."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from medk2n.models._spec import Query


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One step of a study's plan for one target.

    Attributes:
        source: modality index of the frame.
        weight: W_ij, the predicted gain in dB.
        threshold: tau_j in dB; 0 of the key frame.
        gate: P_ij, how far it is let in: 0 out, 1 in (the key frame), in doubt between.
    """

    source: int
    weight: float
    threshold: float
    gate: float


Plan = dict[int, tuple[PlannedStep, ...]]
"""Target index -> its steps, key frame first."""


@dataclass(frozen=True, slots=True)
class Control:
    """What a user laid down; indices as in the query.

    Attributes:
        order: target -> sources in the order they are to be added, key frame first; the content orders all others.
        bounds: (target, source) -> (b, 2, h, w), lowest and highest presence per voxel of each sample. Such a source is
            not chosen as key frame, which enters whole.
    """

    order: Mapping[int, Sequence[int]] = field(default_factory=dict)
    bounds: Mapping[tuple[int, int], Tensor] = field(default_factory=dict)

    def candidates(self, query: Query) -> Tensor:
        """Sources that may be key frames, (q, m) bool: what was laid down, as far as a query has such sources."""
        if not self.order and not self.bounds:
            return query.sources
        allowed = query.sources.clone()
        for q, j in enumerate(query.target.tolist()):
            bounded = torch.tensor([(j, i) in self.bounds for i in range(allowed.shape[1])], device=allowed.device)
            if ahead := self._ahead(query, q):
                allowed[q] = torch.arange(allowed.shape[1], device=allowed.device) == ahead[0]
            elif (query.sources[q] & ~bounded).any():
                allowed[q] &= ~bounded
        return allowed

    def reorder(self, rank: Tensor, query: Query) -> None:
        """Lift what was put in an order above every rank (q, m) that the content gives."""
        for q in range(len(rank) if self.order else 0):
            for position, i in enumerate(ahead := self._ahead(query, q)):
                rank[q, i] = 3e4 + len(ahead) - position

    def _ahead(self, query: Query, q: int) -> list[int]:
        return [i for i in self.order.get(int(query.target[q]), ()) if query.sources[q, i]]

    def bound(self, presence: Tensor, query: Query, rows: Tensor, source: Tensor) -> Tensor:
        """Presence maps (r, h, w) of some queries' frames, moved into the bounds that were laid down for them."""
        if not self.bounds:
            return presence
        out = presence.clone()
        for k, (row, i) in enumerate(zip(rows.tolist(), source.tolist(), strict=True)):
            limits = self.bounds.get((int(query.target[row]), i))
            if limits is not None:
                h, w = limits.shape[-2:]
                grown = (0, presence.shape[2] - w, 0, presence.shape[1] - h)
                low, high = functional.pad(limits[query.sample[row]], grown, mode="replicate")
                out[k] = presence[k].clamp(low, high)
        return out
