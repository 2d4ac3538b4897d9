"""`medk2n benchmark`: the tables of the paper for a run's models, on one data set."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medk2n.cli.common import (
    DATA_HELP,
    DamageOption,
    DeviceOption,
    ForceOption,
    ManifestOption,
    OverwriteOption,
    PreferOption,
    SeedOption,
    SeverityOption,
)
from medk2n.cli.complaints import say
from medk2n.registry import names, resolve

if TYPE_CHECKING:
    from medk2n.data.subject import Subject
    from medk2n.errors import Medk2nError
    from medk2n.evaluation.benchmark import Collector, NoiseFree, Values
    from medk2n.evaluation.benchmarks._benchmark import Benchmark
    from medk2n.inference.predictor import SlicePredictor

BENCHMARKS = "evaluation/benchmarks"
TABLE = "table1.md"
FILES = (TABLE, "values.csv", *(f"table{number}.{kind}" for number in (1, 2) for kind in ("csv", "md", "tex", "png")),
         "grid.png", "facts.json", "damage.csv", "damage.md", "damage.png", "identity.md", "identity.csv")  # fmt: skip


def benchmark(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"{', '.join(names(BENCHMARKS))}.")],
    model: Annotated[str, typer.Option("--model", help="Run folder: its model and each in its reference/.")],
    data: Annotated[Path, typer.Option("--data", help=DATA_HELP)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for tables and figures.")],
    subjects: Annotated[list[str] | None, typer.Option("--subjects", help="Ids to keep: a comma list.")] = None,
    prefer: PreferOption = None,
    every: Annotated[int, typer.Option("--every", min=1, help="Score every Nth slice only: N times faster.")] = 1,
    damage: DamageOption = None,
    severity: SeverityOption = None,
    force: ForceOption = False,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    manifest: ManifestOption = None,
) -> None:
    """Compare all models of a run, and `copy`, on one data set: the paper's tables, with tests.

    Every model is asked the same by the same evaluator. Table 1 has a row for each set of inputs, table 2 one for each
    target: PSNR, SSIM and MAE, raw and after the best gain and offset; the run's model is tested against each other.
    """
    from medk2n.checkpoint import find_model
    from medk2n.cli.common import LeftOutFiles, end_with, resolve_device, run_manifest, split_names
    from medk2n.cli.scoring import costs, damage_asked, hardware, judged, judgement, measure, measure_damage
    from medk2n.data.discover import discover
    from medk2n.evaluation.benchmark import Collector
    from medk2n.evaluation.copy import CopyPredictor
    from medk2n.evaluation.damage_table import write_damage
    from medk2n.evaluation.noise_ceiling import CEILING
    from medk2n.gatekeeper import Gatekeeper
    from medk2n.io.outputs import output_folder

    options = {"name": name, "model": model, "data": data, "out": out, "subjects": subjects, "prefer": prefer}
    options |= {"every": every, "damage": damage, "severity": severity, "force": force}
    options |= {"device": device, "seed": seed, "overwrite": overwrite}
    with run_manifest(manifest, "benchmark", options, overwrite=overwrite) as run:
        chosen: Benchmark = resolve(BENCHMARKS, name)
        folder = find_model(model)
        asked, files = split_names(subjects) or list(chosen.subjects), LeftOutFiles()
        faults: dict[str, Medk2nError] = {}
        told: dict[str, Any] = {"faulty": faults.__setitem__, "left_out": files.add}
        found = discover(data, subjects=asked or None, prefer=split_names(prefer), **told)
        files.tell()
        found = _usable(chosen, found, data)
        asked_damage = damage_asked(split_names(damage), severity, found, chosen.modalities)
        with output_folder(out, FILES, overwrite=overwrite) as place:
            run.device = resolve_device(device)
            models = _models(chosen, folder, run.device, every)
            config = models[0].config
            _refuse_learned(models, data, found)
            noise_free = _noise_free(data, config.spacing_mm, every)
            methods = [*(p.name for p in models), "copy", *([CEILING] if noise_free else [])]
            collector = Collector(methods[0], noise_free)
            heard = judged(folder, collector)
            asked_how = {"modalities": chosen.modalities, "config": config, "every": every}
            compared = [*models, CopyPredictor(config)]
            keeper = Gatekeeper.of_model(folder, config.spacing_mm, force=force)
            outcome = measure(compared, found, **asked_how, listener=heard, keeper=keeper)
            records, scored = outcome.records, outcome.scored(found)
            bad = measure_damage(compared, scored, **asked_how, damage=asked_damage, seed=seed)
            failed = outcome.failed | {subject: str(fault) for subject, fault in faults.items()}
            facts = {
                "benchmark": {"name": chosen.name, "label": chosen.label, "modalities": chosen.modalities},
                "model": {"folder": folder.name, "sha256": {p.name: p.config.sha256 for p in models}},
                "data": {
                    "folder": str(data),
                    "groups": {g.label: g.among([s.id for s in scored]) for g in chosen.groups},
                    "failed": failed,
                },
                "methods": methods,
                "spacing_mm": config.spacing_mm,
                "every_nth_slice": every,
                "training": costs(models),
                "checks": outcome.checks,
                "seed": seed,
            }
            with place.whole(last=TABLE) as new:
                said = _write(
                    new, chosen, collector, collector.values(records), {**facts, "hardware": hardware(run.device)}
                )
                said += judgement(new, heard, methods).splitlines()
                if bad:
                    said += write_damage(new, bad, seed=seed).splitlines()
        run.outputs += [out / name for name in sorted(FILES) if (out / name).is_file()]
        run.facts |= facts
        say(*said)
        say(f"Tables and figures: {out}; read table1.md first, then table1.png and grid.png")
        end_with(failed)


def _usable(chosen: "Benchmark", found: "Sequence[Subject]", data: Path) -> "list[Subject]":
    """Subjects with an input and a reference; who has not is named."""
    from medk2n.errors import DatasetError

    usable = [subject for subject in found if len(set(chosen.modalities) & set(subject.modalities)) > 1]
    wanted = ", ".join(chosen.modalities)
    if not usable:
        acquired = sorted({m for subject in found for m in subject.modalities})
        raise DatasetError(
            f"{data}: no subject has two of {wanted} (found: {', '.join(acquired)}); "
            f"give the data of benchmark {chosen.name}"
        )
    if few := [subject.id for subject in found if subject not in usable]:
        say(f"medk2n: {', '.join(few)}: fewer than two of {wanted}, left out", err=True)
    if poor := [s.id for s in usable if not set(chosen.modalities) <= set(s.modalities)]:
        say(f"medk2n: {', '.join(poor)}: not all of {wanted}, so in fewer rows; n says in which", err=True)
    return usable


def _models(chosen: "Benchmark", folder: Path, device: str, every: int) -> "list[SlicePredictor]":
    """The run's model, then each of its references, named by its folder; which of the known models lacks is said."""
    from medk2n.checkpoint import CONFIG, read_config
    from medk2n.errors import UnknownNameError, UsageError
    from medk2n.inference.predictor import load_predictor

    references = [path for path in sorted((folder / "reference").glob("*")) if (path / CONFIG).is_file()]
    for place in (folder, *references):
        known = read_config(place).modalities
        if unknown := [m for m in chosen.modalities if m not in known]:
            raise UnknownNameError(
                f"{place}: benchmark {chosen.name} asks for {', '.join(unknown)}, the model knows {', '.join(known)}; "
                "choose a run that learned them"
            )
    models = [load_predictor(place, device, every=every) for place in (folder, *references)]
    for predictor, path in zip(models[1:], references, strict=True):
        predictor.name = path.name
    methods = [predictor.name for predictor in models]
    if methods[0] in methods[1:]:
        raise UsageError(f"{folder}: its model and one in reference/ are both {methods[0]}; rename that folder")
    if absent := [name for name in names("models") if name not in methods]:
        say(
            f"medk2n: {folder} has no {', '.join(absent)}, so the tables have none; "
            f"train with {' '.join(f'--model {name}' for name in [methods[0], *absent])} to get them",
            err=True,
        )
    return models


