"""`medk2n info`: what is installed and what it knows. Loads no torch, so it answers at once."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

import medk2n
from medk2n.cli.common import versions


def info(
    model: Annotated[
        str | None, typer.Option("--model", help="Tell of one model only: a bundled name or a folder.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    paths: Annotated[bool, typer.Option("--paths", help="Also where the package and its models are.")] = False,
) -> None:
    """Show versions, modalities and models."""
    facts = collect(model, paths=paths)
    typer.echo(json.dumps(facts, indent=2, ensure_ascii=False) if as_json else _as_text(facts))


def collect(model: str | None = None, *, paths: bool = False) -> dict[str, Any]:
    """Everything that `info` tells, as plain data.

    Raises:
        UnknownNameError, CheckpointError: no such model, or its folder is damaged.
    """
    from medk2n.checkpoint import bundled, find_model
    from medk2n.vocabulary import MODALITIES

    names = [model] if model else bundled()
    facts: dict[str, Any] = {
        "medk2n": medk2n.__version__,
        "versions": versions(),
        "modalities": [
            {
                "name": row.name,
                "label": row.label,
                "bids": "_".join([*row.bids_entities, row.bids_suffix]),
                "aliases": list(row.aliases),
                "unit": row.unit,
            }
            for row in MODALITIES.values()
        ],
        "models": [_model(name, find_model(name), paths=paths) for name in names],
    }
    if paths:
        facts["paths"] = {"package": str(Path(medk2n.__file__).parent)}
    return facts


def _model(name: str, folder: Path, *, paths: bool) -> dict[str, Any]:
    from medk2n.checkpoint import read_config

    config = read_config(folder)
    known = len(config.modalities)
    facts = {
        "name": name,
        "component": config.model,
        "modalities": list(config.modalities),
        "limits": {"inputs": [1, known], "targets": [1, known]},
        "spacing_mm": config.spacing_mm,
        "licence": config.licence,
        "sha256": config.sha256,
        "size_mb": round(sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6, 2),
    }
    return facts | ({"folder": str(folder)} if paths else {})


def _as_text(facts: dict[str, Any]) -> str:
    lines = [
        f"medk2n {facts['medk2n']}  (Python {facts['versions']['python']}, torch {facts['versions']['torch']})",
        "",
    ]
    lines.append(f"{'modality':10}{'BIDS':20}{'unit':14}also written")
    for row in facts["modalities"]:
        lines.append(f"{row['name']:10}{row['bids']:20}{row['unit']:14}{', '.join(row['aliases'])}")
    lines.append("")
    for row in facts["models"]:
        most = row["limits"]["inputs"][1]
        lines.append(f"model {row['name']}: 1 to {most} of {', '.join(row['modalities'])} in, 1 to {most} out")
        lines.append(
            f"    {row['size_mb']} MB, {row['licence']}, works at {row['spacing_mm']} mm, SHA-256 {row['sha256'][:16]}"
        )
        if "folder" in row:
            lines.append(f"    {row['folder']}")
    if not facts["models"]:
        lines.append("no model is bundled with this installation; train one with `medk2n train`")
    if "paths" in facts:
        lines += ["", f"package: {facts['paths']['package']}"]
    return "\n".join(lines)
