"""How much each input helped each target, in this study: the Shapley value of the predicted quality.

The value of a subset S of inputs is the PSNR in dB that the model predicts for the target when it
is given S alone (from its log-variance, inside the foreground); the value of no input is the PSNR
of predicting the target's mean. Exact over all subsets for up to four inputs; beyond that the loss
when one input is left out, and `method` says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import factorial

import numpy as np
import torch

from medk2n.inference.control import StudyControl
from medk2n.inference.predictor import SlicePredictor, bounding_box, deciding_slices
from medk2n.models._spec import Query

EXACT_UP_TO = 4
_SLICES = 8


@dataclass(frozen=True)
class Contributions:
    """target -> source -> dB, and how it was computed: "shapley" or "leave-one-out"."""

    decibels: dict[str, dict[str, float]]
    method: str


def contributions(
    predictor: SlicePredictor,
    images: Mapping[str, np.ndarray],
    targets: Sequence[str],
    control: StudyControl | None = None,
) -> Contributions:
    """Contribution of every input to every target on some slices of a study; images and control as for `infer`.

    An input that a target must not see contributes 0 to it; a subset of which none may be the key frame is worth as
    little as no input.
    """
    control = control or StudyControl()
    sources = predictor.indices(images)
    exact = len(sources) <= EXACT_UP_TO
    sizes = range(1, len(sources) + 1) if exact else (len(sources) - 1, len(sources))
    values = {
        subset: _predicted(predictor, images, subset, targets, control)
        for k in sizes
        for subset in combinations(sources, k)
    }
    everything = tuple(sources)
    decibels = {}
    for t, target in enumerate(targets):
        worth = {subset: v[t] for subset, v in values.items()}
        worth[()] = -10 * np.log10(predictor.config.statistics.variance[target])
        if exact:
            shares = {i: shapley(worth, everything, i) for i in sources}
        else:
            shares = {i: worth[everything] - worth[tuple(k for k in sources if k != i)] for i in sources}
        seen = predictor.indices(control.sources(target, images))  # others differ from 0 by rounding alone
        decibels[target] = {predictor.modalities[i]: float(v) if i in seen else 0.0 for i, v in shares.items()}
    return Contributions(decibels, "shapley" if exact else "leave-one-out")


def shapley(worth: Mapping[tuple[int, ...], float], players: tuple[int, ...], player: int) -> float:
    """Exact Shapley value (1953): the player's mean marginal worth over all orders; `worth` needs all subsets."""
    others = [p for p in players if p != player]
    n, total = len(players), 0.0
    for size in range(n):
        share = factorial(size) * factorial(n - size - 1) / factorial(n)
        for subset in combinations(others, size):
            total += share * (worth[tuple(sorted((*subset, player)))] - worth[subset])
    return total


@torch.inference_mode()
def _predicted(
    predictor: SlicePredictor,
    images: Mapping[str, np.ndarray],
    subset: tuple[int, ...],
    targets: Sequence[str],
    control: StudyControl,
) -> list[float]:
    """Predicted PSNR of every target from a subset of the inputs, decided as for a whole study."""
    box, depth_range = bounding_box(images)
    at = deciding_slices(depth_range, _SLICES)
    given = {name: array for name, array in images.items() if predictor.modalities.index(name) in subset}
    stack = predictor.stack(given, box, at)
    inside = torch.from_numpy(np.any([array[at][..., *box] > 0 for array in images.values()], axis=0)).to(
        predictor.device
    )
    seen = {predictor.modalities.index(name): control.sources(name, given) for name in targets}
    known = {
        j: predictor.indices(names) for j, names in seen.items() if control.can_start(predictor.modalities[j], names)
    }
    worth = {j: -10 * np.log10(predictor.config.statistics.variance[predictor.modalities[j]]) for j in seen}
    if known:
        query: Query = predictor.query(len(at), known)
        needed = query.sources.any(dim=0).expand(len(at), -1)
        module, laid_down = predictor.module, control.for_slices(predictor.modalities, box, at, predictor.device)
        prediction = module.decode(module.encode(stack, needed), query, control=laid_down, study=True)
        variance = prediction.log_variance[:, : inside.shape[1], : inside.shape[2]].exp()
        for t, j in enumerate(known):
            worth[j] = float(-10 * torch.log10(variance[t * len(at) : (t + 1) * len(at)][inside].mean()))
    return list(worth.values())
