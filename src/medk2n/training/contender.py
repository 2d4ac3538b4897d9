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
from medk2n.data.batches import Batch
from medk2n.data.statistics import CohortStatistics
from medk2n.losses.fusion import added_map_error, added_weight_error, local_gain
from medk2n.losses.reconstruction import mean_squared_error
from medk2n.models._spec import ModelSpec, Prediction, Query, Statistics
from medk2n.models.parts.blocks import spread
from medk2n.registry import resolve
from medk2n.training.begin import begin, chosen
from medk2n.training.feed import Part
from medk2n.training.groups import optimisers
from medk2n.training.objectives import objective, proposal_error
from medk2n.training.queries import as_query, draw_sources, draw_targets, every_target, narrowed, without_one
from medk2n.training.world import World

_COUNTERS = ("steps", "seconds", "waited", "samples", "flops_per_step")


@dataclass
class Contender:
    """A model that learns; `seconds`, `steps` and `samples` are its cost, `averaged` is what gets saved.

    `waited` counts the seconds spent waiting for batches, which are not in `seconds`.

    `observed` (2, m, m) holds, of the step at hand, the sum and number of gains measured of source i for target j.
    """

    choice: ModelChoice
    config: TrainConfig
    module: nn.Module
    params: object
    variance: Tensor
    averaged: nn.Module = field(init=False)
    observed: Tensor = field(init=False)
    adversary: nn.Module | None = field(init=False, default=None)
    optimisers: list[torch.optim.Optimizer] = field(init=False)
    seconds: float = 0.0
    waited: float = 0.0
    steps: int = 0
    samples: int = 0
    flops_per_step: float | None = None

    def __post_init__(self) -> None:
        self.averaged = copy.deepcopy(self.module).requires_grad_(False).eval()
        self.observed = self.variance.new_zeros(2, len(self.variance), len(self.variance))
        if self.spec.adversary:
            self.adversary = self.spec.adversary(self.params, len(self.variance)).to(self.variance.device)
        self.optimisers = [o for module in self._learning for o in optimisers(module, self.config.optimiser)]

    @classmethod
    def of(cls, choice: ModelChoice, config: TrainConfig, statistics: CohortStatistics, device: str) -> "Contender":
        """Build a fresh model; the caller has seeded torch."""
        spec = resolve("models", choice.name)
        params = chosen(choice)
        tensors = [
            torch.from_numpy(np.array(getattr(statistics, name), dtype=np.float32))
            for name in ("mean", "deviation", "correlation", "variance")
        ]
        module = spec.build(params, len(config.modalities), Statistics(*tensors))
        params = begin(module, params, torch.device(device))
        return cls(choice, config, module.to(device, memory_format=torch.channels_last), params, tensors[3].to(device))

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
    def spec(self) -> ModelSpec:
        """What the model says of itself."""
        return resolve("models", self.name)

    @property
    def _learning(self) -> list[nn.Module]:
        """The model, and its adversary if it has one."""
        return [self.module] if self.adversary is None else [self.module, self.adversary]

    def step(self, parts: Sequence[Part], world: World) -> dict[str, float]:
        """One optimiser step on this process's parts of it; what is drawn depends on their seeds alone.

        Returns the parts of the loss, means over the step, and "loss" where the whole model was trained; NaN, and
        nothing learned, where one of them is not finite.
        """
        started = time.perf_counter()
        for module in self._learning:
            module.zero_grad(set_to_none=True)
        self.observed.zero_()
        shares, told = self.config.batch.accumulate, defaultdict(float)
        for part in parts:
            loss, numbers = self._loss(part.batch, part.seed, world)
            (loss / shares).backward()
            for name, value in numbers.items():
                told[name] += value / shares
        numbers = world.summed_numbers(told)
        if not all(map(math.isfinite, numbers.values())):
            return numbers | {"loss": math.nan}
        world.sum_gradients(p for module in self._learning for p in module.parameters())
        if hasattr(self.module, "fusion"):
            self.module.fusion.observe(*world.summed(self.observed))
        for parameters in self._apart():
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

    def _loss(self, batch: Batch, seed: int, world: World) -> tuple[Tensor, dict[str, float]]:
        """The loss of one batch, and its parts."""
        rng = np.random.default_rng(seed)
        core = np.isin(self.config.modalities, self.config.core)
        acquired = narrowed(batch.acquired.numpy(), core, rng, share=self.config.core_share)
        query = self._ask(acquired, rng).to(world.device)
        batch = replace(batch, acquired=torch.from_numpy(acquired)).to(world.device)
        fusion = getattr(self.module, "fusion", None)
        if fusion is not None and self.steps % self.config.fuse_every:
            with world.autocast():
                proposals = self.module.propose(batch.images, query)
            loss = proposal_error(proposals, batch, self.config.losses)
            return loss, {"proposals": float(loss.detach())}
        if fusion is not None:
            fusion.hard_gates = self.progress >= self.config.soft_gates
        with world.autocast():
            prediction = self.module(batch.images, query, generator=torch.Generator().manual_seed(seed))
        own = {"paper": self.spec.objective, "adversary": self.adversary}
        loss, mse, parts = objective(prediction, batch, query, self.config.losses, self.variance, **own)
        if fusion is not None and self.steps // self.config.fuse_every % self.config.gain_every == 0:
            added = self.config.losses.weights * self._measure_gain(prediction, batch, query, mse, seed, world)
            loss = loss + added
            parts["gains"] = float(added.detach())
        return loss, parts | {"loss": float(loss.detach())}

    def _ask(self, acquired: np.ndarray, rng: np.random.Generator) -> Query:
        """Draw the queries of a batch: Med-K2N decodes what is asked, a U-Net gives everything in one pass."""
        shape = self.config.batch
        samples, subsets = draw_sources(acquired, rng, draws=shape.draws, most=shape.most_sources)
        if self.spec.every_target:
            return as_query(*every_target(acquired, samples, subsets))
        return as_query(*draw_targets(acquired, samples, subsets, rng, targets=shape.targets))

    def _measure_gain(
        self, prediction: Prediction, batch: Batch, query: Query, mse: Tensor, seed: int, world: World
    ) -> Tensor:
        """What one random source removed of the error, and where: anchors W and W_eff and feeds the history p_ij."""
        fused = prediction.extras["fused"]
        reduced, dropped = without_one(query, fused.steps[0].source, np.random.default_rng(seed + 1), batch.severity)
        # what a closed gate kept out removes nothing: that is no measurement, and would keep it out for good
        told = (dropped >= 0) & fused.members.gather(1, dropped.clamp_min(0)[:, None]).squeeze(1)
        if not told.any():
            return mse.new_zeros(())
        rows = told.nonzero().squeeze(1)
        fewer = Query(query.sample[rows], reduced.sources[rows], query.target[rows])
        with torch.no_grad(), world.autocast():
            mean = self.module(batch.images, fewer).mean
        target, inside = batch.targets[fewer.sample, fewer.target], batch.foreground[fewer.sample]
        gain = spread(1 - mse[rows] / (mean_squared_error(mean, target, inside) + 1e-6), rows, len(mse))
        missing = ~query.sources.gather(1, query.target[:, None]).squeeze(1)
        new = told & missing
        whole = new & ~((batch.severity > 0)[query.sample] & query.sources).any(dim=1)
        pair = (dropped[whole], query.target[whole])
        for table, values in zip(self.observed, (gain[whole].clamp(-1, 1), torch.ones_like(gain[whole])), strict=True):
            table.index_put_(pair, values, accumulate=True)
        where, mass = local_gain(prediction.mean[rows].detach(), mean, target, inside)
        dropped = torch.where(new, dropped, -1)
        error = added_weight_error(fused, dropped, gain)
        return error + added_map_error(fused, dropped, *(spread(x, rows, len(mse)) for x in (where, mass)))

    def state(self) -> tuple[dict[str, Tensor], dict[str, float | int | None]]:
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

    def _apart(self) -> list[list[nn.Parameter]]:
        """Parameters whose gradients have nothing to do with each other: a trunk learns from its own error alone."""
        if self.adversary is not None:
            return [list(module.parameters()) for module in self._learning]
        joint = getattr(self.module, "joint", None)
        trunk = [] if joint is None else list(joint.trunk.parameters())
        mine = {id(p) for p in trunk}
        return [part for part in (trunk, [p for p in self.module.parameters() if id(p) not in mine]) if part]

    def _schedule(self) -> float:
        warm = self.config.optimiser.warm_up
        if self.progress < warm:
            return max(self.progress, 1e-3) / warm
        return 0.5 * (1 + math.cos(math.pi * (self.progress - warm) / (1 - warm))) * 0.98 + 0.02

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.config.optimiser.ema, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self.averaged.parameters()), list(self.module.parameters()), 1 - decay)
        for mean, new in zip(self.averaged.buffers(), self.module.buffers(), strict=True):
            mean.copy_(new)


def _lay_out_like_parameters(optimiser: torch.optim.Optimizer) -> None:
    """The fused AdamW walks memory, not indices: moments must have the strides of their parameter."""
    for p, values in optimiser.state.items():
        for name, value in values.items():
            if value.shape == p.shape:
                values[name] = torch.empty_like(p).copy_(value)
