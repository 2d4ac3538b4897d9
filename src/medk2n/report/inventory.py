"""An inventory on disk: one CSV row an image, everything as JSON, a page to read, a figure to look at."""

import warnings
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from medk2n.data.inventory import Image, Inventory
from medk2n.io.atomic import atomic_write, write_json, write_text
from medk2n.io.shown import csv_text, in_markdown, one_line

PAGE = "index.md"
FILES = ("index.csv", "index.json", PAGE, "index.png")
_MOST_PATTERNS = 30


def write_inventory(inventory: Inventory, name: str, out: Path) -> None:
    """Write `FILES` to `out`; `name` is that of the data set."""
    paths = [out / file for file in FILES]
    write_text(paths[0], _csv(inventory))
    write_json(paths[1], {"data": name} | asdict(inventory))
    write_text(paths[2], _markdown(inventory, name))
    atomic_write(paths[3], lambda path: _figure(inventory, name, path))


def _csv(inventory: Inventory) -> str:
    columns = [f.name for f in fields(Image)]
    return csv_text(columns, ([_cell(getattr(image, column)) for column in columns] for image in inventory.images))


def _cell(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, tuple) else "" if value is None else value


def _markdown(inventory: Inventory, name: str) -> str:
    patterns = inventory.patterns()
    subjects = sum(map(len, patterns.values()))
    lines = [f"# {in_markdown(name)}", "", f"{subjects} subjects, {len(inventory.images)} images.", ""]
    lines += ["| subjects | modalities | first ids |", "|---|---|---|"]
    for names, having in patterns.items():
        first = in_markdown(", ".join([*having[:3], *(["..."] if len(having) > 3 else [])]))
        lines.append(f"| {len(having)} | {' '.join(names)} | {first} |")
    lines += [
        "",
        "| modality | images | grids (voxels; mm; orientation: images) | skull-stripped |",
        "|---|---|---|---|",
    ]
    for modality in inventory.modalities():
        images = [image for image in inventory.images if image.modality == modality]
        stripped = sum(image.stripped for image in images)
        lines.append(f"| {modality} | {len(images)} | {_grids(images)} | {stripped} |")
    lines += ["", "## To look at", ""]
    if not inventory.complaints:
        lines.append(
            "Nothing: every image is readable, none lies 2 mm or more off its subject's first, none is there twice."
        )
    else:
        lines += ["| kind | subject | modality | what |", "|---|---|---|---|"]
        rows = ((c.kind, c.subject, c.modality, c.what) for c in inventory.complaints)
        lines += [f"| {' | '.join(map(in_markdown, row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def _grids(images: list[Image], most: int = 4) -> str:
    counts: dict[str, int] = {}
    for image in images:
        shape = " x ".join(map(str, image.shape))
        spacing = " x ".join(f"{edge:g}" for edge in image.spacing_mm) if image.spacing_mm else "unknown"
        key = f"{shape}; {spacing}; {image.orientation}"
        counts[key] = counts.get(key, 0) + 1
    common = sorted(counts.items(), key=lambda item: -item[1])
    text = "<br>".join(f"{grid}: {n}" for grid, n in common[:most])
    return text + (f"<br>and {len(common) - most} more" if len(common) > most else "")


def _figure(inventory: Inventory, name: str, path: Path) -> None:
    """Missing patterns: which modalities are there together (dots) in how many subjects (bars)."""
    from matplotlib.figure import Figure

    modalities, patterns = inventory.modalities(), list(inventory.patterns().items())[:_MOST_PATTERNS]
    height = 1.4 + 0.32 * max(1, len(patterns))
    figure = Figure(figsize=(3.5 + 0.45 * len(modalities), height), layout="constrained")
    dots, bars = figure.subplots(1, 2, sharey=True, width_ratios=[max(1, len(modalities)), 5])
    rows = np.arange(len(patterns))
    for y, (names, having) in enumerate(patterns):
        there = [x for x, modality in enumerate(modalities) if modality in names]
        dots.scatter(range(len(modalities)), [y] * len(modalities), s=60, color="0.88")
        dots.scatter(there, [y] * len(there), s=60, color="#0072b2")
        bars.text(len(having), y, f" {len(having)}", va="center", fontsize=8)
    bars.barh(rows, [len(having) for _, having in patterns], color="#0072b2", height=0.6)
    dots.set_xticks(range(len(modalities)), modalities, rotation=45, ha="right")
    dots.set_yticks([])
    dots.set_ylim(max(1, len(patterns)) - 0.5, -0.5)
    bars.set_xlabel("subjects")
    bars.spines[["top", "right"]].set_visible(False)
    dots.spines[:].set_visible(False)
    kinds = sorted({c.kind for c in inventory.complaints})
    told = ", ".join(f"{sum(c.kind == kind for c in inventory.complaints)} {kind}" for kind in kinds)
    title = f"{one_line(Path(name).name)}: what is there together\nto look at: {told or 'nothing'}"
    figure.suptitle(title, fontsize=9, parse_math=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name in letters that the font has not
        figure.savefig(path, dpi=120, format="png")
