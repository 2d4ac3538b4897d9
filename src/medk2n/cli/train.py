"""`medk2n train`: a thin layer over `medk2n.training.run.train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medk2n.cli.common import (
    DATA_HELP,
    DeviceOption,
    Manifest,
    ManifestOption,
    OverwriteOption,
    PreferOption,
    PresetOption,
    SetOption,
)
from medk2n.cli.complaints import one_line, say
from medk2n.registry import names

if TYPE_CHECKING:
    from medk2n.config.draft import Draft
    from medk2n.training.plan import Plan


def train(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the model that is made.")],
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="DIR[:SHARE]", help=f"{DATA_HELP} Repeatable."),
    ] = None,
    val: Annotated[Path | None, typer.Option("--val", help="Data that is watched and never learned from.")] = None,
    split: Annotated[
        Path | None,
        typer.Option("--split", help="split.json of index: what to learn from, and to watch."),
    ] = None,
    subjects: Annotated[list[str] | None, typer.Option("--subjects", help="Ids to keep: a comma list.")] = None,
    exclude: Annotated[list[str] | None, typer.Option("--exclude", help="Ids to leave out: a comma list.")] = None,
    prefer: PreferOption = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help=f"What to train instead of the configured models: {', '.join(names('models'))}. "
            "Repeatable: several learn interleaved, the first goes to --out, the others to its reference folder.",
        ),
    ] = None,
    begin_from: Annotated[
        str | None,
        typer.Option("--from", metavar="MODEL", help="Begin with the weights of a bundled model or a model folder."),
    ] = None,
    preset: PresetOption = "tiny",
    config: Annotated[Path | None, typer.Option("--config", help="A YAML file instead of a preset.")] = None,
    minutes: Annotated[float | None, typer.Option("--minutes", help="Wall time for each model of the run.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="The same seed draws the same batches.")] = None,
    device: DeviceOption = "auto",
    overrides: SetOption = None,
    overwrite: OverwriteOption = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, with its own settings, where it was stopped.")
    ] = False,
    manifest: ManifestOption = None,
) -> None:
    """Train a model (and its reference U-Net beside it) on your own scans or on a digital cohort.

    What the preset leaves open is planned from the data and the machine (see medk2n plan) and kept in plan.json.
    Several processes share each step: torchrun --nproc-per-node 2 -m medk2n train ... --set batch.accumulate=2
    """
    import json

    from medk2n.cli.common import first_process, resolve_device, run_manifest, split_names
    from medk2n.config.draft import read_draft
    from medk2n.errors import UsageError
    from medk2n.io.outputs import HOME

    given = (begin_from, data, val, split, subjects, exclude, prefer, models, config, minutes, seed is not None)
    if resume and any((*given, overrides, overwrite)):
        raise UsageError("--resume goes on with the run's own settings: give --out alone, or start a run without it")
    wanted = list(overrides or [])
    if data:
        wanted.append(f"data={json.dumps(data)}")
    if begin_from:
        wanted.append(f"begin_from={json.dumps(begin_from)}")
    if val:
        wanted.append(f"validation={json.dumps(str(val))}")
    if split:
        wanted.append(f"split={json.dumps(str(split))}")
    if subjects:
        wanted.append(f"subjects={json.dumps(split_names(subjects))}")
    if exclude:
        wanted.append(f"exclude={json.dumps(split_names(exclude))}")
    if prefer:
        wanted.append(f"prefer={json.dumps(split_names(prefer))}")
    if minutes is not None:
        wanted += [f"budget.minutes={minutes}", "budget.steps=null"]
    if seed is not None:
        wanted.append(f"seed={seed}")
    options = {"out": out, "preset": preset, "config": config, "model": models, "device": device, "set": wanted}
    options |= {"overwrite": overwrite, "resume": resume}
    leads = first_process()
    with run_manifest(manifest if leads else None, "train", options, overwrite=overwrite) as run:
        draft = None
        if not resume:
            draft = read_draft(config or preset, wanted, models)
            run.facts["config"] = draft.tree
        run.device = resolve_device(device)
        _train(draft, out, run, overwrite=overwrite)
        run.outputs += sorted(path for path in out.rglob("*") if path.is_file() and HOME not in path.parts)
    if leads:
        say(f"Model: {out}; measure it with: medk2n evaluate --model {out} --data DIR --out OUT")


def _train(draft: "Draft | None", out: Path, manifest: Manifest, *, overwrite: bool) -> None:
    """Train by settings, or, where they are None, go on with what is in `out`."""
    import warnings

    from medk2n.cli.common import first_process, progress_bar
    from medk2n.cli.plan import show_plan
    from medk2n.training import run

    device = manifest.device or "cpu"
    with warnings.catch_warnings(), progress_bar() as bar:
        warnings.showwarning = lambda message, *rest, **named: bar.console.print(
            f"medk2n: warning: {one_line(str(message))}", markup=False
        )
        line = bar.add_task("reading", total=1.0)

        def report(stage: str, share: float, numbers: dict[str, float]) -> None:
            if stage == "validation" and first_process():
                scores = "   ".join(f"{model} {score:.2f} dB" for model, score in numbers.items())
                bar.console.print(f"validation at {share:4.0%}   {scores}", highlight=False)
                return
            latest = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
            bar.update(line, completed=share, description=f"{stage}  {latest}".strip())

        def show(plan: "Plan") -> None:
            manifest.facts["config"] = plan.config.model_dump()
            if not bar.disable:  # two writers to one terminal would mix
                bar.stop()
            show_plan(plan)
            if not bar.disable:
                bar.start()

        if draft is None:
            run.resume(out, device=device, report=report)
        else:
            run.train(draft, out, device=device, overwrite=overwrite, report=report, show=show)
