"""Pictures for reports: three planes of a volume as one small PNG.

Radiological display: the patient's right is on the left of axial and coronal panels. A picture of a
synthetic volume says SYNTHETIC in the image itself, so that it stays said when the image is copied.
"""

import base64
import io
from dataclasses import dataclass

import numpy as np

from medk2n.data.patient import patient
from medk2n.geometry.orient import to_canonical
from medk2n.io.volume import Volume
from medk2n.vocabulary import MODALITIES

PLANES = ("axial", "coronal", "sagittal")
_EDGES = {"axial": ("R", "L", "A", "P"), "coronal": ("R", "L", "S", "I"), "sagittal": ("A", "P", "S", "I")}
_PANEL_INCHES = 2.2
_THUMBNAIL_INCHES = 1.2
_MARGIN = 0.03  # of the image edge, shown around the patient
_INK = "#e8eef2"
_WARNING = "#ffb454"


@dataclass(frozen=True)
class View:
    """Where every volume on one grid is cut, so that the panels of a report match. Voxel indices in RAS order.

    Attributes:
        centre: (3,) voxel that all three planes pass through.
        low, high: (3,) each, the box that is shown; `high` is not part of it.
    """

    centre: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def around(cls, volume: Volume, focus: np.ndarray | None = None, inside: np.ndarray | None = None) -> "View":
        """As wide as the foreground of `volume` (all, if nothing stands out), through its centre or that of `focus`.

        Args:
            focus: mask of the shape of `volume`, a lesion for example; an empty one counts for nothing.
            inside: the foreground, where it is known already.
        """
        array, _ = to_canonical(volume.array, volume.grid)
        inside = np.argwhere(to_canonical(patient(volume) if inside is None else inside, volume.grid)[0])
        if not inside.size:
            inside = np.argwhere(np.ones(array.shape, dtype=bool))
        margin = np.ceil(_MARGIN * np.array(array.shape)).astype(int)
        low = np.maximum(inside.min(axis=0) - margin, 0)
        high = np.minimum(inside.max(axis=0) + 1 + margin, array.shape)
        seen = inside if focus is None or not focus.any() else np.argwhere(to_canonical(focus, volume.grid)[0])
        return cls(np.rint(seen.mean(axis=0)).astype(int), low, high)


def planes(volume: Volume, view: View) -> dict[str, tuple[np.ndarray, float]]:
    """plane -> (image, aspect): rows run downwards as displayed, aspect is pixel height over width in mm."""
    array, grid = to_canonical(volume.array, volume.grid)
    box = array[tuple(slice(a, b) for a, b in zip(view.low, view.high, strict=True))]
    x, y, z = view.centre - view.low
    dx, dy, dz = grid.spacing_mm
    return {
        "axial": (box[::-1, ::-1, z].T, dy / dx),
        "coronal": (box[::-1, y, ::-1].T, dz / dx),
        "sagittal": (box[x, ::-1, ::-1].T, dz / dy),
    }


def display_range(volume: Volume, inside: np.ndarray | None = None) -> tuple[float, float]:
    """Values shown black and white: nearly all of the foreground (fat may glare); CT keeps soft tissue apart.

    Args:
        inside: the foreground, shape of the array, where it is known already: finding it takes a second.
    """
    row = MODALITIES[volume.modality]
    if row.name == "ct" and volume.array.min() < -200:
        return -160.0, 240.0
    values = volume.array[patient(volume) if inside is None else inside]
    if values.size == 0:
        return float(volume.array.min()), float(volume.array.max())
    low, high = np.percentile(values, [0.5, 98.5])
    return float(low), float(high)


