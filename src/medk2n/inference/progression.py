"""How a target came about: the key frame alone, then each frame added; and whether another order would matter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch

from medk2n.inference.control import StudyControl
from medk2n.inference.predictor import SlicePredictor, bounding_box, deciding_slices
from medk2n.models.parts.sequence import Control, Plan

_SLICES = 4
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
        stages: in the order of its steps, key frame first; a closed gate's stage is the one before.
        orders: how many forced orders of the inputs were tried; 1 is the default order alone.
        order_deviation: root mean square of the standard deviation over those orders, in [0, 1] units of the image.
    """

    stages: tuple[Stage, ...]
    orders: int
    order_deviation: float


@torch.inference_mode()
def progressions(
    predictor: SlicePredictor,
    images: Mapping[str, np.ndarray],
    targets: Sequence[str],
    plan: Plan,
    control: StudyControl | None = None,
) -> dict[str, Progression]:
    """The progression of every target; images and control as for `infer`, plan as it gave."""
    control = control or StudyControl()
    box, depth_range = bounding_box(images)
    inside = np.any([array > 0 for array in images.values()], axis=0)
    shown = int(inside.sum(axis=(1, 2)).argmax())
    at = sorted({*deciding_slices(depth_range, _SLICES), shown})
    row = at.index(shown)
    mask = torch.from_numpy(inside[at][..., *box]).to(predictor.device)
    laid_down = control.for_slices(predictor.modalities, box, at, predictor.device)
    module = predictor.module
    stack = predictor.stack(images, box, at)
    given = torch.tensor([name in images for name in predictor.modalities], device=predictor.device)
    frames = module.encode(stack, given.expand(len(at), -1))
    found = {}
    for target in targets:
        j = predictor.modalities.index(target)
        sequence = tuple(step.source for step in plan[j])
        stages = []
        for k in range(1, len(sequence) + 1):
            query = predictor.query(len(at), {j: sequence[:k]})
            made = module.decode(frames, query, plan={j: plan[j][:k]}, control=laid_down)
            image, variance = (x[:, : mask.shape[1], : mask.shape[2]] for x in (made.mean, made.log_variance.exp()))
            error = float(variance[mask].mean())
            picture = image[row].clamp(0, 1) * mask[row]
            stages.append(Stage(predictor.modalities[sequence[k - 1]], -10 * float(np.log10(error)), _numpy(picture)))
        query = predictor.query(len(at), {j: sequence})
        orders = _orders(sequence, laid_down.candidates(query)[0])
        others = torch.stack(
            [
                module.decode(frames, query, control=Control({j: order}, laid_down.bounds), study=True).mean[row]
                for order in orders
            ]
        )[:, : mask.shape[1], : mask.shape[2]].clamp(0, 1)
        deviation = float(others.var(dim=0, correction=0)[mask[row]].mean().sqrt())
        found[target] = Progression(tuple(stages), len(orders), deviation)
    return found


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
