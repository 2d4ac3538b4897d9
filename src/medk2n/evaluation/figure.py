"""Two figures of an evaluation: every value of every subject, and one subject to look at."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medk2n.evaluation.evaluate import Record
from medk2n.evaluation.rows import Row
from medk2n.evaluation.summary import MEAN_ROW, per_subject
from medk2n.evaluation.table import ordered_rows
from medk2n.io.shown import one_line
from medk2n.vocabulary import modality

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from medk2n.data.working import WorkingStudy

# Okabe and Ito, for the colour-blind
COLOURS = ("#0072b2", "#d55e00", "#999999", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
LARGEST_ERROR = 0.3  # of the data range, where the error's colour scale ends
_DPI = 110


def psnr_figure(records: Sequence[Record], path: Path, *, methods: Sequence[str]) -> None:
    """PSNR inside the foreground per row: a dot a subject, a bar for the mean; infinite values are left out."""
    from matplotlib.figure import Figure

    values = per_subject(r for r in records if r.region == "foreground" and r.metric == "psnr")
    labels = ordered_rows(sources for _, _, sources in values)
    figure = Figure(figsize=(np.clip(1.5 + 0.75 * len(labels), 5, 40), 4.5), layout="constrained")
    axes = figure.subplots()
    for index, method in enumerate(methods):
        offset = 0.75 * ((index + 0.5) / len(methods) - 0.5)
        colour = COLOURS[index % len(COLOURS)]
        for x, label in enumerate(labels):
            by_subject = values["foreground", "psnr", label].get(method, {})
            dots = [value for value in by_subject.values() if np.isfinite(value)]
            if dots:
                axes.scatter([x + offset] * len(dots), dots, s=9, alpha=0.5, color=colour, linewidths=0)
                axes.hlines(np.mean(dots), x + offset - 0.11, x + offset + 0.11, color=colour, linewidth=2.5)
        axes.scatter([], [], color=colour, label=method)
    axes.set_xticks(range(len(labels)), [label.replace("+", "\n+") for label in labels], fontsize=8)
    if MEAN_ROW in labels:
        axes.axvline(labels.index(MEAN_ROW) - 0.5, color="0.7", linewidth=0.8)
    axes.set_ylabel("PSNR inside the foreground (dB)")
    axes.set_xlabel("inputs given")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="best", fontsize=8)
    figure.savefig(path, dpi=_DPI)


def picture(study: "WorkingStudy", row: Row, outputs: Mapping[str, Mapping[str, np.ndarray]], path: Path) -> None:
    """One slice of one subject: the inputs, then per target the reference, each output and its absolute error.

    Args:
        outputs: method -> target -> (s, h, w) in [0, 1], zero outside what the inputs show.
    """
    from matplotlib.figure import Figure

    index = best_slice(study)
    columns = max(len(row.sources), 1 + 2 * len(outputs))
    lines = 1 + len(row.targets)
    figure = Figure(figsize=(1.9 * columns, 2.15 * lines + 0.4), layout="constrained", facecolor="white")
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.ravel():
        axes.axis("off")
    for axes, source in zip(grid[0], row.sources, strict=False):
        grey(axes, study.images[source][index], f"input: {modality(source).label}")
    for line, target in zip(grid[1:], row.targets, strict=True):
        reference = study.images[target][index]
        grey(line[0], reference, f"reference: {modality(target).label}")
        for (method, predicted), axes, error_axes in zip(
            outputs.items(), line[1:], line[1 + len(outputs) :], strict=False
        ):
            grey(axes, predicted[target][index], method)
            axes.text(0.5, 0.02, "SYNTHETIC", transform=axes.transAxes, ha="center", fontsize=8, color="#ffcc00")
            error = np.abs(predicted[target][index] - reference)
            error_axes.imshow(upright(error), cmap="magma", vmin=0, vmax=LARGEST_ERROR)
            error_axes.set_title(f"|error| {method}", fontsize=8)
    title = f"{one_line(study.id)}, slice {index}; errors from 0 (black) to {LARGEST_ERROR} (white)"
    figure.suptitle(title, fontsize=9, parse_math=False)
    figure.savefig(path, dpi=_DPI)


def best_slice(study: "WorkingStudy") -> int:
    """The slice with most lesion, or without a lesion with most foreground."""
    mask = study.foreground
    if study.lesion is not None and study.lesion.any():
        mask = study.lesion > 0
    return int(np.argmax(mask.sum(axis=(1, 2))))


def grey(axes: "Axes", image: np.ndarray, title: str) -> None:
    """One working slice (h, w) in [0, 1]."""
    axes.imshow(upright(image), cmap="gray", vmin=0, vmax=1)
    axes.set_title(title, fontsize=8)


def upright(plane: np.ndarray) -> np.ndarray:
    """Working slices come from a RAS grid: anterior (or superior) goes up, the patient's left is on the left."""
    return np.rot90(plane)
