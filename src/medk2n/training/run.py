"""A training run: read the data once, let the models learn side by side, save them.

The models of a run see the same batches' distribution and take turns so that each has spent the same wall time
(or the same number of steps): the one that has spent least goes next. So a comparison within
a run is fair on any machine, however busy.
"""

import math
import os
import platform
import shutil
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import medk2n
from medk2n import checkpoint
from medk2n.config.schema import TrainConfig, load_config
from medk2n.data import split
from medk2n.data.batches import Batch
from medk2n.errors import (
    ConfigError,
    DatasetError,
    InternalError,
    StoppedError,
    SystemLimitError,
    out_of_memory,
)
from medk2n.io.atomic import check_writable, refuse_existing, write_json
from medk2n.training import state
from medk2n.training.begin import chosen
from medk2n.training.contender import Contender
from medk2n.training.log import METRICS, VALIDATION, Log
from medk2n.training.objectives import objective
from medk2n.training.queries import as_query, draw_sources, every_target
from medk2n.training.reading import Report, TrainingData, read_data
from medk2n.training.samples import FOLDER, draw_samples
from medk2n.training.state import State
from medk2n.training.stop import Stop

_CONFIG, _STATE = "train.json", "state"
_SAVE_EVERY_S = 300.0
_VALIDATE_AT = 8


def train(
    config: TrainConfig, out: Path, *, device: str = "cpu", overwrite: bool = False, report: Report | None = None
) -> Path:
    """Train the models of `config` and write the first to `out`, the others to `out/reference/<name>`.

    Besides the model folders: train.json (the resolved configuration), split.json (if there is a split), metrics.csv,
    `samples` (a watched slice at each validation) and, until the run has ended, `state` for `resume`.

    Raises:
        ConfigError: no data, or a modality that no training subject has.
        DatasetError: nothing to learn from.
        StoppedError: SIGTERM or Ctrl-C came; the state is saved.
    """
    refuse_existing([out / checkpoint.CONFIG, out / _STATE], overwrite)
    check_writable(out)
    if not config.data:
        raise ConfigError("no training data: give --data DIR")
    for choice in config.models:
        chosen(choice)  # before the data are read, which takes long
    if config.split:
        write_json(out / split.FILE, split.read_split(config.split).model_dump())
    return _with_threads(config, out, device, report, resumed=None)


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
    return _with_threads(load_config(out / _CONFIG), out, device, report, resumed=kept)


def _with_threads(config: TrainConfig, out: Path, device: str, report: Report | None, resumed: State | None) -> Path:
    report = report or (lambda stage, share, numbers: None)
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads or before)
    try:
        return _train(config, out, device, report, resumed)
    finally:
        torch.set_num_threads(before)


def _train(config: TrainConfig, out: Path, device: str, report: Report, resumed: State | None) -> Path:
    if config.split:
        config = config.model_copy(update={"split": str(out / split.FILE)})  # the run's own, wherever the run is moved
    data = read_data(config, report)
    write_json(out / _CONFIG, config.model_dump())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        contenders = [Contender.of(choice, config, data.statistics, device) for choice in config.models]
    log = Log(out / METRICS)
    validated = 0
    if resumed is None:
        for folder in (_STATE, FOLDER):
            shutil.rmtree(out / folder, ignore_errors=True)
        log.start()
    else:
        validated = _restore(resumed, contenders, data, log)
    saved_at = time.monotonic()
    with Stop() as stop:
        while True:
            share = min(c.progress for c in contenders)
            if share * _VALIDATE_AT >= validated + 1 and data.validation:
                scores = [validate(contender, data.validation, stop) for contender in contenders]
                if not stop.asked:
                    validated = int(share * _VALIDATE_AT)
                    for contender, score in zip(contenders, scores, strict=True):
                        log.write(contender, {VALIDATION: score})
                    draw_samples(contenders, data.validation[0], out / FOLDER / f"{validated}-of-{_VALIDATE_AT}.png")
            if stop.asked or time.monotonic() - saved_at > _SAVE_EVERY_S:
                _save(contenders, config, data, out, finished=False)
                _keep(contenders, data, log, validated, out)
                saved_at = time.monotonic()
            if stop.asked:
                raise StoppedError(f"stopped at {share:.0%}; go on with: medk2n train --resume --out {out}")
            runner = min(contenders, key=lambda c: (c.progress, c.steps))
            if runner.progress == 1:
                break
            try:
                numbers = _step(runner, config, data, device)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                asked = f"{config.batch.size} crops of {config.batch.crop} pixels"
                raise SystemLimitError(
                    f"out of memory: {runner.name} with {asked}; lower batch.size or batch.crop"
                ) from error
            if not math.isfinite(numbers.get("loss", 0.0)):
                _save(contenders, config, data, out, finished=False)
                raise InternalError(
                    f"{runner.name}: the loss is not finite at step {runner.steps} (batch seed "
                    f"{_seed(config, runner)}); the last good weights are in {out}; lower optimiser.learning_rate"
                )
            log.count(runner, numbers)
            if "loss" in numbers:
                report("training", share, {"steps": float(contenders[0].steps), "loss": numbers["loss"]})
    _save(contenders, config, data, out, finished=True)
    shutil.rmtree(out / _STATE, ignore_errors=True)
    return out


