"""The loss of a step that is one forward pass: reconstruction, or a paper's own objective."""

import torch
from torch import Tensor, nn

from medk2n.config.schema import LossWeights
from medk2n.data.batches import Batch
from medk2n.losses._spec import Asked, Objective
from medk2n.losses.likelihood import gaussian_nll
from medk2n.losses.reconstruction import edge_error, log_mse, mean_squared_error
from medk2n.models._spec import Prediction, Query
from medk2n.registry import resolve


def objective(
    prediction: Prediction,
    batch: Batch,
    query: Query,
    weights: LossWeights,
    *,
    paper: str | None = None,
    adversary: nn.Module | None = None,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The loss to minimise, the detached mean squared error per query, and the detached parts for the log.

    Args:
        paper: a baseline's own objective in `losses/papers` instead of the common one, with its adversary.
    """
    target = batch.targets[query.sample, query.target]
    inside = batch.foreground[query.sample]
    share = torch.where(query.remade, weights.remade, 1.0)
    share = share / share.sum()
    mse = mean_squared_error(prediction.mean, target, inside)
    if paper is not None:
        own: Objective = resolve("losses/papers", paper)
        parts = own(prediction, Asked(batch.images, query, target, inside, share), adversary)
        return sum(parts.values()), mse.detach(), {name: value.detach() for name, value in parts.items()}
    parts = {
        "log_mse": weights.log_mse * (share * log_mse(prediction.mean, target, inside)).sum(),
        "edges": weights.edges * (share * edge_error(prediction.mean, target, inside)).sum(),
    }
    if prediction.log_variance is not None:
        nll = gaussian_nll(prediction.mean, prediction.log_variance, target, inside)
        parts["likelihood"] = weights.likelihood * (share * nll).sum()
    return sum(parts.values()), mse.detach(), {name: value.detach() for name, value in parts.items()}