def _refuse_learned(models: "Sequence[SlicePredictor]", data: Path, subjects: "Sequence[Subject]") -> None:
    from medk2n.cli.scoring import already_learned
    from medk2n.errors import DatasetError

    for predictor in models:
        if seen := already_learned(predictor.config, data, subjects):
            raise DatasetError(
                f"{data}: {predictor.name} learned from {seen}; expected subjects it has not seen; choose them with "
                "--subjects"
            )


def _noise_free(data: Path, spacing_mm: float, every: int) -> "NoiseFree | None":
    """How to get a study's images without noise; None where the data does not have them."""
    from medk2n.evaluation.noise_ceiling import noise_free_images, noise_free_subjects

    truth = noise_free_subjects(data)
    if not truth:
        return None
    return lambda study: noise_free_images(truth[study.id], study, spacing_mm, every=every)


def _write(
    folder: Path, chosen: "Benchmark", collector: "Collector", values: "Values", facts: Mapping[str, Any]
) -> list[str]:
    """All files; what table 1 says of the PSNR inside the foreground, one sentence a method and group."""
    import sys

    from medk2n.cli.common import versions
    from medk2n.evaluation.benchmark import Line, table_lines
    from medk2n.evaluation.benchmark_figure import picture_grid, table_figure
    from medk2n.evaluation.benchmark_table import in_words, latex, markdown, printed, write_values
    from medk2n.evaluation.table import checks_markdown, costs_markdown, write_csv
    from medk2n.io.atomic import write_json

    methods: list[str] = facts["methods"]
    said: list[str] = []
    write_values(folder / "values.csv", values)
    for number, by_target in ((1, False), (2, True)):
        lines = table_lines(chosen, values, methods, seed=facts["seed"], by_target=by_target)
        stem = f"table{number}"
        write_csv(folder / f"{stem}.csv", Line, lines)
        text = markdown(chosen, lines, methods, by_target=by_target) + costs_markdown(facts["training"])
        text += checks_markdown(facts["checks"], facts["data"]["failed"])
        (folder / f"{stem}.md").write_text(text, encoding="utf-8", errors="backslashreplace")
        (folder / f"{stem}.tex").write_text(
            latex(chosen, lines, methods, by_target=by_target), encoding="utf-8", errors="backslashreplace"
        )
        table_figure(lines, folder / f"{stem}.png", methods=methods, title=f"{chosen.label}: table {number}")
        if not by_target:
            for group in dict.fromkeys(line.group for line in lines):
                said += [f"{group}: {words}" for words in in_words(printed(lines, group), methods[0])]
    picture_grid(collector, folder / "grid.png", methods=methods)
    write_json(folder / "facts.json", {**facts, "versions": versions(), "command": ["medk2n", *sys.argv[1:]]})
    return said
