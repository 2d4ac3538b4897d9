"""A training run: read the data once, let the models learn side by side, save them.

The models of a run see the same batches' distribution and take turns so that each has spent the same wall time
(or the same number of steps): the one that has spent least goes next. So a comparison within
a run is fair on any machine, however busy. Several processes share each step (training/world.py).
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medk2n import checkpoint
from medk2n.config.draft import Draft
from medk2n.config.schema import TrainConfig, load_config
from medk2n.data import split
from medk2n.data.batches import Batch
from medk2n.errors import (
    CheckpointError,
    ConfigError,
    DatasetError,
    InternalError,
    StoppedError,
    SystemLimitError,
    out_of_memory,
)
from medk2n.identity import identity
from medk2n.io.atomic import write_json
from medk2n.io.outputs import OutputFolder, output_folder
from medk2n.losses.reconstruction import mean_squared_error
from medk2n.models._flops import counting
from medk2n.training import state
from medk2n.training.begin import Start, chosen, taken_over
from medk2n.training.board import FOLDER as BOARD
from medk2n.training.board import Board
from medk2n.training.contender import Contender
from medk2n.training.feed import Feed, Part, seed_of
from medk2n.training.identity import IdentityPhase, told_of
from medk2n.training.log import METRICS, VALIDATION, Log
from medk2n.training.outcome import save_models
from medk2n.training.plan import Plan, make_plan
from medk2n.training.planfile import FILE as PLAN
from medk2n.training.planfile import keep_plan
from medk2n.training.queries import as_query, draw_sources, every_target
from medk2n.training.reading import Report, TrainingData, read_data
from medk2n.training.samples import FOLDER, draw_samples
from medk2n.training.state import State
from medk2n.training.stop import Stop
from medk2n.training.world import World

_CONFIG, _STATE = "train.json", "state"
MODELS = (checkpoint.CONFIG, checkpoint.WEIGHTS, f"{_STATE}/step-*/*",
          f"reference/*/{checkpoint.CONFIG}", f"reference/*/{checkpoint.WEIGHTS}",
          f"{identity.FOLDER}/{identity.CONFIG}", f"{identity.FOLDER}/{identity.WEIGHTS}")  # fmt: skip
HISTORY = (_CONFIG, PLAN, split.FILE, METRICS, f"{FOLDER}/*.png", f"{BOARD}/*/events.out.tfevents.*")
"""Of a run that was cut before it saved a model, these are left; the next one may begin in their place."""
_SAVE_EVERY_S = 300.0
_VALIDATE_AT = 8
_COUNTED = 8


def train(
    settings: TrainConfig | Draft,
    out: Path,
    *,
    device: str = "cpu",
    overwrite: bool = False,
    report: Report | None = None,
    show: Callable[[Plan], None] | None = None,
) -> Path:
    """Train the models of `settings` and write the first to `out`, the others to `out/reference/<name>`.

    What a draft leaves open is planned first. Besides the model folders: plan.json (of a draft), train.json (the
    resolved configuration), split.json (if there is a split), metrics.csv, `samples` (a watched slice at each
    validation) and, until the run has ended, `state` for `resume`.
    Under torchrun every process calls this alike, and the first one plans and writes.

    Args:
        show: called with the plan of a draft.

    Raises:
        ConfigError: no data, a modality that no training subject has, or parts that the processes cannot share.
        DatasetError: nothing to learn from.
        StoppedError: SIGTERM or Ctrl-C came; the state is saved.
    """
    draft = settings if isinstance(settings, Draft) else None
    config = draft.config if draft else settings
    world = World(device, config.precision)
    with _held(out, world, overwrite=overwrite) as place:
        if place:
            config = _decided(config, draft, out, device, report, show)
        config = TrainConfig.model_validate_json(world.told(config.model_dump_json()))
        return _with_threads(config, out, world, place, report, resumed=None)


def _decided(
    config: TrainConfig,
    draft: Draft | None,
    out: Path,
    device: str,
    report: Report | None,
    show: Callable[[Plan], None] | None,
) -> TrainConfig:
    """The configuration with nothing left open; plan.json and split.json are written."""
    draft = taken_over(draft) if draft else None
    config = draft.config if draft else config
    start = Start.of(config)
    if start and out.resolve() in (start.folder.resolve(), *start.folder.resolve().parents):
        raise ConfigError(f"{out} holds the model that the run begins from; give another --out")
    for choice in config.models:
        chosen(choice, start)  # before the data are read, which takes long
    plan = make_plan(draft, device, report) if draft else None
    config = plan.config if plan else config
    if not config.data:
        raise ConfigError("no training data: give --data DIR")
    told_of(config)  # texts and their encoder, before the data are read too
    keep_plan(plan, out)
    if plan and show:
        show(plan)
    if config.split:
        write_json(out / split.FILE, split.read_split(config.split).model_dump())
    return config


def resume(out: Path, *, device: str = "cpu", report: Report | None = None) -> Path:
    """Go on with the run in `out` from its newest whole state, with its own configuration.

    On the CPU a run with a budget of steps ends in the same weights as if it had never been stopped.

    Raises:
        ConfigError: nothing to resume.
        DatasetError: the training subjects are not those of the run.
        StoppedError: as `train`.
    """
    kept = state.newest(out / _STATE)
    if kept is None:
        raise ConfigError(f"{out}: nothing to resume: no whole state in {out / _STATE}; start a run without --resume")
    for folder in kept.damaged:
        warnings.warn(f"{folder} is damaged; going on from the state before it", stacklevel=2)
    config = load_config(out / _CONFIG)
    world = World(device, config.precision)
    with _held(out, world, goes_on=True) as place:
        return _with_threads(config, out, world, place, report, resumed=kept)


@contextmanager
def _held(out: Path, world: World, *, overwrite: bool = False, goes_on: bool = False) -> Iterator[OutputFolder | None]:
    """The folder of the run, for the process that leads; the others write nothing."""
    if not world.leads:
        yield None
        return
    with output_folder(out, MODELS, shared=HISTORY, overwrite=overwrite, goes_on=goes_on) as place, place.in_place():
        yield place


def _with_threads(
    config: TrainConfig,
    out: Path,
    world: World,
    place: OutputFolder | None,
    report: Report | None,
    resumed: State | None,
) -> Path:
    report = report or (lambda stage, share, numbers: None)
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads or before)
    try:
        return _train(config, out, world, place, report, resumed)
    finally:
        torch.set_num_threads(before)


def _train(
    config: TrainConfig, out: Path, world: World, place: OutputFolder | None, report: Report, resumed: State | None
) -> Path:
    parts = world.share(config.batch.accumulate)
    start = Start.of(config)
    if config.split:
        config = config.model_copy(update={"split": str(out / split.FILE)})  # the run's own, wherever the run is moved
    data = read_data(config, report)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        contenders = [
            Contender.of(choice, config, data.statistics, str(world.device), start) for choice in config.models
        ]
    if start and (fresh := [c.name for c in contenders if c.name not in start.models]):
        warnings.warn(f"{start.name} has no {', '.join(fresh)}: fresh weights, no fair comparison", stacklevel=2)
    phase = IdentityPhase(config, data, world.device)
    log = Log(out / METRICS)
    validated = -1 if start else 0  # what it begins with is watched first
    if resumed is not None:
        validated = _restore(resumed, contenders, phase, data, start)
    if place:
        if resumed is None:
            place.clear(but=[PLAN, split.FILE])
        write_json(out / _CONFIG, config.model_dump())
        if resumed is None:
            log.start()
        else:
            log.restore(resumed.counters["log"])
    board = Board(out, {c.name: c.steps for c in contenders}) if config.tensorboard and world.leads else None
    run = _Run(config, out, world, data, phase, contenders, log, board, validated, parts, start)
    feeds = {c.name: run.feed(c) for c in contenders}
    try:
        run.learn(feeds, report)
    finally:
        for feed in feeds.values():
            feed.close()
        if board:
            board.close()
    return out


@dataclass
class _Run:
    """A run at work; `validated` counts the validations there have been."""

    config: TrainConfig
    out: Path
    world: World
    data: TrainingData
    phase: IdentityPhase
    contenders: list[Contender]
    log: Log
    board: Board | None
    validated: int
    parts: range
    start: Start | None

    def feed(self, contender: Contender) -> Feed:
        """The batches of the steps that come."""
        return Feed(self.data, self.config, contender.params.slices, self.parts, contender.steps, contender.kind)

    def learn(self, feeds: dict[str, Feed], report: Report) -> None:
        """To the end of the budget."""
        saved_at = time.monotonic()
        with Stop() as stop:
            self._recognise(stop, report)
            while True:
                share = min(c.progress for c in self.contenders)
                if share * _VALIDATE_AT >= self.validated + 1 and self.data.validation:
                    self._validate(share, stop, report)
                stopping = self.world.any(stop.asked)
                if self.world.leads and (stopping or time.monotonic() - saved_at > _SAVE_EVERY_S):
                    self._save(finished=False)
                    self._keep()
                    saved_at = time.monotonic()
                if stopping:
                    self._stop(share)
                runner = min(self.contenders, key=lambda c: (c.progress, c.steps))
                if runner.progress == 1:
                    break
                if runner.turn():
                    feeds[runner.name].close()
                    feeds[runner.name] = self.feed(runner)
                numbers = self._step(runner, feeds[runner.name])
                wanted = self.contenders[0]
                rate = wanted.samples / (wanted.seconds + wanted.waited)
                report("training", share, {"steps": float(wanted.steps), "crops/s": rate, "loss": numbers["loss"]})
        if self.world.leads:
            self._save(finished=True)
            state.remove(self.out / _STATE)
        self.world.wait()

    def _recognise(self, stop: Stop, report: Report) -> None:
        """First V and V' learn, if the budget gives them a step; then they are frozen and saved, and lessons know V."""
        if not self.phase.wanted:
            self._remember()
            return
        saved_at = time.monotonic()
        while (share := self.phase.progress) < 1:
            stopping = self.world.any(stop.asked)
            if self.world.leads and (stopping or time.monotonic() - saved_at > _SAVE_EVERY_S):
                self._keep()
                saved_at = time.monotonic()
            if stopping:
                self._stop(0.0)
            report("identity", share, self.phase.step(self.world))
        made = self.phase.finish(self.world)
        if self.world.leads:
            made.save(self.out)
        for contender in self.contenders:
            contender.lesson.recognised_by(made.nets[identity.V])

    def _remember(self) -> None:
        """The identity of the model that the run began from travels along, and lessons know its V."""
        if self.start is None:
            return
        if self.world.leads:
            self.start.carry_identity(self.out)
        v = self.start.v(self.config) if self.config.identity.asked else None
        for contender in self.contenders if v else ():
            contender.lesson.recognised_by(v)

    def _stop(self, share: float) -> None:
        self.world.wait()
        raise StoppedError(f"stopped at {share:.0%}; go on with: medk2n train --resume --out {self.out}")

    def _validate(self, share: float, stop: Stop, report: Report) -> None:
        scores = [validate(contender, self.data.validation, stop) for contender in self.contenders]
        if stop.asked:
            return
        self.validated = int(share * _VALIDATE_AT)
        report("validation", share, {c.name: score for c, score in zip(self.contenders, scores, strict=True)})
        if self.world.leads:
            for contender, score in zip(self.contenders, scores, strict=True):
                self._tell(contender, {VALIDATION: score})
            sheet = self.out / FOLDER / f"{self.validated}-of-{_VALIDATE_AT}.png"
            draw_samples(self.contenders, self.data.validation[0], sheet)
            if self.board and sheet.is_file():
                self.board.picture(self.contenders[0].name, self.contenders[0].steps, sheet)

    def _tell(self, contender: Contender, numbers: Mapping[str, float]) -> None:
        self.log.write(contender, numbers)
        if self.board:
            self.board.numbers(contender.name, contender.steps, numbers)

    def _step(self, runner: Contender, feed: Feed) -> dict[str, float]:
        before = feed.waited_s
        try:
            numbers = _counted(runner, next(feed), self.world)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            asked = f"{self.config.batch.size} crops of {self.config.batch.crop} pixels"
            raise SystemLimitError(
                f"out of memory: {runner.name} with {asked}; lower batch.size or batch.crop (batch.accumulate makes up "
                "for a smaller size)"
            ) from error
        runner.waited += feed.waited_s - before
        if not math.isfinite(numbers.get("loss", 0.0)):
            if self.world.leads:
                self._save(finished=False)
            seeds = [seed_of(self.config, runner.steps, part) for part in range(self.config.batch.accumulate)]
            raise InternalError(
                f"{runner.name}: the loss is not finite at step {runner.steps} (batch seed "
                f"{', '.join(map(str, seeds))}); the last good weights are in {self.out}; lower optimiser.learning_rate"
            )
        means = self.log.count(runner, numbers)
        if means and self.world.leads:
            self._tell(runner, means)
        return numbers

    def _save(self, *, finished: bool) -> None:
        save_models(self.contenders, self.config, self.data, self.world, self.out, self.start, finished=finished)

    def _keep(self) -> None:
        """The whole state, for `resume`."""
        kept = {contender.name: contender.state() for contender in self.contenders}
        counters = {
            "models": {name: numbers for name, (_, numbers) in kept.items()},
            "validated": self.validated,
            "log": self.log.state(),
            "subjects": self.data.subjects,
            "begun": _begun(self.start),
        }
        tensors = {name: named for name, (named, _) in kept.items()}
        tensors[identity.FOLDER], counters[identity.FOLDER] = self.phase.state()
        steps = self.phase.steps + sum(contender.steps for contender in self.contenders)
        state.write(self.out / _STATE, steps, tensors, counters)


