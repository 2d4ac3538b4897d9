"""`medk2n evaluate`: a model and its reference rows on a data set, every input subset, every missing target."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medk2n.cli.common import (
    DATA_HELP,
    DamageOption,
    DeviceOption,
    ForceOption,
    ManifestOption,
    ModelOption,
    OverwriteOption,
    PrecisionOption,
    PreferOption,
    SeedOption,
    SeverityOption,
)
from medk2n.cli.complaints import say

if TYPE_CHECKING:
    from medk2n.checkpoint import ModelConfig
    from medk2n.data.subject import Subject
    from medk2n.errors import Medk2nError
    from medk2n.evaluation.evaluate import Record
    from medk2n.evaluation.panel import Panel
    from medk2n.inference._spec import Predictor

TABLE = "table.md"
FILES = (TABLE, "records.csv", "table.csv", "differences.csv", "table.json", "psnr.png", "picture.png",
         "protocols.csv", "protocols.md", "protocols.png", "damage.csv", "damage.md", "damage.png",
         "identity.md", "identity.csv")  # fmt: skip

_MANY = 5  # modalities: 30 input subsets a subject; more deserves a warning


@dataclass(frozen=True)
class _Task:
    """What is compared: `methods` are the table's columns, also of methods that are not there."""

    predictors: "Sequence[Predictor]"
    methods: Sequence[str]
    subjects: "Sequence[Subject]"
    modalities: Sequence[str]
    spacing_mm: float | None
    every: int
    panel: "Panel | None"


