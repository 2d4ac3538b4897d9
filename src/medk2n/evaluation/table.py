"""The tables of an evaluation: CSV to compute with, JSON to keep, Markdown to read."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from medk2n.evaluation.claims import Claim, claims
from medk2n.evaluation.evaluate import DATA_RANGE, Record
from medk2n.evaluation.summary import MEAN_ROW, Cell, Difference, Summary
from medk2n.io.atomic import write_text
from medk2n.io.shown import csv_text, in_markdown
from medk2n.metrics._metric import Metric
from medk2n.registry import resolve

TRAINING_COST = ("wall_minutes", "steps", "crops", "flops_per_step", "parameters")
"""What a checkpoint says of its training that belongs beside a comparison."""

_REGIONS = {
    "foreground": "Inside the foreground mask (one per subject, the same for every row and method)",
    "brain": "Inside the data set's brain mask",
    "lesion": "Inside the lesion",
    "whole": "Whole image, background included (flatters every method: compare with the foreground)",
}


def write_tables(
    folder: Path, records: Sequence[Record], summary: Summary, *, methods: Sequence[str], facts: Mapping[str, Any]
) -> str:
    """Write records.csv, table.csv, differences.csv, table.json and table.md; return the Markdown.

    Args:
        methods: columns, in order; one without values reads "n/a".
        facts: plain data about the run (model, data, seed, ...), kept in the JSON.
    """
    write_csv(folder / "records.csv", Record, records)
    write_csv(folder / "table.csv", Cell, summary.cells)
    write_csv(folder / "differences.csv", Difference, summary.differences)
    claimed = claims(records)
    content = {
        **facts,
        "data_range": DATA_RANGE,
        "methods": list(methods),
        "cells": [_plain(cell) for cell in summary.cells],
        "differences": [_plain(difference) for difference in summary.differences],
        "claims": [_plain(claim) for claim in claimed],
    }
    (folder / "table.json").write_text(
        json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8", errors="backslashreplace"
    )
    text = markdown(summary, methods) + claims_markdown(claimed) + costs_markdown(facts.get("training", {}))
    text += checks_markdown(facts.get("checks", {}), facts.get("data", {}).get("failed", {}))
    (folder / "table.md").write_text(text, encoding="utf-8", errors="backslashreplace")
    return text


def markdown(summary: Summary, methods: Sequence[str]) -> str:
    """One section a region, one table a metric: rows are inputs, columns methods and paired differences."""
    lines = [
        f"All values in the scaled unit: each image scaled to [0, 1] on its own, data range {DATA_RANGE:g}.",
        "Mean ± standard deviation over n subjects, each averaged over its targets; best mean in bold.",
        "Differences are paired by subject: mean [95 % bootstrap interval], Wilcoxon p where n >= 6.",
    ]
    present = {cell.region for cell in summary.cells}
    for region in (r for r in _REGIONS if r in present):
        lines += ["", f"## {_REGIONS[region]}"]
        for name in ("psnr", *sorted({c.metric for c in summary.cells} - {"psnr"})):
            lines += ["", *_metric_table(summary, region, resolve("metrics", name), methods)]
    return "\n".join(lines) + "\n"


def claims_markdown(claimed: Sequence[Claim]) -> str:
    """A table of predicted against measured PSNR; nothing if no method predicts its error."""
    if not claimed:
        return ""
    lines = [
        "",
        "## What a method expects of its own images",
        "",
        "PSNR inside the foreground, in dB; an image is one target of one subject from one set of inputs.",
        "",
        "| method | target | images | measured | predicted | mean absolute difference | correlation |",
        "|---|---|---|---|---|---|---|",
    ]
    for c in claimed:
        correlation = "n/a" if math.isnan(c.correlation) else f"{c.correlation:.2f}"
        numbers = f"{c.measured:.2f} | {c.predicted:.2f} | {c.off:.2f} | {correlation}"
        lines.append(f"| {c.method} | {c.target} | {c.n} | {numbers} |")
    return "\n".join(lines) + "\n"


def costs_markdown(training: Mapping[str, Mapping[str, float]]) -> str:
    """What each trained method took; nothing if no checkpoint says."""
    rows = [(method, cost) for method, cost in training.items() if cost]
    if not rows:
        return ""
    lines = ["", "## What training took", "", "| method | minutes | steps | crops | GFLOP a step | parameters |"]
    lines.append("|---|---|---|---|---|---|")
    for method, cost in rows:
        flops = cost.get("flops_per_step")
        known = {**cost, "flops_per_step": None if flops is None else round(flops / 1e9, 1)}
        cells = ("n/a" if known.get(key) is None else str(known[key]) for key in TRAINING_COST)
        lines.append("| " + " | ".join([in_markdown(method), *cells]) + " |")
    return "\n".join(lines) + "\n"


def checks_markdown(checks: Mapping[str, Mapping[str, Any]], failed: Mapping[str, str]) -> str:
    """What the gatekeeper told of the scans that were scored, and who was not scored; nothing if it saw none.

    Args:
        checks: subject -> `Examined.to_json`.
        failed: subject -> complaint.
    """
    if not checks:
        return ""
    rows = [(subject, f"not scored: {complaint}") for subject, complaint in failed.items()]
    rows += [
        (subject, f"{doubt['modality']} {doubt['what']} (certainty {doubt['certainty']:.2f})"
                  + (", forced" if doubt["refuses"] else ""))
        for subject, found in checks.items() if subject not in failed for doubt in found["doubts"]
    ]  # fmt: skip
    unknown = sorted({name for found in checks.values() for name in found["not_judged"]})
    named = f"; it cannot judge the names of {', '.join(unknown)}, which no V of the model learned" if unknown else ""
    doubted = len({subject for subject, _ in rows})
    told = f"The gatekeeper looked at the scans of {len(checks)} subjects{named}. "
    lines = ["", "## What was looked at first", "", told + (f"It tells of {doubted}:" if rows else "It doubts none.")]
    if rows:
        lines += ["", "| subject | what |", "|---|---|"]
        lines += [f"| {in_markdown(subject)} | {in_markdown(what)} |" for subject, what in rows]
    return "\n".join(lines) + "\n"


def _metric_table(summary: Summary, region: str, metric: Metric, methods: Sequence[str]) -> list[str]:
    cells = {(c.sources, c.method): c for c in summary.cells if (c.region, c.metric) == (region, metric.name)}
    found = [d for d in summary.differences if (d.region, d.metric) == (region, metric.name)]
    differences = {(d.sources, d.method, d.reference): d for d in found}
    pairs = list(dict.fromkeys((d.method, d.reference) for d in found))
    named = [*methods, *(f"{ours} - {theirs}" for ours, theirs in pairs)]
    header = ["inputs", "n", *map(in_markdown, named)]
    lines = [
        f"**{metric.label}** ({metric.unit}, {metric.better} is better)",
        "",
        "| " + " | ".join(header) + " |",
        "|---" * len(header) + "|",
    ]
    for row in ordered_rows(sources for sources, _ in cells):
        in_row = [cells.get((row, method)) for method in methods]
        best = _best([cell for cell in in_row if cell], metric)
        words = [mean_text(c.mean, c.sd, metric, bold=c.mean == best) if c else "n/a" for c in in_row]
        words += [_difference_text(differences.get((row, *pair)), metric) for pair in pairs]
        count = max(cell.n for cell in in_row if cell)
        lines.append("| " + " | ".join([row, str(count), *words]) + " |")
    return lines


def ordered_rows(labels: Iterable[str]) -> list[str]:
    """Each label once: fewest inputs first, otherwise as they came; the mean of all rows last."""
    unique = dict.fromkeys(labels)
    return sorted(unique, key=lambda label: math.inf if label == MEAN_ROW else label.count("+"))


def _best(cells: Sequence[Cell], metric: Metric) -> float:
    return min((cell.mean for cell in cells), key=metric.badness)


def mean_text(mean: float, sd: float, metric: Metric, *, bold: bool) -> str:
    """Mean ± standard deviation (left out if NaN) as a cell of Markdown."""
    text = f"{mean:.{metric.decimals}f}"
    spread = "" if math.isnan(sd) else f" ± {sd:.{metric.decimals}f}"
    return (f"**{text}**" if bold else text) + spread


def _difference_text(difference: Difference | None, metric: Metric) -> str:
    if difference is None or math.isnan(difference.mean):
        return "n/a"
    text = interval_text(difference.mean, difference.low, difference.high, metric)
    if not math.isnan(difference.p):
        text += f", p = {difference.p:.2g}"
    return text


def interval_text(mean: float, low: float, high: float, metric: Metric) -> str:
    """A difference, with the bounds of its interval where it has one."""
    digits = metric.decimals
    return f"{mean:+.{digits}f}" + ("" if math.isnan(low) else f" [{low:+.{digits}f}, {high:+.{digits}f}]")


def write_csv(path: Path, kind: type, rows: Iterable[Any]) -> None:
    """One line a row, one column a field of the dataclass `kind`."""
    names = [field.name for field in fields(kind)]
    write_text(path, csv_text(names, ([getattr(row, name) for name in names] for row in rows)))


def _plain(row: Any) -> dict[str, Any]:
    """As JSON knows it: NaN becomes null, infinity the text "inf"."""
    return {key: _json_number(value) for key, value in asdict(row).items()}


def _json_number(value: Any) -> Any:
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return None if math.isnan(value) else str(value)
