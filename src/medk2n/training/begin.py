"""What a fresh model of a run begins with: weights that were learned before, and a decision what runs the scan."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from medk2n.config.params import read_params
from medk2n.config.schema import ModelChoice
from medk2n.models.medk2n_parts.mamba import resolve_backend
from medk2n.pretrained import find_trunk, read_trunk
from medk2n.registry import resolve


def chosen(choice: ModelChoice) -> Any:
    """The params of a model, held against what it knows, and its weights against what is there; nothing is read yet.

    Raises:
        ConfigError: a setting that is unknown or refused, or weights that are not there.
    """
    params = read_params(resolve("models", choice.name).params, choice.params, f"models.{choice.name}.params")
    if _has_weights(params):
        find_trunk(params.encoder)
    return params


def begin(module: nn.Module, params: Any, device: torch.device) -> Any:
    """Fill in what the params name; returns them with what was read (its SHA-256) and decided recorded.

    Raises:
        ConfigError: the weights are not there or do not fit, or kernels were asked for where there are none.
    """
    if _has_weights(params):
        weights, digest = read_trunk(params.encoder)
        module.encoder.adopt(weights, digest)
        params = replace(params, encoder=module.encoder.params)
    multiscale = getattr(params, "multiscale", None)
    if multiscale is not None and multiscale.scan != "none":
        ran = resolve_backend(multiscale.backend, device)
        params = replace(params, multiscale=replace(multiscale, ran=ran))
    return params


def _has_weights(params: Any) -> bool:
    return bool(getattr(getattr(params, "encoder", None), "weights", None))