def evaluate(
    data: Annotated[Path, typer.Option("--data", help=DATA_HELP)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for tables and figures.")],
    model: ModelOption = "default",
    modalities: Annotated[
        list[str] | None, typer.Option("--modalities", help="Those under test: t1n,t1c,... (all that the model knows).")
    ] = None,
    subjects: Annotated[list[str] | None, typer.Option("--subjects", help="Ids to keep: a comma list.")] = None,
    exclude: Annotated[list[str] | None, typer.Option("--exclude", help="Ids to leave out: a comma list.")] = None,
    prefer: PreferOption = None,
    split: Annotated[Path | None, typer.Option("--split", help="split.json of index: its test part alone.")] = None,
    every: Annotated[int, typer.Option("--every", min=1, help="Score every Nth slice only: N times faster.")] = 1,
    protocol: Annotated[
        list[str] | None, typer.Option("--protocol", help="Also measure by published recipes: names, or all.")
    ] = None,
    damage: DamageOption = None,
    severity: SeverityOption = None,
    force: ForceOption = False,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "fp32",
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    manifest: ManifestOption = None,
) -> None:
    """Measure a model on scans whose truth is known.

    For every non-empty subset of the modalities and every one missing from it: PSNR, SSIM and MAE inside one
    foreground mask per study and over the whole image, beside two reference rows, `copy` and `unet`. --protocol
    measures the same images under published recipes too, before and after the best gain and offset. --damage adds a
    comparison with one of two or three inputs damaged: beside the same inputs whole, and the damaged one left out.
    """
    from medk2n.checkpoint import find_model, read_config
    from medk2n.cli.common import LeftOutFiles, end_with, modality_names, resolve_device, run_manifest, split_names
    from medk2n.cli.scoring import (
        costs,
        damage_asked,
        hardware,
        judged,
        judgement,
        measure,
        measure_damage,
        modalities_under_test,
    )
    from medk2n.data.discover import discover
    from medk2n.evaluation.damage_table import write_damage
    from medk2n.evaluation.panel_table import write_panel
    from medk2n.gatekeeper import Gatekeeper
    from medk2n.io.outputs import output_folder

    options = {"model": model, "data": data, "out": out, "modalities": modalities, "subjects": subjects}
    options |= {"exclude": exclude, "prefer": prefer, "split": split, "every": every, "protocol": protocol}
    options |= {"damage": damage, "severity": severity, "force": force}
    options |= {"device": device, "precision": precision, "seed": seed, "overwrite": overwrite}
    with run_manifest(manifest, "evaluate", options, overwrite=overwrite) as run:
        panel = _panel(split_names(protocol), every)
        folder = find_model(model)
        config = read_config(folder)
        faults: dict[str, Medk2nError] = {}
        kept, files = split_names(subjects) or None, LeftOutFiles()
        told: dict[str, Any] = {"faulty": faults.__setitem__, "left_out": files.add}
        found = discover(data, subjects=kept, exclude=split_names(exclude), prefer=split_names(prefer), **told)
        files.tell()
        if split:
            found = _test_part(found, split, data, config)
        tested = modalities_under_test(modality_names(modalities, "--modalities"), config.modalities, found, data)
        if len(tested) > _MANY:
            say(
                f"medk2n: {len(tested)} modalities make {2 ** len(tested) - 2} input subsets a subject; "
                "--modalities takes fewer",
                err=True,
            )
        usable = [s for s in found if len(set(tested) & set(s.modalities)) > 1]
        asked = damage_asked(split_names(damage), severity, usable, tested)
        with output_folder(out, FILES, overwrite=overwrite) as place:
            run.device = resolve_device(device)
            predictors, methods = _predictors(folder, config, run.device, every, precision)
            task = _Task(predictors, methods, usable, tested, config.spacing_mm, every, panel)
            heard = judged(folder, panel)
            outcome = measure(
                predictors,
                usable,
                modalities=tested,
                config=config,
                every=every,
                listener=heard,
                keeper=Gatekeeper.of_model(folder, config.spacing_mm, force=force),
            )
            records, scored = outcome.records, outcome.scored(usable)
            failed = outcome.failed | {subject: str(fault) for subject, fault in faults.items()}
            bad = measure_damage(
                predictors, scored, modalities=tested, config=config, every=every, damage=asked, seed=seed
            )
            facts = {
                "model": {"folder": str(folder), "sha256": config.sha256, "modalities": list(config.modalities)},
                "data": {
                    "folder": str(data),
                    "modalities": tested,
                    "subjects": [s.id for s in usable],
                    "failed": failed,
                },
                "spacing_mm": config.spacing_mm,
                "every_nth_slice": every,
                "precision": precision,
                "training": costs(predictors),
                "checks": outcome.checks,
                "seed": seed,
            }
            with place.whole(last=TABLE) as new:
                table = _write(new, records, methods, {**facts, "hardware": hardware(run.device)})
                table += "\n" + judgement(new, heard, methods)
                if panel:
                    table += "\n" + write_panel(new, panel, methods=methods)
                if bad:
                    table += "\n" + write_damage(new, bad, seed=seed)
                _draw(new, records, task, failed)
        run.outputs += [out / name for name in sorted(FILES) if (out / name).is_file()]
        run.facts |= facts
        say(*table.splitlines())
        also = "; protocols.md and protocols.png show the same images as others measure" if panel else ""
        say(f"Tables and figures: {out}; read table.md first, then psnr.png and picture.png{also}")
        end_with(failed)


def _panel(wanted: Sequence[str], every: int) -> "Panel | None":
    """The protocols asked for; None without any."""
    from medk2n.errors import UsageError
    from medk2n.evaluation.panel import PROTOCOLS, Panel
    from medk2n.registry import names, resolve

    if not wanted:
        return None
    if every > 1:
        raise UsageError(f"--protocol with --every {every}: protocols measure whole volumes; leave --every out")
    chosen = names(PROTOCOLS) if "all" in wanted else dict.fromkeys(wanted)
    return Panel([resolve(PROTOCOLS, name) for name in sorted(chosen, key=lambda name: name != "foreground")])


def _test_part(found: "Sequence[Subject]", path: Path, data: Path, config: "ModelConfig") -> "list[Subject]":
    """Those of the subjects that a split keeps for the test; the model must not have learned from any."""
    from medk2n.cli.scoring import already_learned
    from medk2n.data.split import read_split
    from medk2n.errors import DatasetError

    test = set(read_split(path).part("test"))
    kept = [subject for subject in found if subject.id in test]
    if not kept:
        raise DatasetError(f"{path}: none of the subjects of {data} is in its test part")
    if seen := already_learned(config, data, kept):
        raise DatasetError(f"{path}: the model learned from {seen}, expected a model trained with this split")
    return kept


def _predictors(
    folder: Path, config: "ModelConfig", device: str, every: int, precision: str
) -> "tuple[list[Predictor], list[str]]":
    """The model, the U-Net trained beside it if there is one, the copy row; and the columns of the table."""
    from medk2n.checkpoint import CONFIG, REFERENCE_UNET
    from medk2n.evaluation.copy import CopyPredictor
    from medk2n.inference.predictor import load_predictor

    predictors: list[Predictor] = [load_predictor(folder, device, every=every, precision=precision)]
    reference = folder / REFERENCE_UNET
    if predictors[0].name != "unet":
        if (reference / CONFIG).is_file():
            predictors.append(load_predictor(reference, device, every=every, precision=precision))
        else:
            say(
                f"medk2n: {folder} has no {REFERENCE_UNET}, so the unet column says n/a; "
                "train with the reference U-Net on to get it",
                err=True,
            )
    predictors.append(CopyPredictor(config))
    return predictors, list(dict.fromkeys([predictors[0].name, "unet", "copy"]))


def _write(folder: Path, records: "Sequence[Record]", methods: Sequence[str], facts: dict[str, Any]) -> str:
    import sys

    import numpy as np

    from medk2n.cli.common import versions
    from medk2n.evaluation.summary import summarise
    from medk2n.evaluation.table import write_tables

    summary = summarise(records, method=methods[0], references=methods[1:], rng=np.random.default_rng(facts["seed"]))
    facts = {**facts, "versions": versions(), "command": ["medk2n", *sys.argv[1:]]}
    return write_tables(folder, records, summary, methods=methods, facts=facts)


def _draw(folder: Path, records: "Sequence[Record]", task: _Task, failed: dict[str, str]) -> None:
    """All values, and the first subject (read again: studies are not kept) with half of its modalities given."""
    from medk2n.data.working import every_nth, load_working
    from medk2n.evaluation.evaluate import ask
    from medk2n.evaluation.figure import picture, psnr_figure
    from medk2n.evaluation.rows import rows

    psnr_figure(records, folder / "psnr.png", methods=task.methods)
    study = load_working(next(s for s in task.subjects if s.id not in failed), task.spacing_mm)
    row = next(r for r in rows(task.modalities, study.images) if len(r.sources) >= len(r.targets))
    at = every_nth(len(study.foreground), task.every)
    outputs = {
        predictor.name: {target: answer.image[at] for target, answer in ask(predictor, study, row).items()}
        for predictor in task.predictors
    }
    picture(study.thinned(at), row, outputs, folder / "picture.png")
