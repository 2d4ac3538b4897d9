"""CMIM's losses: every image is what it claims to be. Their gradient reaches the image; V, which judges, is frozen.

All targets of a set of frames come from the same inputs, so the images of one pass are what do(target = j) makes of
them, for every j: the intervention is in the batch. V never sees the inputs, and V' never sees a loss.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from medk2n.identity.network import naming_error

_MARGIN = 0.5
_FLAT = 1e-3


def causal_error(v: Callable[[Tensor], Tensor], made: Tensor, truth: Tensor, inside: Tensor, there: Tensor) -> Tensor:
    """What do(target = j) makes of the same inputs is recognised as j, and keeps the edges that all truths share.

    InfoNCE both ways (an image finds its text among all, a text its image among those of the same pass), and the
    difference of shared edges for every two targets of which the truths are known.

    Args:
        v: (n, h, w) -> (n, k) scaled cosines with the texts, of which the first m are the modalities.
        made, truth: (p, m, h, w) scaled; truth may hold anything where it is not there.
        inside: (p, h, w) bool.
        there: (p, m) bool.
    """
    named = naming_error(v, _shown(made, inside[:, None]), there)
    row, j, other = (there[:, :, None] & there[:, None]).triu(diagonal=1).nonzero().unbind(dim=1)
    if not len(row):
        return named
    kept = shared_edges(made[row, j], made[row, other])
    real = shared_edges(truth[row, j], truth[row, other])
    area = inside[row][:, 1:, 1:]
    return (
        named + (torch.where(area, kept - real, 0.0).abs().sum(dim=(1, 2)) / area.sum(dim=(1, 2)).clamp_min(1)).mean()
    )


def shared_edges(one: Tensor, other: Tensor) -> Tensor:
    """How steep the weaker of two images is where both are steep along the same line, up or down: (n, h - 1, w - 1)."""
    (ay, ax), (by, bx) = (_gradient(image) for image in (one, other))
    steep = [(y.square() + x.square() + _FLAT**2).sqrt() for y, x in ((ay, ax), (by, bx))]
    along = (ay * by + ax * bx).abs() / (steep[0] * steep[1])
    return along * torch.minimum(*steep)


def metric_error(see: Callable[[Tensor], Tensor], made: Tensor, truth: Tensor, inside: Tensor, there: Tensor) -> Tensor:
    """Triplets: nearer to the real image of its modality than to the same slice in any other.

    The margin is a share of how far the two real images are apart: where they look alike, nothing has to be invented
    (no enhancement that is not there) to tell them apart.

    Args:
        see: (n, h, w) -> (n, d) of length 1; the others as of `causal_error`.
    """
    row, j, other = (
        (there[:, :, None] & there[:, None] & ~torch.eye(there.shape[1], device=there.device).bool())
        .nonzero()
        .unbind(dim=1)
    )
    if not len(row):
        return made.sum() * 0.0
    at = torch.full(there.shape, -1, device=there.device).masked_scatter(
        there, torch.arange(int(there.sum()), device=there.device)
    )
    with torch.no_grad():
        real = see(_shown(truth, inside[:, None])[there])
    anchor = see(_shown(made, inside[:, None])[there])
    a, own, foreign = anchor[at[row, j]], real[at[row, j]], real[at[row, other]]
    margin = _MARGIN * (1 - (own * foreign).sum(dim=1))
    return functional.relu((a * foreign).sum(dim=1) - (a * own).sum(dim=1) + margin).mean()


def _shown(images: Tensor, inside: Tensor) -> Tensor:
    """As V is shown images: above 0 in the patient, 0 outside."""
    return torch.where(inside, images.clamp(1 / 255, 1), 0.0)


def _gradient(image: Tensor) -> tuple[Tensor, Tensor]:
    return image[:, 1:, 1:] - image[:, :-1, 1:], image[:, 1:, 1:] - image[:, 1:, :-1]
