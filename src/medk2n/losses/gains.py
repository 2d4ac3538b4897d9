"""What teaches the weighting networks: gains that were measured, in dB, and where they arose.

The gain of frame i for target j, given a state, is 10 log10 of the target's mean squared error without the frame over
that with it. It is below 0 where the frame does harm.
"""

import torch
from torch import Tensor
from torch.nn import functional

from medk2n.losses.reconstruction import mean_squared_error
from medk2n.models.medk2n_parts.effi_weight_net import WINDOW
from medk2n.models.medk2n_parts.pre_weight_net import MOST_DB

_FLOOR = 1e-5
_SPARED = 0.2
"""A window's frame is shut out where it adds more than this share of the error: what is smaller is mostly chance."""


def gain_db(without: Tensor, having: Tensor, target: Tensor, inside: Tensor) -> Tensor:
    """Measured gain (q,) of one image over another, (q, h, w) each, inside (q, h, w)."""
    errors = [mean_squared_error(x, target, inside) + _FLOOR for x in (without, having)]
    return 10 * (errors[0] / errors[1]).log10()


def weight_error(weight: Tensor, gain: Tensor) -> Tensor:
    """Regress W on gains, (n,) in dB: Huber's loss, so that W is a typical gain and no outlier's."""
    return functional.huber_loss(weight, gain.clamp(-MOST_DB, MOST_DB))


def gate_error(logit: Tensor, gain: Tensor, cost: float) -> Tensor:
    """Cross-entropy of gates (n,) against the sign of gain minus cost (dB), weighted by its size."""
    worth = gain - cost
    return _weighted(logit, (worth > 0).to(logit.dtype), worth.abs().clamp_max(MOST_DB / 2) / 2)


def map_error(logit: Tensor, without: Tensor, having: Tensor, target: Tensor, inside: Tensor) -> Tensor:
    """Cross-entropy of maps (q, 1, h / 8, w / 8) against where the frame removed squared error, weighted by how much.

    Args:
        without, having, target: (q, h, w), h and w multiples of 8.
        inside: (q, h, w) bool.
    """
    before, after = (
        functional.avg_pool2d(torch.where(inside, (x - target).square(), 0.0)[:, None], WINDOW)
        for x in (without, having)
    )
    removed = before - after
    harm = removed < -_SPARED * before
    share = removed.abs() / (before + after).sum(dim=(1, 2, 3), keepdim=True).clamp_min(_FLOOR)
    return functional.binary_cross_entropy_with_logits(logit, (~harm).to(logit.dtype), share, reduction="sum") / len(
        logit
    )


def set_error(without: Tensor, having: Tensor, gain: Tensor, inside: Tensor) -> Tensor:
    """The predicted errors of two sets of frames have to differ as the true ones do.

    Args:
        without, having: (q, h, w) log-variances.
        gain: (q,) measured, in dB.
        inside: (q, h, w) bool.
    """
    mass = inside.sum(dim=(1, 2)).clamp_min(1)
    errors = [torch.where(inside, x.exp(), 0.0).sum(dim=(1, 2)) / mass for x in (without, having)]
    told = 10 * (errors[0] / errors[1]).log10()
    return functional.huber_loss(told, gain.clamp(-MOST_DB, MOST_DB))


def memory_use(attention: Tensor, target: Tensor) -> Tensor:
    """A memory that is used: all slots of a target alike, each read by few of them.

    Attention (n, L) of reads for targets (n,): log L minus the entropy of the mean use of each target's bank, plus a
    tenth of the mean entropy of a read.
    """
    slots = attention.shape[1]
    total, loss = len(target), attention.new_zeros(())
    for j in target.unique():
        use = attention[target == j]
        loss = loss + len(use) / total * (torch.log(use.new_tensor(float(slots))) - _entropy(use.mean(dim=0)))
    return loss + 0.1 * _entropy(attention).mean()


def _entropy(share: Tensor) -> Tensor:
    return torch.special.entr(share.clamp_min(1e-9)).sum(dim=-1)


def _weighted(logit: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logit, wanted, weight)
