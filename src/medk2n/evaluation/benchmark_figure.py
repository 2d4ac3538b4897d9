"""Pictures of a benchmark: its tables as means and intervals, and one subject by every method."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medk2n.evaluation.benchmark import ALPHA, Collector, Line, Tile
from medk2n.evaluation.benchmark_table import printed, rows_of
from medk2n.evaluation.copy import CopyPredictor
from medk2n.evaluation.figure import COLOURS, LARGEST_ERROR, grey, upright
from medk2n.evaluation.noise_ceiling import CEILING
from medk2n.evaluation.rows import Row
from medk2n.vocabulary import modality

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DPI = 110
_TILE_INCHES = 1.25
Rows = Mapping[str, Sequence[Line]]


def table_figure(lines: Sequence[Line], path: Path, *, methods: Sequence[str], title: str) -> None:
    """PSNR inside the foreground: on the left means, on the right what the first method gains, with intervals.

    A filled mark is a difference that is significant after Holm; left of zero the first method is behind. `copy`, far
    behind as a rule, is on the left alone if there is anything else to compare with.
    """
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys(line.group for line in lines))
    tables = {group: rows_of(printed(lines, group)) for group in groups}
    slot = 0.16 + 0.075 * len(methods)  # inches a row
    heights = [slot * len(rows) + 0.6 for rows in tables.values()]
    figure = Figure(figsize=(11, sum(heights) + 1.1), layout="constrained")
    grid = figure.subplots(len(groups), 2, squeeze=False, sharey="row", height_ratios=heights)
    colours = dict(zip(methods, COLOURS * len(methods), strict=False))
    compared = [method for method in methods[1:] if method != CEILING]
    others = [method for method in compared if method != CopyPredictor.name] or compared
    for (left, right), (group, rows) in zip(grid, tables.items(), strict=True):
        _means(left, rows, colours)
        _differences(right, rows, colours, others)
        n = max(line.n for own in rows.values() for line in own)
        left.set_title(f"{group}, n = {n}", fontsize=9, loc="left")
        left.set_yticks(range(len(rows)), list(rows), fontsize=8)
        left.invert_yaxis()
    grid[-1][0].set_xlabel("PSNR inside the foreground (dB)")
    grid[-1][1].set_xlabel(f"{methods[0]} minus the other (dB), 95 % interval; filled: p < {ALPHA} (Holm)")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(methods), fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=_DPI)


def _means(axes: "Axes", rows: Rows, colours: Mapping[str, str]) -> None:
    for method, colour in colours.items():
        known = [
            (line.mean, y + _beside(method, list(colours)))
            for y, lines in enumerate(rows.values())
            for line in lines
            if line.method == method and np.isfinite(line.mean)
        ]
        places = zip(*known, strict=True) if known else ((), ())
        axes.scatter(*places, marker="|" if method == CEILING else "o", s=22, color=colour, label=method)
    axes.grid(alpha=0.3)


def _differences(axes: "Axes", rows: Rows, colours: Mapping[str, str], others: Sequence[str]) -> None:
    axes.axvline(0, color="0.4", linewidth=0.8)
    for y, lines in enumerate(rows.values()):
        for line in (line for line in lines if line.pairs and line.method in others):
            at, colour = y + _beside(line.method, others), colours[line.method]
            if np.isfinite(line.low):
                axes.hlines(at, line.low, line.high, color=colour, linewidth=1.2)
            face = colour if line.significant else "white"
            axes.scatter([line.difference], [at], s=14, facecolors=face, edgecolors=colour, zorder=3)
    axes.grid(alpha=0.3)


def _beside(method: str, methods: Sequence[str]) -> float:
    """Where a method is drawn within its row."""
    return 0.7 * ((methods.index(method) + 0.5) / len(methods) - 0.5)


def picture_grid(collector: Collector, path: Path, *, methods: Sequence[str]) -> None:
    """One slice of the first subject: a pair of lines for each (inputs, target), images above, errors below.

    Shown are each target from all others, and what the first modality alone gives.
    """
    from matplotlib.figure import Figure

    shown = collector.shown
    assert shown, "drawn after an evaluation"
    wanted = _wanted(collector.tiles)
    answers = {(tile.row.label, tile.target, tile.method): tile.image for tile in collector.tiles}
    names = [method for method in methods if any(tile.method == method for tile in collector.tiles)]
    most = max(len(row.sources) for row, _ in wanted)
    columns, pairs = most + 1 + len(names), len(wanted)
    figure = Figure(
        figsize=(_TILE_INCHES * columns, _TILE_INCHES * 2.3 * pairs + 0.5), layout="constrained", facecolor="white"
    )
    grid = figure.subplots(2 * pairs, columns, squeeze=False)
    for axes in grid.ravel():
        axes.axis("off")
    for (row, target), images, errors in zip(wanted, grid[::2], grid[1::2], strict=True):
        for axes, source in zip(images, row.sources, strict=False):
            grey(axes, shown.images[source], modality(source).label)
        truth = shown.images[target]
        grey(images[most], truth, f"truth: {modality(target).label}")
        for method, axes, below in zip(names, images[most + 1 :], errors[most + 1 :], strict=True):
            predicted = answers[row.label, target, method]
            grey(axes, predicted, method)
            axes.text(0.5, 0.02, "SYNTHETIC", transform=axes.transAxes, ha="center", fontsize=6, color="#ffcc00")
            below.imshow(upright(np.abs(predicted - truth)), cmap="magma", vmin=0, vmax=LARGEST_ERROR)
    figure.suptitle(
        f"{shown.subject}: inputs, truth, each method; below, its error from 0 (black) to {LARGEST_ERROR}", fontsize=9
    )
    figure.savefig(path, dpi=_DPI)


def _wanted(tiles: Sequence[Tile]) -> list[tuple[Row, str]]:
    """Each target from all others, then from the first modality alone."""
    asked = dict.fromkeys((tile.row, tile.target) for tile in tiles)
    first = next(iter(asked))[0].sources
    whole = [(row, target) for row, target in asked if len(row.targets) == 1]
    return list(dict.fromkeys([*whole, *((row, target) for row, target in asked if row.sources == first)]))
