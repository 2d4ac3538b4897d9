"""What anchors the weighting networks: measured gains, a price for open gates, a memory that is used.

A gain is the share of the mean squared error that a source removes: 1 - mse(with) / mse(without),
clipped to [0, 1]. Against the empty state, "without" is the error of predicting the target's mean.
"""

import torch
from torch import Tensor
from torch.nn import functional

from medk2n.models.parts.encoder import FUSED_STRIDES
from medk2n.models.parts.sequence import Fused

WINDOW = FUSED_STRIDES[-1]
"""Side, in voxels, of the windows in which a gain is measured: those of the coarsest map."""


def key_weight_error(fused: Fused, sources: Tensor, mse: Tensor, variance: Tensor) -> Tensor:
    """Regress the first-look weight on what the key frame alone achieved: only queries of one source tell."""
    alone = sources.sum(dim=1) == 1
    if not alone.any():
        return mse.new_zeros(())
    gain = (1 - mse.detach() / variance).clamp(0, 1)
    return divergence(fused.steps[0].weight[alone], gain[alone]).mean()


def added_weight_error(fused: Fused, dropped: Tensor, gain: Tensor) -> Tensor:
    """Regress the weight of the step that added source `dropped` (q,) on its measured gain (q,); -1 is none."""
    total, count = gain.new_zeros(()), 0
    for step in fused.steps[1:]:
        here = (step.source == dropped) & (dropped >= 0)
        if here.any():
            total = total + divergence(step.weight[here], gain[here].clamp(0, 1)).sum()
            count += int(here.sum())
    return total / max(count, 1)


def local_gain(image: Tensor, without: Tensor, target: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """What a source removed of the squared error in each window of 16 x 16 voxels, and how much of it is foreground.

    Args:
        image, without: (q, h, w), with and without the source; no gradient.
        target: (q, h, w).
        inside: (q, h, w) bool.

    Returns:
        (q, 1, h / 16, w / 16) each, in [0, 1], rounded up to whole windows.
    """
    h, w = target.shape[-2:]
    errors = [torch.where(inside, (x - target).square(), 0.0) for x in (image, without)]
    rest = torch.stack([*errors, inside.to(target.dtype)], dim=1)
    rest = functional.pad(rest, (0, -w % WINDOW, 0, -h % WINDOW))
    left, before, mass = functional.avg_pool2d(rest, WINDOW).split(1, dim=1)
    return (1 - left / (before + 1e-6)).clamp(0, 1), mass


def added_map_error(fused: Fused, dropped: Tensor, gain: Tensor, mass: Tensor) -> Tensor:
    """Regress the maps of the step that added source `dropped` (q,) on its gain in each window; -1 is none."""
    total, count = gain.new_zeros(()), 0.0
    for step in fused.steps[1:]:
        here = (step.source == dropped) & (dropped >= 0)
        for stride, weight in step.maps.items():
            fine = [functional.interpolate(x[here], scale_factor=WINDOW / stride) for x in (gain, mass)]
            total = total + (fine[1] * divergence(weight[here], fine[0])).sum() / fine[1].sum().clamp_min(1.0)
            count += float(here.any())
    return total / max(count, 1.0)


def divergence(weight: Tensor, gain: Tensor) -> Tensor:
    """Cross-entropy of a weight in (0, 1) against a gain in [0, 1], less its least value: 0 where they agree.

    Unlike a squared error its gradient does not fade where the sigmoid saturates.
    """
    weight = weight.clamp(1e-4, 1 - 1e-4)
    cross = gain * weight.log() + (1 - gain) * (1 - weight).log()
    return -cross - torch.special.entr(gain) - torch.special.entr(1 - gain)


def open_gates(fused: Fused) -> Tensor:
    """Mean gate over the steps taken: a small cost for staying open."""
    taken = [step.gate[step.source >= 0] for step in fused.steps[1:]]
    taken = [gate for gate in taken if len(gate)]
    return torch.cat(taken).mean() if taken else fused.quality.new_zeros(())


def memory_collapse(fused: Fused) -> Tensor:
    """Log of the slots minus the entropy of their mean use: 0 when all slots are used alike."""
    use = torch.cat([attention for attention, _ in fused.attention]).mean(dim=0)
    return torch.log(torch.tensor(float(len(use)))) + (use * (use + 1e-9).log()).sum()


def quality_error(fused: Fused, mse: Tensor) -> Tensor:
    """The state's own estimate of its log error against what it turned out to be."""
    return functional.smooth_l1_loss(fused.quality, (mse.detach() + 1e-4).log())
