"""`medk2n plan`: what a training would take for your data on this machine, and why; a thin layer over training.plan."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medk2n.cli.common import DeviceOption, ManifestOption, OverwriteOption, PresetOption, SetOption
from medk2n.cli.complaints import say
from medk2n.io.shown import visible

_WIDTH = 118  # of a table that goes into a file

if TYPE_CHECKING:
    from medk2n.training.plan import Plan


def plan(
    data: Annotated[list[str], typer.Argument(metavar="DATA[:SHARE]...", help="Data folders, as for train --data.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="YAML file to write, for train --config.")] = None,
    preset: PresetOption = "tiny",
    config: Annotated[Path | None, typer.Option("--config", help="A YAML file instead of a preset.")] = None,
    device: DeviceOption = "auto",
    overrides: SetOption = None,
    overwrite: OverwriteOption = False,
    manifest: ManifestOption = None,
) -> None:
    """See how a model would be trained on your data, and why, before it is.

    Modalities, spacing, crop, batch, widths and budget are chosen from the data and the machine where the preset leaves
    them open (auto); what you state with --set stays. Headers are read, and one image of a few subjects.
    """
    import json
    from contextlib import nullcontext

    from medk2n.cli.common import progress_bar, resolve_device, run_manifest
    from medk2n.config.draft import read_draft
    from medk2n.errors import UsageError
    from medk2n.io.atomic import write_text
    from medk2n.io.outputs import output_file
    from medk2n.training.plan import make_plan
    from medk2n.training.planfile import as_yaml

    if out and out.suffix not in (".yaml", ".yml"):
        raise UsageError(f"--out {out}: expected the name of a .yaml file")
    wanted = [*(overrides or []), f"data={json.dumps(data)}"]
    options = {"data": data, "out": out, "preset": preset, "config": config, "set": wanted, "overwrite": overwrite}
    with (
        run_manifest(manifest, "plan", options, overwrite=overwrite) as run,
        output_file(out, overwrite=overwrite) if out else nullcontext(),
    ):
        draft = read_draft(config or preset, wanted)
        run.device = resolve_device(device)
        with progress_bar() as bar:
            line = bar.add_task("looking at the data", total=1.0)
            made = make_plan(draft, run.device, lambda stage, share, _: bar.update(line, completed=share))
        run.facts["config"] = made.config.model_dump()
        show_plan(made)
        if out:
            write_text(out, as_yaml(made, [f"Made by medk2n plan from {config or preset}; edit what you like."]))
            run.outputs.append(out)
            say(f"Plan: {out}; train with: medk2n train --config {out} --out RUN")


def show_plan(plan: "Plan") -> None:
    """Print what was seen, then every setting with its value, its reason and who decided."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from medk2n.training.planfile import value_in_words

    facts, machine = plan.fingerprint, plan.machine
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("setting", "value", "decided by", "reason"):
        table.add_column(heading, no_wrap=heading == "setting")
    for each in plan.decisions:
        table.add_row(*(escape(visible(cell)) for cell in (each.field, value_in_words(each), each.by, each.reason)))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    images = sum(facts.images.values())
    console.print(f"{facts.subjects} subjects, {images} images; {machine.name}, {machine.cores} cores", markup=False)
    console.print(table)
    for note in plan.notes:
        console.print(visible(note), markup=False)
