"""MM-Synthesis (Chartsias 2018): what the fused latent gives, what each gives alone, and their variance.

sum over targets j of [|g_j(max_i z_i) - y_j| + sum over sources i of |g_j(z_i) - y_j|] + Var_i(z_i), weights 1.
"""

from torch import Tensor, nn

from medk2n.losses._spec import Asked
from medk2n.losses.reconstruction import absolute_error
from medk2n.models.mm_synthesis import MMSynthesisPrediction


def objective(prediction: MMSynthesisPrediction, asked: Asked, adversary: nn.Module | None) -> dict[str, Tensor]:
    """Parts of the loss; a single source is counted once, as the fused latent that it is."""
    fused = absolute_error(prediction.mean, asked.target, asked.inside)
    alone, of = fused.new_zeros(()), prediction.of
    if len(of):
        error = absolute_error(prediction.alone, asked.target[of], asked.inside[of])
        alone = (asked.share[of] * error).sum()
    return {
        "fused": (asked.share * fused).sum(),
        "alone": alone,
        "variance": prediction.variance.mean(),
    }


COMPONENT = objective
