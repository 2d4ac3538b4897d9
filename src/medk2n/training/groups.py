"""Which parameters learn how fast, and by which optimiser."""

from typing import Any

import torch
from torch import Tensor, nn

from medk2n.config.schema import Optimiser
from medk2n.training.muon import Muon


def optimisers(module: nn.Module, settings: Optimiser) -> list[torch.optim.Optimizer]:
    """Muon for convolutions of 8 channels or more on either side, AdamW for the rest; gains and biases never decay.

    A part of the module that has `parameter_groups` says itself how its parameters are grouped: AdamW takes those. What
    is frozen is left out. Every group has a `scale`, by which the run's learning rate is multiplied for it.
    """
    rate, decay = settings.learning_rate, settings.weight_decay
    own = [group for part in module.modules() if hasattr(part, "parameter_groups") for group in part.parameter_groups()]
    taken = {id(p) for group in own for p in group["params"]}
    hidden, matrices, others = [], [], []
    for p in (p for p in module.parameters() if p.requires_grad and id(p) not in taken):
        group = hidden if p.ndim == 4 and min(p.shape[:2]) >= 8 else matrices if p.ndim > 1 else others
        group.append(p)
    rest = [_group(matrices, decay), _group(others, 0.0), *({"weight_decay": decay} | group for group in own)]
    return [
        Muon([_group(hidden, decay)], rate),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), fused=True),
    ]


def _group(parameters: list[Tensor], decay: float) -> dict[str, Any]:
    return {"params": parameters, "weight_decay": decay, "scale": 1.0}
