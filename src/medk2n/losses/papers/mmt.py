"""MMT (Liu 2023): absolute error of missing targets and of re-made sources, and an adversarial term by least squares.

The weights are ours, and not tuned: re-made sources weigh what they weigh for all models.
"""

from torch import Tensor, nn

from medk2n.losses._spec import Asked
from medk2n.losses.adversarial import confront
from medk2n.losses.reconstruction import absolute_error
from medk2n.models._spec import Prediction

ADVERSARIAL = 0.005


def objective(prediction: Prediction, asked: Asked, adversary: nn.Module | None) -> dict[str, Tensor]:
    """Parts of the loss; `critic` teaches the adversary."""
    verdict = confront(adversary, prediction, asked)
    pixels = absolute_error(prediction.mean, asked.target, asked.inside)
    return {
        "pixels": (asked.share * pixels).sum(),
        "adversarial": ADVERSARIAL * verdict.caught,
        "critic": verdict.fooled,
    }


COMPONENT = objective
