"""What a paper's objective is given and gives."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from medk2n.models._spec import Prediction, Query


@dataclass(frozen=True, slots=True)
class Asked:
    """What q answers are judged by.

    Attributes:
        images: (b, m, s, h, w), what the sources are read from.
        query: what was asked.
        target: (q, h, w) scaled; anything outside.
        inside: (q, h, w) bool, the foreground.
        share: (q,) weight of each answer, 1 in sum; re-made sources have less.
    """

    images: Tensor
    query: Query
    target: Tensor
    inside: Tensor
    share: Tensor


Objective = Callable[[Prediction, Asked, nn.Module | None], dict[str, Tensor]]
"""(prediction, asked, adversary) -> weighted parts of the loss, always under the same names; their sum is minimised.

A part that teaches the adversary must not move the model, nor the other way round (`losses/adversarial.py`).
"""
