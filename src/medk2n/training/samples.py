"""One watched slice, drawn again at every validation: what each model makes of it by then, beside the truth."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from medk2n.data.batches import Batch
from medk2n.io.atomic import atomic_write
from medk2n.training.contender import Contender
from medk2n.training.queries import as_query, draw_sources

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FOLDER = "samples"
_PANEL_INCHES = 1.6
_DPI = 90


@torch.no_grad()
def draw_samples(contenders: Sequence[Contender], watched: Batch, path: Path) -> None:
    """Write a PNG: the inputs on top, then for each missing modality the acquired image and what each model gives.

    The middle slice of `watched`, and always the same random set of inputs.
    """
    middle = watched.row(len(watched.images) // 2)
    settings = contenders[0].config
    acquired = middle.acquired.numpy()
    samples, subsets = draw_sources(acquired, np.random.default_rng(0), draws=1, most=settings.batch.most_sources)
    missing = np.flatnonzero(acquired[0] & ~subsets[0])
    if not len(missing):
        return
    query = as_query(samples.repeat(len(missing)), subsets.repeat(len(missing), axis=0), missing)
    drawn = {c.name: c.averaged(middle.frames(c.params.slices).to(c.device), query).mean.cpu() for c in contenders}
    names, inside = settings.modalities, middle.foreground[0]
    sources = np.flatnonzero(subsets[0])
    rows = [[(f"input: {names[i]}", middle.targets[0, i], False) for i in sources]]
    for k, j in enumerate(missing):
        images = [(f"{names[j]}: {model}", image[k] * inside, True) for model, image in drawn.items()]
        rows.append([(f"{names[j]}: acquired", middle.targets[0, j], False), *images])
    atomic_write(path, lambda part: _sheet(rows, part))


def _sheet(rows: Sequence[Sequence[tuple[str, Tensor, bool]]], path: Path) -> None:
    from matplotlib.figure import Figure

    columns = max(map(len, rows))
    figure = Figure(figsize=(_PANEL_INCHES * columns, 1.25 * _PANEL_INCHES * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, row in zip(grid, rows, strict=True):
        for axes in line:
            axes.axis("off")
        for axes, (title, image, synthetic) in zip(line, row, strict=False):
            _panel(axes, title, image, synthetic=synthetic)
    figure.savefig(path, dpi=_DPI, format="png")


def _panel(axes: "Axes", title: str, image: Tensor, *, synthetic: bool) -> None:
    axes.imshow(np.rot90(image.numpy()), cmap="gray", vmin=0, vmax=1)  # anterior up, the patient's left on the left
    axes.set_title(title, fontsize=7)
    if synthetic:
        axes.text(0.5, 0.02, "SYNTHETIC", transform=axes.transAxes, ha="center", fontsize=6, color="#ffcc00")
