"""A model against its adversary, by least squares (Mao 2017): real images should score 1, synthetic ones 0."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medk2n.losses._spec import Asked
from medk2n.models._spec import Prediction


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an adversary says of synthetic images beside the real ones.

    Attributes:
        caught: mean squared distance of the synthetic images' scores from 1; moves the model alone.
        fooled: mean squared distance of all scores from what they should be; moves the adversary alone.
        unlike: mean absolute difference of the adversary's features of both, at all levels; moves the model alone.
    """

    caught: Tensor
    fooled: Tensor
    unlike: Tensor


def confront(adversary: nn.Module, prediction: Prediction, asked: Asked) -> Verdict:
    """Show the adversary (images, query, image -> features, the scores last) both; the foreground only."""
    synthetic, real = (torch.where(asked.inside, x, 0.0) for x in (prediction.mean, asked.target))
    with _frozen(adversary):
        *features, scores = adversary(asked.images, asked.query, synthetic)
    *wanted, right = adversary(asked.images, asked.query, real)
    wrong = adversary(asked.images, asked.query, synthetic.detach())[-1]
    unlike = [(a - b.detach()).abs().mean() for a, b in zip(features, wanted, strict=True)]
    return Verdict(
        caught=(scores - 1).square().mean(),
        fooled=0.5 * ((right - 1).square().mean() + wrong.square().mean()),
        unlike=torch.stack(unlike).mean(),
    )


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Gradients pass through and leave nothing there."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
