"""What a lesson promises: it turns batches into losses, and says which batches it wants.

The learner (`training/contender.py`) knows no model; what a model needs beyond one forward pass and one objective is
its lesson's.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from medk2n.config.schema import TrainConfig
from medk2n.data.batches import Batch
from medk2n.identity.network import IdentityNet
from medk2n.models._spec import ModelSpec, Query
from medk2n.training.queries import as_query, draw_sources, draw_targets, every_target
from medk2n.training.world import World


@dataclass(frozen=True, slots=True)
class Pupil:
    """What a lesson works with: a model, what it says of itself, the run's settings, and an adversary if it has one."""

    module: nn.Module
    spec: ModelSpec
    config: TrainConfig
    adversary: nn.Module | None = None


class Lesson(Protocol):
    """Made with a `Pupil`."""

    def kind(self, progress: float) -> str:
        """Which kind of step comes at a share of the budget, by the subjects that it learns from (`reading.py`)."""
        ...

    def span(self, progress: float) -> tuple[float, float]:
        """Begin and end, as shares of the budget, of the steps of this kind: each has a schedule of its own."""
        ...

    def recognised_by(self, v: IdentityNet) -> None:
        """Called once V has learned, if it did; it is frozen."""
        ...

    def enter(self, averaged: nn.Module) -> None:
        """Called once when the second kind of step begins; the model goes on from its averaged weights."""
        ...

    def resumed(self) -> None:
        """Called when a run goes on among steps of the second kind."""
        ...

    def loss(self, batch: Batch, seed: int, progress: float, world: World) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one batch, and its parts for the log, "loss" among them; what is drawn depends on the seed alone.

        The parts are detached and stay where they are: reading one would have the host wait for the device.
        """
        ...

    def learned(self, world: World) -> None:
        """Called after the gradients of a step are there: what else training moves."""
        ...

    def apart(self) -> list[list[nn.Parameter]]:
        """Parameters whose gradients have nothing to do with each other, and are clipped apart."""
        ...


def ask(pupil: Pupil, batch: Batch, rng: np.random.Generator) -> Query:
    """Draw the queries of a batch."""
    shape = pupil.config.batch
    samples, subsets = draw_sources(batch.acquired.numpy(), rng, draws=shape.draws, most=shape.most_sources)
    askable = batch.askable(torch.from_numpy(samples), torch.from_numpy(subsets)).numpy()
    if pupil.spec.every_target:
        return as_query(*every_target(askable, samples, subsets))
    return as_query(*draw_targets(askable, samples, subsets, rng, targets=shape.targets))