def strip_png(
    volume: Volume,
    view: View,
    limits: tuple[float, float],
    *,
    synthetic: bool,
    colours: str = "gray",
    vertical: bool = True,
    dpi: int = 110,
) -> str:
    """The three planes as a `data:image/png;base64,` address.

    Args:
        limits: values shown as the first and last colour of the map `colours`.
        synthetic: burn SYNTHETIC into every panel.
        vertical: panels under each other, else side by side.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cuts = planes(volume, view)
    extents = {p: (image.shape[1], image.shape[0] * aspect) for p, (image, aspect) in cuts.items()}
    if vertical:
        sizes = [_PANEL_INCHES * height / width for width, height in extents.values()]
        figure = Figure(figsize=(_PANEL_INCHES, sum(sizes)), facecolor="black")
        grid = figure.add_gridspec(3, 1, height_ratios=sizes, left=0, right=1, top=1, bottom=0, hspace=0.01)
    else:
        sizes = [_PANEL_INCHES * width / height for width, height in extents.values()]
        figure = Figure(figsize=(sum(sizes), _PANEL_INCHES), facecolor="black")
        grid = figure.add_gridspec(1, 3, width_ratios=sizes, left=0, right=1, top=1, bottom=0, wspace=0.01)
    FigureCanvasAgg(figure)
    for cell, (plane, (image, aspect)) in zip(grid, cuts.items(), strict=True):
        axes = figure.add_subplot(cell)
        axes.imshow(image, cmap=colours, vmin=limits[0], vmax=max(limits[1], limits[0] + 1e-6), aspect=aspect,
                    interpolation="bilinear")  # fmt: skip
        axes.axis("off")
        _label(axes, plane, synthetic=synthetic)
    return _encoded(figure, dpi)


def stage_png(image: np.ndarray, limits: tuple[float, float]) -> str:
    """One synthetic working slice (h, w), axes in RAS order, as a `data:image/png;base64,` address.

    Args:
        limits: values shown black and white.
    """
    rows, columns = np.nonzero(image > 0)
    if rows.size:
        image = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    return _one_panel(image[::-1, ::-1].T, 1.0, limits, _PANEL_INCHES)


def thumbnail_png(volume: Volume, view: View, limits: tuple[float, float]) -> str:
    """The axial plane of a synthetic volume, small, as a `data:image/png;base64,` address."""
    image, aspect = planes(volume, view)["axial"]
    return _one_panel(image, aspect, limits, _THUMBNAIL_INCHES)


def _one_panel(shown: np.ndarray, aspect: float, limits: tuple[float, float], height_inches: float) -> str:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width_inches = height_inches * shown.shape[1] / (shown.shape[0] * aspect)
    figure = Figure(figsize=(width_inches, height_inches), facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(shown, cmap="gray", vmin=limits[0], vmax=max(limits[1], limits[0] + 1e-6), aspect=aspect,
                interpolation="bilinear")  # fmt: skip
    axes.axis("off")
    _stamp(axes)
    return _encoded(figure, 80)


def _label(axes, plane: str, *, synthetic: bool) -> None:
    left, right, top, bottom = _EDGES[plane]
    places = [(0.03, 0.5, left, "left", "center"), (0.97, 0.5, right, "right", "center"),
              (0.5, 0.98, top, "center", "top"), (0.5, 0.02, bottom, "center", "bottom")]  # fmt: skip
    for x, y, text, horizontal, vertical in places:
        axes.text(x, y, text, transform=axes.transAxes, color=_INK, alpha=0.75, fontsize=6, ha=horizontal, va=vertical)
    if synthetic:
        _stamp(axes)


def _stamp(axes) -> None:
    behind = {"facecolor": "black", "alpha": 0.6, "edgecolor": "none", "pad": 1}
    axes.text(0.03, 0.97, "SYNTHETIC", transform=axes.transAxes, color=_WARNING, fontsize=6.5, weight="bold",
              ha="left", va="top", bbox=behind)  # fmt: skip


def _encoded(figure, dpi: int) -> str:
    from PIL import Image

    figure.canvas.draw()
    figure.set_dpi(dpi)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="black")
    small = io.BytesIO()
    Image.open(buffer).convert("RGB").quantize(256).save(small, format="png", optimize=True)  # a third of the bytes
    return "data:image/png;base64," + base64.b64encode(small.getvalue()).decode("ascii")
