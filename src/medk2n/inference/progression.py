"""How a target came about: the key frame alone, then each frame added; and whether another order would matter."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch

from medk2n.inference.contribution import predicted_psnr, present, proposed
from medk2n.inference.predictor import Inference, SlicePredictor
from medk2n.models.medk2n_parts.control import Control, PlannedStep

_MOST_ORDERS = 6


@dataclass(frozen=True)
class Stage:
    """A target after one more frame.

    Attributes:
        source: the frame that was added last.
        predicted_psnr_db: of the target as it stands, on a few slices.
        image: (h, w) one working slice of it, in [0, 1].
    """

    source: str
    predicted_psnr_db: float
    image: np.ndarray


@dataclass(frozen=True)
class Progression:
    """Of one target.

    Attributes:
        stages: in the order of its steps, key frame first; what is not let in leaves the stage as it was.
        orders: how many forced orders of the inputs were tried; 1 is the default order alone.
        order_deviation: root mean square of the standard deviation over those orders, in [0, 1] units of the image.
    """

    stages: tuple[Stage, ...]
    orders: int
    order_deviation: float


@torch.inference_mode()
def progressions(predictor: SlicePredictor, targets: Sequence[str], inference: Inference) -> dict[str, Progression]:
    """The progression of every target, of a study as `infer` decided it; what was let in counts whole here."""
    sight = inference.sight
    inside = sight.scene.inside
    row = int(inside.sum(dim=(1, 2)).argmax())
    h, w = (axis.stop - axis.start for axis in sight.box)
    found = {}
    for target in targets:
        j = predictor.modalities.index(target)
        steps, there = inference.plan[j], present(predictor, inference, target)
        stages = []
        for k in range(1, len(steps) + 1):
            members = [step.source for step in steps[:k] if step.source in there]
            picture = (proposed(inference, members, j)[0][row] * inside[row])[:h, :w]
            name = predictor.modalities[steps[k - 1].source]
            stages.append(Stage(name, predicted_psnr(inference, members, j), _numpy(picture)))
        sequence = tuple(step.source for step in steps)
        query = predictor.query(len(sight.at), {j: sequence})
        orders = _orders(sequence, sight.control.candidates(query)[0])
        others = []
        for order in orders:
            control = Control({j: order}, sight.control.bounds)
            others.append(_let_in(predictor.module.decide(sight.scene, query, control)[j]))
        images = torch.stack([proposed(inference, members, j)[0][row] for members in others])
        deviation = float(images.var(dim=0, correction=0)[inside[row]].mean().sqrt())
        found[target] = Progression(tuple(stages), len(orders), deviation)
    return found


def _let_in(steps: Sequence[PlannedStep]) -> list[int]:
    return [step.source for step in steps if step.gate > 0.5]


def _orders(sequence: Sequence[int], may_be_key: torch.Tensor) -> list[tuple[int, ...]]:
    """Some orders that start with an allowed key frame, evenly spread; of many inputs, rotations of the others."""
    every: list[tuple[int, ...]] = []
    for key in (i for i in sequence if may_be_key[i]):
        rest = [i for i in sequence if i != key]
        turned = ((*rest[k:], *rest[:k]) for k in range(len(rest)))
        every += [(key, *others) for others in (permutations(rest) if len(rest) < 5 else turned)]
    return [every[k] for k in sorted(set(np.linspace(0, len(every) - 1, _MOST_ORDERS).round().astype(int).tolist()))]


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()
