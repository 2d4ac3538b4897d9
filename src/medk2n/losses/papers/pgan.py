"""pGAN (Dar 2019): pixel-wise, adversarial and perceptual loss, L1 + (LSGAN + 10 features) / 100.

The paper weighs its pixel-wise loss by 100 against an adversarial one of 1; here all is divided by 100. Its perceptual
loss compares features of VGG16, trained on photographs that no other model here may see; in its place stand the
discriminator's own features with the weight 10 that goes with them (feature matching, Wang 2018, equation 4).
"""

from torch import Tensor, nn

from medk2n.losses._spec import Asked
from medk2n.losses.adversarial import confront
from medk2n.losses.reconstruction import absolute_error
from medk2n.models._spec import Prediction

ADVERSARIAL, FEATURES = 0.01, 0.1


def objective(prediction: Prediction, asked: Asked, adversary: nn.Module | None) -> dict[str, Tensor]:
    """Parts of the loss; `critic` teaches the adversary."""
    verdict = confront(adversary, prediction, asked)
    pixels = absolute_error(prediction.mean, asked.target, asked.inside)
    return {
        "pixels": (asked.share * pixels).sum(),
        "adversarial": ADVERSARIAL * verdict.caught,
        "features": FEATURES * verdict.unlike,
        "critic": verdict.fooled,
    }


COMPONENT = objective
