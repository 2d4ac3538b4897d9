"""`medk2n info`: what is installed and what it knows. Loads no torch without --cost, so it answers at once."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

import medk2n
from medk2n.cli.common import versions
from medk2n.cli.complaints import say


def info(
    model: Annotated[
        str | None, typer.Option("--model", help="Tell of one model only: a bundled name or a folder.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    paths: Annotated[bool, typer.Option("--paths", help="Also where the package and its models are.")] = False,
    cost: Annotated[
        bool,
        typer.Option(
            "--cost", help="Also what an answer costs, measured here; takes a minute or two a model and device."
        ),
    ] = False,
) -> None:
    """Show versions, modalities and models."""
    facts = collect(model, paths=paths)
    if cost:
        for row in facts["models"]:
            row["cost"] = _measure(row["name"])
    say(*(json.dumps(facts, indent=2, ensure_ascii=False) if as_json else _as_text(facts)).splitlines())


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


def _measure(name: str) -> list[dict[str, Any]]:
    """A model's cost card for the CPU, and for a GPU where there is one."""
    from rich.markup import escape

    from medk2n.checkpoint import find_model
    from medk2n.cli.common import progress_bar, resolve_device
    from medk2n.inference.cost import measure

    def card(device: str) -> dict[str, Any]:
        with progress_bar() as bar:
            line = bar.add_task(escape(f"measuring {name} on {device}"), total=None)
            found = measure(find_model(name), device, lambda done, total: bar.update(line, completed=done, total=total))
        return asdict(found)

    return [card(device) for device in dict.fromkeys(["cpu", resolve_device("auto")])]


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
        for card in row.get("cost", ()):
            lines += ["", *_card_as_text(card)]
    if not facts["models"]:
        lines.append("no model is bundled with this installation; train one with `medk2n train`")
    if "paths" in facts:
        lines += ["", f"package: {facts['paths']['package']}"]
    return "\n".join(lines)


def _card_as_text(card: dict[str, Any]) -> list[str]:
    """A table in Markdown that is as readable on a terminal."""
    threads = card["threads"]
    where = card["device_name"] if card["device"] != "cpu" else f"the CPU, {threads} thread{'s' * (threads > 1)}"
    heads = ("in", "out", "encodes", "passes", "GFLOP", "time, ms", "encoder", "memory, MB")
    lines = [
        f"{card['parameters'] / 1e6:.2f} M parameters, of which training moves {card['trainable'] / 1e6:.2f} M.",
        f"One slice of {card['size'][0]} x {card['size'][1]} voxels on {where}, without a study's decisions, which are",
        f"taken once. Time: the median of {card['repeats']} passes. Memory: what a pass takes above the loaded model.",
    ]
    if any(row["apart"] for row in card["rows"]):
        lines.append("All gates are open: nothing is skipped. In rows with several passes each target lets in")
        lines.append("other inputs instead, which takes longer still.")
    lines += [
        "",
        "| " + " | ".join(heads) + " |",
        "|" + "|".join("-" * (len(head) + 1) + ":" for head in heads) + "|",
    ]
    for row in card["rows"]:
        share = None if row["encoder_share"] is None else f"{row['encoder_share']:.0%}"
        values = (row["inputs"], row["targets"], row["encodes"], row["passes"], f"{row['gflop']:.1f}")
        values += (f"{row['latency_ms']:.0f}", share, None if row["memory_mb"] is None else f"{row['memory_mb']:.0f}")
        cells = ("-" if value is None else str(value) for value in values)
        lines.append("| " + " | ".join(cell.rjust(len(head)) for cell, head in zip(cells, heads, strict=True)) + " |")
    lines.append("")
    for ratio in card["ratios"]:
        apart = "" if ratio["apart"] is None else f"; {ratio['apart']:.2f} if they let in different inputs"
        lines.append(f"- {ratio['inputs']} in: three targets take {ratio['open']:.2f} times as long as one{apart}.")
    return lines
