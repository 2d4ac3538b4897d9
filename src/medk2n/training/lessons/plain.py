"""One forward pass, one objective: how every model but Med-K2N is taught."""

import numpy as np
import torch
from torch import Tensor, nn

from medk2n.data.batches import Batch
from medk2n.identity.network import IdentityNet
from medk2n.training.lesson import Pupil, ask
from medk2n.training.objectives import objective
from medk2n.training.queries import focused
from medk2n.training.reading import EVERYONE
from medk2n.training.world import World


class PlainLesson:
    """All steps are alike."""

    def __init__(self, pupil: Pupil) -> None:
        self.pupil = pupil

    def kind(self, progress: float) -> str:
        """See `Lesson`."""
        return EVERYONE

    def span(self, progress: float) -> tuple[float, float]:
        """See `Lesson`."""
        return 0.0, 1.0

    def recognised_by(self, v: IdentityNet) -> None:
        """A reference has no loss of it."""

    def enter(self, averaged: nn.Module) -> None:
        """There is no second kind."""

    def resumed(self) -> None:
        """There is no second kind."""

    def loss(self, batch: Batch, seed: int, progress: float, world: World) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Lesson`."""
        pupil, rng = self.pupil, np.random.default_rng(seed)
        batch = focused(batch, pupil.config, rng)
        query = ask(pupil, batch, rng).to(world.device)
        batch = batch.to(world.device)
        with world.autocast():
            prediction = pupil.module(batch.images, query, generator=torch.Generator().manual_seed(seed))
        loss, _, parts = objective(
            prediction, batch, query, pupil.config.losses, paper=pupil.spec.objective, adversary=pupil.adversary
        )
        return loss, parts | {"loss": loss.detach()}

    def learned(self, world: World) -> None:
        """Nothing else moves."""

    def apart(self) -> list[list[nn.Parameter]]:
        """A model, and its adversary if it has one."""
        modules = [self.pupil.module, *([self.pupil.adversary] if self.pupil.adversary is not None else [])]
        return [list(module.parameters()) for module in modules]


COMPONENT = PlainLesson
