"""Queries that see the same sources of the same sample share one pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from medk2n.models._spec import Query


@dataclass(frozen=True, slots=True)
class Passes:
    """Every pair of sample and sources once.

    Attributes:
        sample: (p,).
        sources: (p, m) bool.
        which: (q,) the pass of every query.
    """

    sample: Tensor
    sources: Tensor
    which: Tensor

    @classmethod
    def of(cls, query: Query) -> "Passes":
        """The passes of q queries."""
        wanted = torch.cat([query.sample[:, None], query.sources.long()], dim=1)
        distinct, which = wanted.unique(dim=0, return_inverse=True)
        return cls(distinct[:, 0], distinct[:, 1:].bool(), which)


def stacked(images: Tensor, sources: Tensor) -> Tensor:
    """images (p, m, s, h, w) of which only `sources` (p, m) are read -> (p, m s + m, h, w), presence masks last."""
    seen = torch.where(sources[:, :, None, None, None], images, 0.0).flatten(1, 2)
    mask = sources[:, :, None, None].to(images.dtype).expand(-1, -1, *images.shape[-2:])
    return torch.cat([seen, mask], dim=1)


def padded(images: Tensor, multiple: int) -> Tensor:
    """Zeros below and to the right, up to multiples of so many pixels."""
    h, w = images.shape[-2:]
    return functional.pad(images, (0, -w % multiple, 0, -h % multiple))


@dataclass(frozen=True, slots=True)
class SharedFrames:
    """The frames that any pass needs, each once, and where the passes find theirs.

    Attributes:
        images: (f, s, h, w).
        modality: (f,).
        slots: (p, k) frames of each pass in the order of modalities; k is the largest number of sources.
        filled: (p, k) bool; what stands in an empty slot means nothing.
    """

    images: Tensor
    modality: Tensor
    slots: Tensor
    filled: Tensor

    @classmethod
    def of(cls, images: Tensor, passes: Passes) -> "SharedFrames":
        """images (b, m, s, h, w); what no pass needs is never read."""
        needed = torch.zeros(images.shape[:2], dtype=torch.long, device=images.device)
        needed = needed.index_add(0, passes.sample, passes.sources.long()) > 0
        row = needed.flatten().cumsum(0).view_as(needed) - 1
        order = passes.sources.int().argsort(dim=1, descending=True, stable=True)
        order = order[:, : int(passes.sources.sum(dim=1).max())]
        slots = row[passes.sample].gather(1, order).clamp_min(0)
        return cls(images[needed], needed.nonzero()[:, 1], slots, passes.sources.gather(1, order))


def own(modules: nn.ModuleList, x: Tensor, owner: Tensor) -> Sequence[Tensor]:
    """Each row of x (r, ...) through the module of its owner (r,); what they return, a list of tensors, row by row."""
    rows = [(owner == i).nonzero().squeeze(1) for i in owner.unique()]
    parts = [modules[int(owner[r[0]])](x[r]) for r in rows]
    back = torch.cat(rows).argsort()
    return [torch.cat(levels)[back] for levels in zip(*parts, strict=True)]