def _seed(config: TrainConfig, runner: Contender) -> int:
    """What is drawn for a step depends on the run's seed and the step's number alone."""
    return int(np.random.SeedSequence([config.seed, runner.steps]).generate_state(1)[0])


def _step(runner: Contender, config: TrainConfig, data: TrainingData, device: str) -> dict[str, float]:
    seed = _seed(config, runner)
    whole = runner.steps % config.fuse_every == 0
    batch = _to(data.batch(config, np.random.default_rng(seed), runner.params.slices, whole=whole), device)
    if not 0 < runner.steps <= config.fuse_every:
        return runner.step(batch, seed)
    with FlopCounterMode(display=False) as counter:  # one step of each kind, after the first with its extra pass
        numbers = runner.step(batch, seed)
    counted, before = runner.steps - 1, runner.flops_per_step or 0.0
    runner.flops_per_step = before + (float(counter.get_total_flops()) - before) / counted
    return numbers


def _keep(contenders: Sequence[Contender], data: TrainingData, log: Log, validated: int, out: Path) -> None:
    kept = {contender.name: contender.state() for contender in contenders}
    counters = {
        "models": {name: numbers for name, (_, numbers) in kept.items()},
        "validated": validated,
        "log": log.state(),
        "subjects": data.subjects,
    }
    tensors = {name: named for name, (named, _) in kept.items()}
    state.write(out / _STATE, sum(contender.steps for contender in contenders), tensors, counters)


def _restore(kept: State, contenders: Sequence[Contender], data: TrainingData, log: Log) -> int:
    """Everything back to where it was; returns how many validations there had been."""
    if kept.counters["subjects"] != data.subjects:
        raise DatasetError("the training subjects are no longer those that the run began with; bring them back")
    for contender in contenders:
        contender.restore(kept.tensors[contender.name], kept.counters["models"][contender.name])
    log.restore(kept.counters["log"])
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
        query = as_query(*every_target(batch.acquired.numpy(), samples, subsets))
        missing = ~query.sources.gather(1, query.target[:, None]).squeeze(1)
        query = type(query)(query.sample[missing], query.sources[missing], query.target[missing])
        device = contender.variance.device
        prediction = contender.averaged(_to(batch, device).images, query)
        _, mse, _ = objective(prediction, _to(batch, device), query, contender.config.losses, contender.variance)
        values.append(-10 * torch.log10(mse + 1e-6))
    return float(torch.cat(values).mean())


def _to(batch: Batch, device: str | torch.device) -> Batch:
    if str(device) == "cpu":
        return batch
    return replace(
        batch,
        images=batch.images.to(device),
        targets=batch.targets.to(device),
        foreground=batch.foreground.to(device),
    )


def _save(contenders: list[Contender], config: TrainConfig, data: TrainingData, out: Path, *, finished: bool) -> None:
    statistics = data.statistics
    names = statistics.modalities
    maps = {
        target: {
            source: (float(statistics.slope[i, j]), float(statistics.intercept[i, j]), float(statistics.residual[i, j]))
            for i, source in enumerate(names)
        }
        for j, target in enumerate(names)
    }
    saved = checkpoint.Statistics(
        affine_maps=maps,
        variance={name: float(v) for name, v in zip(names, statistics.variance, strict=True)},
        typical_scaling=statistics.typical_scaling,
    )
    for k, contender in enumerate(contenders):
        folder = out if k == 0 else out / "reference" / contender.name
        params = {name: getattr(contender.params, name) for name in contender.params.__dataclass_fields__}
        model = checkpoint.ModelConfig(
            model=contender.name,
            modalities=names,
            spacing_mm=config.spacing_mm,
            params=params,
            statistics=saved,
            licence=config.licence,
            training=_cost(contender, config, data, finished),
        )
        checkpoint.save(folder, contender.averaged, model)


def _cost(contender: Contender, config: TrainConfig, data: TrainingData, finished: bool) -> dict[str, object]:
    return {
        "finished": finished,
        "seed": config.seed,
        "subjects": {Path(root).name: len(ids) for root, ids in data.subjects.items()},
        "subject_ids": {Path(root).name: ids for root, ids in data.subjects.items()},
        "steps": contender.steps,
        "crops": contender.samples,
        "wall_minutes": round(contender.seconds / 60, 2),
        "flops_per_step": contender.flops_per_step,
        "parameters": sum(p.numel() for p in contender.module.parameters()),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads",
        "torch": torch.__version__,
        "medk2n": medk2n.__version__,
    }
