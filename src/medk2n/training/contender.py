"""One model in a run: its module, optimiser, averaged weights and what it has cost so far."""

import copy
import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medk2n.config.schema import ModelChoice, TrainConfig
from medk2n.data.statistics import CohortStatistics
from medk2n.models._spec import ModelSpec, Statistics
from medk2n.registry import resolve
from medk2n.training.begin import Start, begin, chosen
from medk2n.training.feed import Part
from medk2n.training.groups import optimisers
from medk2n.training.identity import told_of
from medk2n.training.lesson import Lesson, Pupil
from medk2n.training.world import World

_COUNTERS = ("steps", "seconds", "waited", "samples", "flops_per_step", "kind", "entered_at")


@dataclass
class Contender:
    """A model that learns; `seconds`, `steps` and `samples` are its cost, `averaged` is what gets saved.

    `waited` counts the seconds spent waiting for batches, which are not in `seconds`. `kind` is that of the steps at
    hand, which began at step `entered_at`. How the model is taught is its lesson's (`training/lesson.py`).
    """

    choice: ModelChoice
    config: TrainConfig
    module: nn.Module
    params: object
    averaged: nn.Module = field(init=False)
    adversary: nn.Module | None = field(init=False, default=None)
    optimisers: list[torch.optim.Optimizer] = field(init=False)
    seconds: float = 0.0
    waited: float = 0.0
    steps: int = 0
    samples: int = 0
    flops_per_step: float | None = None
    kind: str = ""
    entered_at: int = 0

    def __post_init__(self) -> None:
        self.averaged = copy.deepcopy(self.module).requires_grad_(False).eval()
        self.spec: ModelSpec = resolve("models", self.name)
        if self.spec.adversary:
            self.adversary = self.spec.adversary(self.params, self.m).to(self.device)
        pupil = Pupil(self.module, self.spec, self.config, self.adversary)
        self.lesson: Lesson = resolve("training/lessons", self.spec.lesson)(pupil)
        self.kind = self.lesson.kind(0.0)
        self.optimisers = [o for module in self._learning for o in optimisers(module, self.config.optimiser)]

    @classmethod
    def of(
        cls,
        choice: ModelChoice,
        config: TrainConfig,
        statistics: CohortStatistics,
        device: str,
        start: Start | None = None,
    ) -> "Contender":
        """Build a model, fresh unless `start` has one of its kind; the caller has seeded torch.

        An adversary, which no model folder holds, is always fresh.
        """
        found = start.module(choice.name) if start else None
        module, params = found or cls._fresh(choice, config, statistics)
        params = begin(module, params, torch.device(device), fresh=found is None)
        return cls(choice, config, module.to(device, memory_format=torch.channels_last), params)

    @staticmethod
    def _fresh(choice: ModelChoice, config: TrainConfig, statistics: CohortStatistics) -> tuple[nn.Module, Any]:
        spec = resolve("models", choice.name)
        params = chosen(choice)
        tensors = [
            torch.from_numpy(np.array(getattr(statistics, name), dtype=np.float32))
            for name in ("mean", "deviation", "correlation", "variance")
        ]
        texts = None
        if config.identity.embeddings and spec.described:
            texts = torch.from_numpy(told_of(config).apart()[:-1])
            params = replace(params, text=texts.shape[1])
        return spec.build(params, len(config.modalities), Statistics(*tensors, texts)), params

    @property
    def name(self) -> str:
        """Component name."""
        return self.choice.name

    @property
    def progress(self) -> float:
        """Share of the budget spent, 0 to 1."""
        budget = self.config.budget
        spent = self.steps / budget.steps if budget.steps else self.seconds / 60 / (budget.minutes or 1.0)
        return min(1.0, spent)

    @property
    def m(self) -> int:
        """Modalities."""
        return len(self.config.modalities)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.module.parameters()).device

    @property
    def _learning(self) -> list[nn.Module]:
        """The model, and its adversary if it has one."""
        return [self.module] if self.adversary is None else [self.module, self.adversary]

    def turn(self) -> bool:
        """Begin the kind of steps that is due; returns whether it is another one than before."""
        due = self.lesson.kind(self.progress)
        if due == self.kind:
            return False
        self.kind, self.entered_at = due, self.steps
        self.lesson.enter(self.averaged)
        self.averaged.load_state_dict(self.module.state_dict())
        return True

    def step(self, parts: Sequence[Part], world: World) -> dict[str, float]:
        """One optimiser step on this process's parts of it; what is drawn depends on their seeds alone.

        Returns the parts of the loss, means over the step, and "loss"; NaN, and nothing learned, where one of them is
        not finite.
        """
        started = time.perf_counter()
        for module in self._learning:
            module.zero_grad(set_to_none=True)
        shares, told = self.config.batch.accumulate, []
        for part in parts:
            loss, numbers = self.lesson.loss(part.batch, part.seed, self.progress, world)
            (loss / shares).backward()
            told.append(numbers)
        numbers = world.summed_numbers({name: value / shares for name, value in _read(told).items()})
        if not all(map(math.isfinite, numbers.values())):
            return numbers | {"loss": math.nan}
        world.sum_gradients(p for module in self._learning for p in module.parameters())
        self.lesson.learned(world)
        for parameters in self.lesson.apart():
            nn.utils.clip_grad_norm_(parameters, self.config.optimiser.clip)
        rate = self.config.optimiser.learning_rate * self._schedule()
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * group["scale"]
            optimiser.step()
        self._average()
        self.steps += 1
        self.samples += shares * self.config.batch.size
        self.seconds += world.agreed(time.perf_counter() - started)
        return numbers

    def state(self) -> tuple[dict[str, Tensor], dict[str, float | int | str | None]]:
        """Everything that a step reads and changes: tensors and counters."""
        tensors = {f"module.{name}": tensor for name, tensor in self.module.state_dict().items()}
        tensors |= {f"averaged.{name}": tensor for name, tensor in self.averaged.state_dict().items()}
        if self.adversary is not None:
            tensors |= {f"adversary.{name}": tensor for name, tensor in self.adversary.state_dict().items()}
        for k, optimiser in enumerate(self.optimisers):
            for row, values in optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser{k}.{row}.{name}": value for name, value in values.items()}
        return tensors, {name: getattr(self, name) for name in _COUNTERS}

    def restore(self, tensors: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
        """Go back to what `state` gave."""
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = tensor
        self.module.load_state_dict(parts["module"])
        self.averaged.load_state_dict(parts["averaged"])
        if self.adversary is not None:
            self.adversary.load_state_dict(parts["adversary"])
        for k, optimiser in enumerate(self.optimisers):
            rows: dict[int, dict[str, Tensor]] = {}
            for name, tensor in parts.get(f"optimiser{k}", {}).items():
                row, _, value = name.partition(".")
                rows.setdefault(int(row), {})[value] = tensor
            optimiser.load_state_dict(optimiser.state_dict() | {"state": rows})
            _lay_out_like_parameters(optimiser)
        for name in _COUNTERS:
            setattr(self, name, counters[name])
        if self.entered_at:
            self.lesson.resumed()

    def _schedule(self) -> float:
        """Warm-up and cosine over the steps of the present kind."""
        begin, end = self.lesson.span(self.progress)
        at, warm = (self.progress - begin) / max(end - begin, 1e-9), self.config.optimiser.warm_up
        if at < warm:
            return max(at, 1e-3) / warm
        return 0.5 * (1 + math.cos(math.pi * (at - warm) / (1 - warm))) * 0.98 + 0.02

    @torch.no_grad()
    def _average(self) -> None:
        steps = self.steps - self.entered_at
        decay = min(self.config.optimiser.ema, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(list(self.averaged.parameters()), list(self.module.parameters()), 1 - decay)
        for mean, new in zip(self.averaged.buffers(), self.module.buffers(), strict=True):
            mean.copy_(new)


def _read(told: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """The sums of what all parts of a step tell, in one transfer: the one time that a step waits for the device."""
    values = torch.stack([value for part in told for value in part.values()]).tolist()
    sums: dict[str, float] = defaultdict(float)
    for name, value in zip((name for part in told for name in part), values, strict=True):
        sums[name] += value
    return sums


def _lay_out_like_parameters(optimiser: torch.optim.Optimizer) -> None:
    """The fused AdamW walks memory, not indices: moments must have the strides of their parameter."""
    for p, values in optimiser.state.items():
        for name, value in values.items():
            if value.shape == p.shape:
                values[name] = torch.empty_like(p).copy_(value)
