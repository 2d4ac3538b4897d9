"""What a run leaves behind: a folder a model, with what it learned from and what it cost."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

import medk2n
from medk2n import checkpoint
from medk2n.config.schema import TrainConfig
from medk2n.training.begin import Start
from medk2n.training.contender import Contender
from medk2n.training.planfile import read_plan
from medk2n.training.reading import TrainingData
from medk2n.training.world import World


def save_models(
    contenders: Sequence[Contender],
    config: TrainConfig,
    data: TrainingData,
    world: World,
    out: Path,
    start: Start | None,
    *,
    finished: bool,
) -> None:
    """Write the first model to `out`, the others to `out/reference/<name>`: averaged weights, statistics and cost."""
    saved = start.model.statistics if start else _statistics(data)
    planned = {"plan": plan["decisions"]} if (plan := read_plan(out)) else {}
    for k, contender in enumerate(contenders):
        folder = out if k == 0 else out / "reference" / contender.name
        params = {name: getattr(contender.params, name) for name in contender.params.__dataclass_fields__}
        begun = start.told(contender.name) if start else {}
        model = checkpoint.ModelConfig(
            model=contender.name,
            modalities=data.statistics.modalities,
            spacing_mm=config.spacing_mm,
            params=params,
            statistics=saved,
            licence=config.licence,
            training=_cost(contender, config, data, world) | {"finished": finished} | planned | begun,
        )
        checkpoint.save(folder, contender.averaged, model)


def _statistics(data: TrainingData) -> checkpoint.Statistics:
    statistics = data.statistics
    names = statistics.modalities
    maps = {
        target: {
            source: (float(statistics.slope[i, j]), float(statistics.intercept[i, j]), float(statistics.residual[i, j]))
            for i, source in enumerate(names)
        }
        for j, target in enumerate(names)
    }
    return checkpoint.Statistics(
        affine_maps=maps,
        variance={name: float(v) for name, v in zip(names, statistics.variance, strict=True)},
        typical_scaling=statistics.typical_scaling,
    )


def _cost(contender: Contender, config: TrainConfig, data: TrainingData, world: World) -> dict[str, object]:
    subjects: dict[str, list[str]] = {}
    for root, ids in data.subjects.items():  # two folders may be called alike
        subjects.setdefault(Path(root).name, []).extend(ids)
    return {
        "seed": config.seed,
        "subjects": {name: len(ids) for name, ids in subjects.items()},
        "subject_ids": subjects,
        "steps": contender.steps,
        "crops": contender.samples,
        "wall_minutes": round(contender.seconds / 60, 2),
        "data_wait_share": round(contender.waited / max(contender.waited + contender.seconds, 1e-9), 4),
        "flops_per_step": contender.flops_per_step,
        "parameters": sum(p.numel() for p in contender.module.parameters()),
        "hardware": _hardware(world),
        "processes": world.size,
        "precision": world.precision,
        "torch": torch.__version__,
        "medk2n": medk2n.__version__,
    }


def _hardware(world: World) -> str:
    if world.device.type == "cuda":
        return torch.cuda.get_device_name(world.device)
    return f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads"
