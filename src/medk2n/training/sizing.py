"""How large crops, batches and models may be on a machine: the first of a few options that fits into memory."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil
from typing import Any

import numpy as np

from medk2n.config.draft import Draft
from medk2n.config.schema import ModelChoice, TrainConfig
from medk2n.data.fingerprint import Fingerprint
from medk2n.errors import ConfigError
from medk2n.registry import resolve
from medk2n.training.machine import Machine
from medk2n.training.memory import Cost, Need, cost

LARGEST_CROP = {"CPU": 96, "GPU": 256}
_LEAST_CROP, _CROP_STEP = 32, 16
_COVERED = 95  # per cent of the patients
_LEVELS = ("small", "medium", "large")
_GPU_BATCHES = (128, 64, 32, 16, 8)
_LESS = (4, 2, 1)
_CPU_BATCH = (2, 8)  # one crop a core, from .. to


@dataclass(frozen=True)
class Option:
    """Sizes that go together; `level` counts through what each model's `ModelSpec.sizes` offers."""

    crop: int
    level: int
    size: int


def sizes_of(model: str) -> Mapping[str, Sequence[tuple[int, ...]]]:
    """Parameters of a model that can be planned -> their small, medium and large value."""
    found: Mapping[str, Sequence[tuple[int, ...]]] = resolve("models", model).sizes
    return found


def choose_sizes(draft: Draft, config: TrainConfig, facts: Fingerprint, machine: Machine) -> dict[str, tuple[Any, str]]:
    """Dotted key -> value and reason, for crop, crops a batch and the models' sizes, as far as they are open.

    Args:
        config: with modalities and spacing settled.

    Raises:
        ConfigError: `auto` for what a model has no choice of.
    """
    open_sizes = [tuple(key.split(".")[1::2]) for key in draft.open if key.startswith("models.")]
    for model, name in open_sizes:
        if name not in sizes_of(model):
            raise ConfigError(f"models.{model}.params.{name}: nothing can plan it; give a value")

    @cache
    def costs(level: int) -> list[Cost]:
        sized = [_sized(choice, open_sizes, level) for choice in config.models]
        return [cost(choice, len(config.modalities), config.batch, config.losses) for choice in sized]

    def fits(option: Option) -> bool:
        return Need.of(costs(option.level), option.size, option.crop, facts.voxels(config.spacing_mm)).fits(machine)

    wanted = _covering(facts, config.spacing_mm)
    options = list(_options(draft, config, machine, wanted))
    best = next(filter(fits, options), options[-1])
    small = " (it may still not fit into memory)" if not fits(best) else ""
    planned: dict[str, tuple[Any, str]] = {
        "batch.crop": (best.crop, _why_crop(best.crop, wanted, config.spacing_mm, machine)),
        "batch.size": (best.size, _why_size(best.size, machine) + small),
    }
    planned = {key: planned[key] for key in planned if key in draft.open}
    for model, name in open_sizes:
        value = list(sizes_of(model)[name][best.level])
        planned[f"models.{model}.params.{name}"] = value, _why_level(best.level, machine)
    return planned


def _sized(choice: ModelChoice, open_sizes: Sequence[tuple[str, ...]], level: int) -> ModelChoice:
    chosen = {name: list(sizes_of(model)[name][level]) for model, name in open_sizes if model == choice.name}
    return choice.model_copy(update={"params": choice.params | chosen})


def _covering(facts: Fingerprint, spacing_mm: float) -> int:
    """Edge of the crop that covers most patients, a multiple of 16."""
    longest = np.percentile([max(box) for box in facts.boxes(spacing_mm)], _COVERED)
    return max(_LEAST_CROP, ceil(longest / _CROP_STEP) * _CROP_STEP)


def _options(draft: Draft, config: TrainConfig, machine: Machine, wanted: int) -> Iterator[Option]:
    """From what is wanted most; what is stated stays.

    A GPU trades width of the models for crops a batch, and large crops only then; a CPU has no time for either.
    """
    crops = range(min(wanted, LARGEST_CROP[machine.kind]), _LEAST_CROP - 1, -_CROP_STEP)
    if machine.is_cpu:
        least, most = _CPU_BATCH
        pairs = [(0, size) for size in range(min(max(machine.cores, least), most), 0, -1)]
    else:
        pairs = [(level, size) for level in (2, 1, 0) for size in _GPU_BATCHES] + [(0, size) for size in _LESS]
    if "batch.size" not in draft.open:
        pairs = list(dict.fromkeys((level, config.batch.size) for level, _ in pairs))
    for crop in crops if "batch.crop" in draft.open else [config.batch.crop]:
        for level, size in pairs:
            yield Option(crop, level, size)


def _why_crop(crop: int, wanted: int, spacing_mm: float, machine: Machine) -> str:
    if crop >= wanted:
        return f"{_COVERED} % of the patients fit at {spacing_mm:g} mm"
    if crop == LARGEST_CROP[machine.kind]:
        return f"patients are up to {wanted} voxels wide; a {machine.kind} learns from {crop} at a time"
    return f"patients are up to {wanted} voxels wide; more does not fit into memory"


def _why_size(size: int, machine: Machine) -> str:
    if machine.is_cpu:
        return f"one for each of {machine.cores} cores, {_CPU_BATCH[0]} to {_CPU_BATCH[1]}"
    return f"the most of {', '.join(map(str, _GPU_BATCHES + _LESS))} that fit into memory"


def _why_level(level: int, machine: Machine) -> str:
    if machine.is_cpu:
        return f"{_LEVELS[level]}: what a CPU learns in hours"
    return f"{_LEVELS[level]}: the largest with room for {_GPU_BATCHES[-1]} crops, else the smallest"
