"""What teaches the weighting networks: gains that were measured, in dB.

The gain of frame i for target j, given a state, is 10 log10 of the target's mean squared error without the frame over
that with it. It is below 0 where the frame does harm.
"""

import torch
from torch import Tensor
from torch.nn import functional

from medk2n.losses.reconstruction import mean_squared_error
from medk2n.models.medk2n_parts.pre_weight_net import MOST_DB

_FLOOR = 1e-5


def gain_db(without: Tensor, having: Tensor, target: Tensor, inside: Tensor) -> Tensor:
    """Measured gain (q,) of one image over another, (q, h, w) each, inside (q, h, w)."""
    errors = [mean_squared_error(x, target, inside) + _FLOOR for x in (without, having)]
    return 10 * (errors[0] / errors[1]).log10()


def weight_error(weight: Tensor, gain: Tensor) -> Tensor:
    """Regress W on gains, (n,) in dB: Huber's loss, so that W is a typical gain and no outlier's."""
    return functional.huber_loss(weight, gain.clamp(-MOST_DB, MOST_DB))


def presence_error(share: Tensor, without: Tensor, having: Tensor, target: Tensor, inside: Tensor) -> Tensor:
    """Mean error in dB of answers that lie between two, over that of the better of the two.

    Args:
        share: (q,) of the second.
        without, having, target: (q, h, w).
        inside: (q, h, w) bool.
    """
    between = torch.lerp(without, having, share[:, None, None])
    best, _ = torch.stack([gain_db(x, between, target, inside) for x in (without, having)]).min(dim=0)
    return -best.mean()


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
