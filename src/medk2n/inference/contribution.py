"""What each input is expected to give each target, in this study: the Shapley value of the predicted quality.

The value of a set of inputs is the PSNR in dB that the model predicts for the target from those of them that it let in
(from its log-variance, inside the foreground, on the slices where the study was decided, each frame whole); that of no
input is the PSNR of predicting the target's mean. Exact over all subsets for up to four inputs; beyond that the loss
when one input is left out, and `method` says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch

from medk2n.inference.predictor import Inference, SlicePredictor
from medk2n.shapley import shapley

EXACT_UP_TO = 4
LEAST_PRESENCE = 0.01
"""Mean presence of an input in the patient from which on it counts as let in."""


@dataclass(frozen=True)
class Contributions:
    """target -> source -> expected dB, and how it was computed: "shapley" or "leave-one-out"."""

    decibels: dict[str, dict[str, float]]
    method: str


@torch.inference_mode()
def contributions(
    predictor: SlicePredictor, inputs: Sequence[str], targets: Sequence[str], inference: Inference
) -> Contributions:
    """Expected contribution of every input to every target, of a study as `infer` decided it.

    An input that was not let in gives 0.
    """
    sources = predictor.indices(dict.fromkeys(inputs))
    exact = len(sources) <= EXACT_UP_TO
    decibels = {}
    for target in targets:
        j = predictor.modalities.index(target)
        let_in = tuple(sorted(present(predictor, inference, target)))
        nothing = -10 * np.log10(predictor.config.statistics.variance[target])
        sizes = range(1, len(let_in) + 1) if exact else (len(let_in) - 1, len(let_in))
        worth = {s: predicted_psnr(inference, s, j) for k in sizes if k for s in combinations(let_in, k)}
        worth[()] = nothing
        if exact:
            shares = {i: shapley(worth, let_in, i) for i in let_in}
        else:
            shares = {i: worth[let_in] - worth[tuple(k for k in let_in if k != i)] for i in let_in}
        decibels[target] = {predictor.modalities[i]: float(shares.get(i, 0.0)) for i in sources}
    return Contributions(decibels, "shapley" if exact else "leave-one-out")


def present(predictor: SlicePredictor, inference: Inference, target: str) -> list[int]:
    """Inputs that a target let in, in the order of its steps: by the content, or by the user's rules."""
    shares, names = inference.effective[target], predictor.modalities
    steps = inference.plan[names.index(target)]
    return [step.source for step in steps if shares[names[step.source]] >= LEAST_PRESENCE]


def predicted_psnr(inference: Inference, members: Sequence[int], target: int) -> float:
    """PSNR in dB that the model predicts for a target from a set of frames, on the deciding slices."""
    scene = inference.sight.scene
    log_variance = proposed(inference, members, target)[1]
    return float(-10 * torch.log10(log_variance.exp()[scene.inside].mean()))


def proposed(inference: Inference, members: Sequence[int], target: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and log-variance (slices, h, w) of a target from a set of whole frames, on the deciding slices."""
    scene = inference.sight.scene
    n, m = scene.images.shape[:2]
    sample = torch.arange(n, device=scene.images.device)
    chosen = torch.zeros(n, m, dtype=torch.bool, device=sample.device)
    chosen[:, list(members)] = True
    return scene.proposals.of(scene.proposals.rows(sample, chosen), torch.full_like(sample, target))
