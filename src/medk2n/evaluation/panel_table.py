"""The panel on paper: protocols.csv to compute with, protocols.md to read, protocols.png to look at."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medk2n.evaluation.figure import COLOURS
from medk2n.evaluation.panel import Panel, PanelCell, PanelRecord, panel_cells, per_subject
from medk2n.evaluation.protocols._protocol import Protocol
from medk2n.evaluation.table import write_csv
from medk2n.io.shown import in_markdown
from medk2n.registry import resolve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ORDER = ("psnr", "ssim", "mae", "hu_error", "sharpness", "slice_consistency")
_DPI = 110


def write_panel(folder: Path, panel: Panel, *, methods: Sequence[str]) -> str:
    """Write protocols.csv, protocols.md and protocols.png; return the Markdown."""
    write_csv(folder / "protocols.csv", PanelRecord, panel.records)
    text = panel_markdown(panel, methods)
    (folder / "protocols.md").write_text(text, encoding="utf-8", errors="backslashreplace")
    panel_figure(panel, folder / "protocols.png", methods=methods)
    return text


def panel_markdown(panel: Panel, methods: Sequence[str]) -> str:
    """A table a metric (rows are protocol and region, columns methods), what PSNR spans, what each protocol is."""
    cells = panel_cells(panel.records)
    metrics = sorted({cell.metric for cell in cells}, key=_ORDER.index)
    lines = [
        f"# The same images under {len(panel.protocols)} protocols",
        "",
        "Means over subjects of each subject's mean over rows and targets. Matched: after the gain and offset that fit",
        "the reference best inside the foreground, one of each a volume. Best of a line in bold.",
    ]
    for metric in metrics:
        lines += ["", *_metric_table([c for c in cells if c.metric == metric], metric, methods)]
    lines += ["", *_span([c for c in cells if c.metric == "psnr" and not c.affine_matched], methods)]
    return "\n".join([*lines, *recipes_markdown(panel.protocols)]) + "\n"


def recipes_markdown(protocols: Sequence[Protocol]) -> list[str]:
    """What each protocol is, in words."""
    lines = [
        "",
        "## What each does",
        "",
        "| protocol | where | scaling | data range | window | source |",
        "|---" * 6 + "|",
    ]
    for p in protocols:
        lines.append(f"| `{p.name}` | {p.region} | {p.scaling} | {p.data_range} | {p.window} | {p.source} |")
    return lines


def _metric_table(cells: Sequence[PanelCell], metric: str, methods: Sequence[str]) -> list[str]:
    rule = resolve("metrics", metric)
    found = {(c.protocol, c.region, c.method, c.affine_matched): c for c in cells}
    right = "1 is right" if rule.better == "one" else f"{rule.better} is better"
    header = ["protocol", "region", "n", *map(in_markdown, [*methods, *(f"{method}, matched" for method in methods)])]
    lines = [
        f"## {rule.label} ({rule.unit}, {right})",
        "",
        "| " + " | ".join(header) + " |",
        "|---" * len(header) + "|",
    ]
    for protocol, region in dict.fromkeys((c.protocol, c.region) for c in cells):
        words = []
        for matched in (False, True):
            group = [found.get((protocol, region, method, matched)) for method in methods]
            best = min((c.mean for c in group if c), key=rule.badness, default=None)
            words += [_text(c, rule.decimals, bold=c is not None and c.mean == best) for c in group]
        n = max(c.n for c in cells if (c.protocol, c.region) == (protocol, region))
        lines.append("| " + " | ".join([f"`{protocol}`", region, str(n), *words]) + " |")
    return lines


def _text(cell: PanelCell | None, decimals: int, *, bold: bool) -> str:
    if cell is None:
        return "n/a"
    return f"**{cell.mean:.{decimals}f}**" if bold else f"{cell.mean:.{decimals}f}"


def _span(cells: Sequence[PanelCell], methods: Sequence[str]) -> list[str]:
    """One sentence a method: from which protocol to which its PSNR goes, lesions aside."""
    lines = []
    for method in methods:
        own = [c for c in cells if c.method == method and c.region != "lesion" and np.isfinite(c.mean)]
        if len(own) > 1:
            low, high = min(own, key=lambda c: c.mean), max(own, key=lambda c: c.mean)
            lines.append(
                f"PSNR of {method}, the same images: {low.mean:.2f} dB (`{low.protocol}`, {low.region}) to "
                f"{high.mean:.2f} dB (`{high.protocol}`, {high.region}), {high.mean - low.mean:.1f} dB apart."
            )
    return lines


def panel_figure(panel: Panel, path: Path, *, methods: Sequence[str]) -> None:
    """PSNR and SSIM by protocol: a dot a subject, a ring for the mean after gain and offset, a line a method."""
    from matplotlib.figure import Figure

    values = per_subject(panel.records)
    places = list(dict.fromkeys(place[:2] for place in values if place[2] in ("psnr", "ssim")))
    figure = Figure(figsize=(11, np.clip(1.9 + 0.42 * len(places), 3, 30)), layout="constrained")
    first, second = figure.subplots(1, 2, sharey=True)
    for axes, metric in ((first, "psnr"), (second, "ssim")):
        for index, method in enumerate(methods):
            at = np.arange(len(places)) + 0.5 * ((index + 0.5) / len(methods) - 0.5)
            raw, matched = ([values.get((*p, metric, method, m), {}) for p in places] for m in (False, True))
            _draw(axes, at, list(map(_finite, raw)), list(map(_finite, matched)), COLOURS[index % len(COLOURS)], method)
        rule = resolve("metrics", metric)
        axes.set_xlabel(f"{rule.label} ({rule.unit})" if rule.unit != "1" else rule.label)
        axes.grid(alpha=0.3)
    first.set_yticks(range(len(places)), [f"{protocol}, {region}" for protocol, region in places], fontsize=8)
    first.invert_yaxis()
    figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=len(methods), fontsize=8)
    figure.suptitle("The same images under each protocol; rings after the best gain and offset", fontsize=10)
    figure.savefig(path, dpi=_DPI)


def _draw(
    axes: "Axes",
    at: np.ndarray,
    raw: Sequence[Sequence[float]],
    matched: Sequence[Sequence[float]],
    colour: str,
    label: str,
) -> None:
    """One method: its values, one list a place; the line breaks where there are none."""
    means, rings = ([np.mean(found) if found else np.nan for found in lists] for lists in (raw, matched))
    axes.plot(means, at, color=colour, linewidth=1, alpha=0.6)
    axes.scatter(np.concatenate(raw or [[]]), np.repeat(at, [len(found) for found in raw]), s=14, color=colour)
    axes.scatter(rings, at, s=40, facecolors="none", edgecolors=colour)
    axes.scatter([], [], s=14, color=colour, label=label)


def _finite(by_subject: Mapping[str, float]) -> list[float]:
    """An exact image has an infinite PSNR, for which there is no place on paper."""
    return [value for value in by_subject.values() if np.isfinite(value)]
