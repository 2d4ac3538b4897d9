"""A picture of a prepared study: three planes of every scan, with the outline of the reference drawn on all."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from medk2n.data.patient import patient
from medk2n.io.atomic import atomic_write
from medk2n.preparation.draft import Draft

_SIDE = 224  # pixels of a panel
_OUTLINE = (255, 190, 40)
_TITLE = 16


def write_preview(draft: Draft, path: Path) -> None:
    """One column a scan, axial, coronal and sagittal below each other, through the middle of the patient.

    Where the outline leaves the head of another scan, the two are not aligned.
    """
    reference = draft.scans[draft.reference]
    spacing = reference.grid.spacing_mm
    inside = patient(reference)
    middle = [
        int(np.median(np.nonzero(inside)[axis])) if inside.any() else n // 2 for axis, n in enumerate(inside.shape)
    ]
    planes = [axis for axis in (2, 1, 0) if inside.shape[axis] > 1 or axis == 2]
    planes = [axis for axis in planes if min(np.delete(inside.shape, axis)) > 1]
    sheet = Image.new("RGB", (len(draft.scans) * _SIDE, _TITLE + len(planes) * _SIDE))
    pen = ImageDraw.Draw(sheet)
    for column, (label, volume) in enumerate(draft.scans.items()):
        pen.text((column * _SIDE + 4, 2), label[-30:], fill=(255, 255, 255))
        low, high = np.percentile(volume.array[inside] if inside.any() else volume.array, [0.5, 99.5])
        grey = np.clip((volume.array - low) / max(high - low, 1e-9), 0, 1)
        for row, axis in enumerate(planes):
            panel = _panel(grey.take(middle[axis], axis), inside.take(middle[axis], axis), np.delete(spacing, axis))
            sheet.paste(panel, (column * _SIDE, _TITLE + row * _SIDE))
    atomic_write(path, sheet.save)


def _panel(grey: np.ndarray, inside: np.ndarray, spacing: np.ndarray) -> Image.Image:
    """One plane, its second axis upwards, as large as fits; pixels of any spacing become square."""
    extent = np.array(grey.shape) * spacing
    width, height = np.maximum(1, np.floor(extent / extent.max() * _SIDE)).astype(int).tolist()

    def upright(array: np.ndarray, how: Image.Resampling) -> np.ndarray:
        image = Image.fromarray(
            np.ascontiguousarray(array.T[::-1] * np.uint8(255) if array.dtype == bool else array.T[::-1])
        )
        return np.asarray(image.resize((width, height), how))

    pixels = np.repeat(upright((grey * 255).astype(np.uint8), Image.Resampling.BILINEAR)[..., None], 3, axis=2)
    mask = upright(inside, Image.Resampling.NEAREST) > 0
    pixels[mask & ~ndimage.binary_erosion(mask)] = _OUTLINE
    panel = Image.new("RGB", (_SIDE, _SIDE))
    panel.paste(Image.fromarray(pixels), ((_SIDE - width) // 2, (_SIDE - height) // 2))
    return panel
