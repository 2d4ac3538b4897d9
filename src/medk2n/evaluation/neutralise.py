"""Parts of a trained Med-K2N, each with a way to take away what it says while everything else stays.

    with PARTS["doubt"].taken_from(module):
        ...  # every frame is in or out

Nothing is trained anew: a part counts for as much as the rest, which learned beside it, leans on it.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from medk2n.models.medk2n import MedK2N
from medk2n.models.medk2n_parts.evidence import AGREEMENT_FACTS, OWN_FACTS, TARGET_FACTS
from medk2n.models.medk2n_parts.progressive_fusion import Scene
from medk2n.models.medk2n_parts.task_head_net import TaskHeadNet

_SURE = 50.0
"""What a head adds to its votes: nothing else counts."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part: what is done to it, in words, and the patch that does it for as long as it is held.

    `repaints` where other weights make the images, and not other decisions alone.
    """

    says: str
    taken_from: Callable[[MedK2N], AbstractContextManager[None]]
    repaints: bool = False


@contextmanager
def _swapped(*swaps: tuple[Tensor, Tensor | float]) -> Iterator[None]:
    """Parameters or buffers that hold something else for a while."""
    before = [tensor.detach().clone() for tensor, _ in swaps]
    with torch.no_grad():
        for tensor, value in swaps:
            tensor.copy_(torch.as_tensor(value, device=tensor.device))
    try:
        yield
    finally:
        with torch.no_grad():
            for (tensor, _), kept in zip(swaps, before, strict=True):
                tensor.copy_(kept)


@contextmanager
def _answering(module: nn.Module, change: Callable[[tuple[Any, ...], Any], Any]) -> Iterator[None]:
    """A module whose output is changed: (inputs, output) -> output."""
    handle = module.register_forward_hook(lambda _, given, out: change(given, out))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _hearing(module: nn.Module, change: Callable[..., tuple[Any, ...]]) -> Iterator[None]:
    """A module whose inputs are changed: inputs -> inputs."""
    handle = module.register_forward_pre_hook(lambda _, given: change(*given))
    try:
        yield
    finally:
        handle.remove()


def _no_weights(model: MedK2N) -> AbstractContextManager[None]:
    """W is 1 dB: every frame is let in, in no order."""
    return _answering(model.fusion.pre_weight, lambda given, out: torch.ones_like(out))


def _no_doubt(model: MedK2N) -> AbstractContextManager[None]:
    return _answering(model.fusion.effi_weight, lambda given, out: out.round())


def _without_evidence(model: MedK2N, facts: slice) -> AbstractContextManager[None]:
    """Some of what PreWeightNet reads says what it usually does."""

    def silent(told: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        told = told.clone()
        told[:, facts] = 0
        return told, *rest

    return _hearing(model.fusion.pre_weight, silent)


def _one_head(model: MedK2N, head: str) -> AbstractContextManager[None]:
    """All votes are one head's."""
    bias = model.heads.level.bias  # image and vote of each head
    votes = bias.detach().clone()
    votes[2 * TaskHeadNet.HEADS.index(head) + 1] += _SURE
    return _swapped((bias, votes))


@contextmanager
def seeing(model: MedK2N, scene: Callable[[Tensor, Tensor], Scene]) -> Iterator[None]:
    """A model that makes its scenes by another function for a while."""
    before = vars(model).get("scene")
    model.scene = scene  # type: ignore[method-assign]
    try:
        yield
    finally:
        if before is None:
            del model.scene
        else:
            model.scene = before


def _flat(model: MedK2N) -> AbstractContextManager[None]:
    """Every frame is its own slice, thrice: 2-D for 2.5-D."""
    scene = model.scene

    def flat_scene(images: Tensor, needed: Tensor) -> Scene:
        centre = images.shape[2] // 2
        return scene(images[:, :, centre : centre + 1].expand_as(images), needed)

    return seeing(model, flat_scene)


PARTS: dict[str, Part] = {
    "weights": Part("W is 1 dB for every frame: no order, and all are let in", _no_weights),
    "gates": Part("every frame is let in whole; the order stays", lambda model: _swapped((model.fusion.taught, 0.0))),
    "doubt": Part("every frame is in or out: P is 0 or 1", _no_doubt),
    "thresholds": Part("tau is 0 dB", lambda model: _swapped((model.fusion.effi_weight.threshold.level, 0.0))),
    "own_look": Part(
        "no frame is looked at by itself, nor at its neighbouring slices", partial(_without_evidence, facts=OWN_FACTS)
    ),
    "agreement": Part(
        "no frame is held against what others expect of it", partial(_without_evidence, facts=AGREEMENT_FACTS)
    ),
    "proposals": Part(
        "what state and frame propose for the target is not compared", partial(_without_evidence, facts=TARGET_FACTS)
    ),
    **{
        f"{head}_head": Part(f"the {head} head alone makes the image", partial(_one_head, head=head), repaints=True)
        for head in TaskHeadNet.HEADS
    },
    "neighbours": Part("a frame is one slice: 2-D for 2.5-D", _flat),
}
"""What `medk2n ablate` takes away, by name."""
