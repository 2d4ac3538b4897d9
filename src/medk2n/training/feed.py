"""The batches of one contender, in order; drawn ahead by worker processes where a run has them.

What is drawn for a step depends on the run's seed and the step's number alone, so a feed can begin at any step.
"""

import itertools
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from medk2n.config.schema import TrainConfig
from medk2n.data.batches import Batch
from medk2n.training.reading import EVERYONE, TrainingData

_AHEAD = 4


@dataclass(frozen=True, slots=True)
class Part:
    """One of the batches that make a step, and the seed of what is drawn beside it."""

    batch: Batch
    seed: int


class Feed:
    """An endless iterator over steps; `waited_s` is the time that their reader spent waiting.

    Args:
        slices: of a frame.
        parts: which of a step's parts to draw.
        first: number of the first step.
        kind: of the steps, as the model's lesson names it (`reading.py`).
    """

    def __init__(
        self, data: TrainingData, config: TrainConfig, slices: int, parts: range, first: int, kind: str = EVERYONE
    ) -> None:
        workers = config.workers
        loader = DataLoader(
            _Steps(data, config, slices, parts, kind),
            batch_size=None,
            sampler=itertools.count(first),
            num_workers=workers,
            prefetch_factor=_AHEAD if workers else None,
            collate_fn=_as_it_is,
            worker_init_fn=_leave_stopping_to_the_run,
            generator=torch.Generator(),  # its own: a loader draws a number from the global one otherwise
        )
        self._steps: Iterator[list[Part]] = iter(loader)
        self.kind, self.waited_s = kind, 0.0

    def __next__(self) -> list[Part]:
        started = time.perf_counter()
        drawn = next(self._steps)
        self.waited_s += time.perf_counter() - started
        return drawn

    def close(self) -> None:
        """End the workers."""
        del self._steps


class _Steps(Dataset[list[Part]]):
    """Step number -> its parts."""

    def __init__(self, data: TrainingData, config: TrainConfig, slices: int, parts: range, kind: str) -> None:
        self.data, self.config, self.slices, self.parts, self.kind = data, config, slices, parts, kind

    def __getitem__(self, step: int) -> list[Part]:
        seeds = [seed_of(self.config, step, part) for part in self.parts]
        return [
            Part(self.data.batch(self.config, np.random.default_rng(seed), self.slices, self.kind), seed)
            for seed in seeds
        ]


def seed_of(config: TrainConfig, step: int, part: int) -> int:
    """The seed of one part of one step."""
    return int(np.random.SeedSequence([config.seed, step, part]).generate_state(1)[0])


def _as_it_is(drawn: list[Part]) -> list[Part]:
    return drawn


def _leave_stopping_to_the_run(worker: int) -> None:
    """Ctrl-C and SIGTERM may reach all processes of a run; it saves first, and then ends its workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
