"""The loss of a step, for any model: reconstruction for all, and what only Med-K2N's networks need."""

import torch
from torch import Tensor, nn

from medk2n.config.schema import LossWeights
from medk2n.data.batches import Batch
from medk2n.losses import fusion
from medk2n.losses._spec import Asked, Objective
from medk2n.losses.likelihood import gaussian_nll
from medk2n.losses.reconstruction import edge_error, log_mse, mean_squared_error
from medk2n.models._spec import Prediction, Query
from medk2n.models.parts.joint import Proposals
from medk2n.registry import resolve


def objective(
    prediction: Prediction,
    batch: Batch,
    query: Query,
    weights: LossWeights,
    variance: Tensor,
    *,
    paper: str | None = None,
    adversary: nn.Module | None = None,
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """The loss to minimise, the detached mean squared error per query, and the parts for the log.

    Args:
        variance: (m,) error of predicting each modality's mean.
        paper: a baseline's own objective in `losses/papers` instead of the common one, with its adversary.
    """
    target = batch.targets[query.sample, query.target]
    inside = batch.foreground[query.sample]
    remade = query.sources.gather(1, query.target[:, None]).squeeze(1)
    share = torch.where(remade, weights.remade, 1.0)
    share = share / share.sum()
    mse = mean_squared_error(prediction.mean, target, inside)
    if paper is not None:
        own: Objective = resolve("losses/papers", paper)
        parts = own(prediction, Asked(batch.images, query, target, inside, share), adversary)
        return sum(parts.values()), mse.detach(), {name: float(value.detach()) for name, value in parts.items()}
    parts = {
        "log_mse": weights.log_mse * (share * log_mse(prediction.mean, target, inside)).sum(),
        "edges": weights.edges * (share * edge_error(prediction.mean, target, inside)).sum(),
    }
    if prediction.log_variance is not None:
        nll = gaussian_nll(prediction.mean, prediction.log_variance, target, inside)
        parts["likelihood"] = weights.likelihood * (share * nll).sum()
    fused = prediction.extras.get("fused")
    if fused is not None:
        parts["weights"] = weights.weights * fusion.key_weight_error(fused, query.sources, mse, variance[query.target])
        parts["gates"] = weights.gates * fusion.open_gates(fused)
        parts["memory"] = weights.memory * fusion.memory_collapse(fused)
        parts["proposals"] = proposal_error(prediction.extras["seen"].proposals, batch, weights)
        parts["quality"] = weights.quality * fusion.quality_error(fused, mse)
    return sum(parts.values()), mse.detach(), {name: float(value.detach()) for name, value in parts.items()}


def proposal_error(proposals: Proposals, batch: Batch, weights: LossWeights) -> Tensor:
    """What the joint pass proposes for every image that its crop is asked about: judged as the answer is."""
    passes = proposals.passes
    row, target = batch.acquired[passes[:, 0]].nonzero().unbind(dim=1)
    sample = passes[row, 0]
    share = torch.where(passes[row, 1 + target] > 0, weights.remade, 1.0)
    share = share / share.sum()
    h, w = batch.foreground.shape[-2:]
    image, truth, inside = (
        proposals.images[row, target, :h, :w],
        batch.targets[sample, target],
        batch.foreground[sample],
    )
    error = weights.log_mse * log_mse(image, truth, inside) + weights.edges * edge_error(image, truth, inside)
    return (share * error).sum()