def _counted(runner: Contender, parts: Sequence[Part], world: World) -> dict[str, float]:
    """A step; of the first few the FLOPs are counted, since how many passes a step makes is drawn."""
    if runner.steps >= _COUNTED:
        return runner.step(parts, world)
    with counting() as counter:
        numbers = runner.step(parts, world)
    if counted := runner.steps:  # none where the step came to nothing
        before = runner.flops_per_step or 0.0
        runner.flops_per_step = before + (float(counter.get_total_flops()) * world.size - before) / counted
    return numbers


def _begun(start: Start | None) -> dict[str, Any] | None:
    return {"model": start.name, "sha256": start.hashes} if start else None


def _restore(
    kept: State, contenders: Sequence[Contender], phase: IdentityPhase, data: TrainingData, start: Start | None
) -> int:
    """All networks back to where they were; returns how many validations there had been."""
    if kept.counters.get("begun") != _begun(start):
        raise CheckpointError("the model that the run began from is no longer the same; bring it back")
    if kept.counters["subjects"] != data.subjects:
        raise DatasetError("the training subjects are no longer those that the run began with; bring them back")
    for contender in contenders:
        contender.restore(kept.tensors[contender.name], kept.counters["models"][contender.name])
    phase.restore(kept.tensors[identity.FOLDER], kept.counters[identity.FOLDER])
    return int(kept.counters["validated"])


@torch.no_grad()
def validate(contender: Contender, batches: Sequence[Batch], stop: Stop | None = None) -> float:
    """Mean PSNR in dB inside the foreground over fixed slices, random subsets (seeded) and all missing targets.

    Given up, NaN, once a stop is asked for.
    """
    values = []
    for k, batch in enumerate(batches):
        if stop is not None and stop.asked:
            return math.nan
        rng = np.random.default_rng(k)
        samples, subsets = draw_sources(batch.acquired.numpy(), rng, draws=1, most=contender.config.batch.most_sources)
        query = as_query(*every_target(batch.acquired.numpy()[samples], samples, subsets))
        query = query.only(~query.remade).to(contender.device)
        batch = batch.to(contender.device)
        image = contender.averaged(batch.frames(contender.params.slices), query).mean
        error = mean_squared_error(image, batch.targets[query.sample, query.target], batch.foreground[query.sample])
        values.append(-10 * torch.log10(error + 1e-6))
    return float(torch.cat(values).mean())
