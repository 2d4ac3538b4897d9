"""`medk2n ablate`: what each part of a trained model is worth, clean and with a damaged input."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medk2n.cli.common import (
    DATA_HELP,
    DamageOption,
    DeviceOption,
    ManifestOption,
    ModelOption,
    OverwriteOption,
    PrecisionOption,
    SeedOption,
    SeverityOption,
)

if TYPE_CHECKING:
    from medk2n.errors import Medk2nError

TABLE = "ablation.md"
FILES = (TABLE, "ablation.csv", "records.csv", "facts.json")


def ablate(
    data: Annotated[Path, typer.Option("--data", help=DATA_HELP)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the table.")],
    model: ModelOption = "default",
    parts: Annotated[list[str] | None, typer.Option("--parts", help="Parts to neutralise: a comma list (all).")] = None,
    modalities: Annotated[
        list[str] | None, typer.Option("--modalities", help="Those under test: t1n,t1c,... (all that the model knows).")
    ] = None,
    subjects: Annotated[list[str] | None, typer.Option("--subjects", help="Ids to keep: a comma list.")] = None,
    every: Annotated[int, typer.Option("--every", min=1, help="Score every Nth slice only: N times faster.")] = 1,
    damage: DamageOption = None,
    severity: SeverityOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "fp32",
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    manifest: ManifestOption = None,
) -> None:
    """Neutralise each part of a trained Med-K2N in turn, and measure what that changes.

    Weights, gates, evidence and heads, one at a time: every target from two and three
    inputs, clean and with one of them damaged (all kinds unless --damage names some). Nothing is trained.
    """
    import sys

    from medk2n.checkpoint import find_model, read_config
    from medk2n.cli.common import end_with, modality_names, resolve_device, run_manifest, split_names, versions
    from medk2n.cli.scoring import damage_asked, hardware, modalities_under_test, progress_over, studies_of
    from medk2n.data.discover import discover
    from medk2n.errors import DatasetError, UnknownNameError
    from medk2n.evaluation.ablation import compared, write_ablation
    from medk2n.evaluation.damage import measure_damage
    from medk2n.evaluation.neutralise import PARTS
    from medk2n.inference.predictor import load_predictor
    from medk2n.io.atomic import write_json
    from medk2n.io.outputs import output_folder

    options = {"model": model, "data": data, "out": out, "parts": parts, "modalities": modalities}
    options |= {"subjects": subjects, "every": every, "damage": damage, "severity": severity}
    options |= {"device": device, "precision": precision, "seed": seed, "overwrite": overwrite}
    with run_manifest(manifest, "ablate", options, overwrite=overwrite) as run:
        chosen = split_names(parts) or list(PARTS)
        if unknown := [name for name in chosen if name not in PARTS]:
            raise UnknownNameError(f"--parts {','.join(unknown)}: expected some of {', '.join(PARTS)}")
        folder = find_model(model)
        config = read_config(folder)
        faults: dict[str, Medk2nError] = {}
        found = discover(data, subjects=split_names(subjects) or None, faulty=faults.__setitem__)
        tested = modalities_under_test(modality_names(modalities, "--modalities"), config.modalities, found, data)
        kinds, severities = damage_asked(split_names(damage) or ["all"], severity, found, tested)
        with output_folder(out, FILES, overwrite=overwrite) as place:
            run.device = resolve_device(device)
            predictors = compared(load_predictor(folder, run.device, every=every, precision=precision), chosen)
            failed = {subject: str(fault) for subject, fault in faults.items()}
            how = {"modalities": tested, "kinds": kinds, "severities": severities, "every": every, "seed": seed}
            with progress_over("ablate", found) as advance:
                studies = studies_of(found, config.spacing_mm, failed)
                records = measure_damage(predictors, studies, **how, progress=advance)
            if not records:
                raise DatasetError(f"{data}: no subject with three modalities could be read: {list(failed.values())}")
            facts = {
                "model": {"folder": str(folder), "sha256": config.sha256},
                "data": {"folder": str(data), "subjects": [s.id for s in found], "failed": failed},
                "parts": chosen,
                "precision": precision,
                **how,
            }
            with place.whole(last=TABLE) as new:
                table = write_ablation(new, records, seed=seed)
                about = {**facts, "hardware": hardware(run.device), "versions": versions()}
                write_json(new / "facts.json", {**about, "command": ["medk2n", *sys.argv[1:]]})
        run.outputs += [out / name for name in sorted(FILES)]
        run.facts |= facts
        typer.echo(table)
        end_with(failed)
