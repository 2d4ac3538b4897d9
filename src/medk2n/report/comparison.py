"""One picture of a synthesis beside the truth: for demonstrations, where the truth is known."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medk2n.io.atomic import atomic_write
from medk2n.io.volume import Volume
from medk2n.report.figures import View, display_range, planes
from medk2n.vocabulary import MODALITIES

_CELL_INCHES = 2.4


@dataclass(frozen=True)
class Pair:
    """A synthetic volume and the acquired one that it should equal, on one grid.

    Attributes:
        psnr_db: how near they are, printed under the synthetic one.
    """

    synthetic: Volume
    reference: Volume
    psnr_db: float


def save_comparison(
    path: Path, inputs: Sequence[Volume], pairs: Sequence[Pair], *, focus: np.ndarray | None = None
) -> None:
    """Axial slices as PNG: the inputs, then for every target the synthetic image above its reference.

    Args:
        focus: mask that the slice goes through, a lesion for example.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    view = View.around(inputs[0], focus)
    columns = max(len(inputs) + len(pairs), 1)
    image, aspect = planes(inputs[0], view)["axial"]
    height = _CELL_INCHES * image.shape[0] * aspect / image.shape[1] + 0.42
    figure = Figure(figsize=(_CELL_INCHES * columns, 2 * height), facecolor="#0d1318", layout="constrained")
    FigureCanvasAgg(figure)
    cells = figure.subplots(2, columns, squeeze=False)
    for axes in cells.flat:
        axes.axis("off")
    for axes, volume in zip(cells[0], inputs, strict=False):
        _show(axes, volume, view, display_range(volume), f"{MODALITIES[volume.modality].label}\ninput", "#7fd1de")
    for column, pair in enumerate(pairs, start=len(inputs)):
        label = MODALITIES[pair.reference.modality].label
        title = f"{label}\nSYNTHETIC, {pair.psnr_db:.1f} dB"
        _show(cells[0, column], pair.synthetic, view, display_range(pair.synthetic), title, "#ffb454")
        _show(cells[1, column], pair.reference, view, display_range(pair.reference), f"{label}\nreference", "#e8eef2")
    atomic_write(path, lambda temporary: figure.savefig(temporary, dpi=110, facecolor=figure.get_facecolor()))


def _show(axes, volume: Volume, view: View, limits: tuple[float, float], title: str, colour: str) -> None:
    image, aspect = planes(volume, view)["axial"]
    axes.imshow(image, cmap="gray", vmin=limits[0], vmax=max(limits[1], limits[0] + 1e-6), aspect=aspect)
    axes.set_title(title, color=colour, fontsize=9)
