"""Slices that lie unevenly or tilted, brought to an even and upright stack of the same place."""

import numpy as np

from medk2n.dicom.geometry import Planes


def regular(array: np.ndarray, planes: Planes) -> tuple[np.ndarray, Planes]:
    """Linear interpolation between neighbouring slices, each first slid to where it belongs.

    The field of view grows sideways as far as the tilted slices reach; what none covers is the lowest value.

    Args:
        array: (n, rows, columns).

    Returns:
        float32 (m, more rows, more columns) and its planes: same directions and pixel spacing, the usual step.
    """
    heights, slides = planes.heights, planes.slides
    low, high = np.floor(slides.min(axis=0) + 1e-6), np.ceil(slides.max(axis=0) - 1e-6)
    columns, rows = (int(n) for n in np.array(array.shape[:0:-1]) + (high - low))
    wanted = np.arange(heights[0], heights[-1] + 1e-3 * planes.step_mm, planes.step_mm)
    out = np.empty((len(wanted), rows, columns), np.float32)
    fill = float(array.min())
    upper = np.clip(np.searchsorted(heights, wanted), 1, len(heights) - 1)
    for k, (height, above) in enumerate(zip(wanted, upper, strict=True)):
        share = np.clip((height - heights[above - 1]) / (heights[above] - heights[above - 1]), 0.0, 1.0)
        out[k] = 0.0
        for index, weight in ((above - 1, 1.0 - share), (above, share)):
            if weight > 1e-6:
                out[k] += weight * _slid(array[index], slides[index] - low, (rows, columns), fill)
    origin = planes.positions[0] + low[0] * planes.spacing_mm[1] * planes.row
    origin = origin + low[1] * planes.spacing_mm[0] * planes.column
    positions = origin + np.outer(wanted - heights[0], planes.normal)
    return out, Planes(positions, planes.row, planes.column, planes.spacing_mm, (rows, columns), planes.thickness_mm)


def _slid(image: np.ndarray, by: np.ndarray, shape: tuple[int, int], fill: float) -> np.ndarray:
    """One slice on the larger raster, moved by (columns, rows) pixels."""
    from scipy import ndimage

    # nearest by the edge, then the fill: a constant outside would dim the outermost pixels
    raster = ndimage.affine_transform(
        image.astype(np.float32), np.ones(2), offset=-by[::-1], output_shape=shape, order=1, mode="nearest"
    )
    row, column = np.arange(shape[0]) - by[1], np.arange(shape[1]) - by[0]
    outside = ((row < -0.5) | (row > image.shape[0] - 0.5))[:, None] | (column < -0.5) | (column > image.shape[1] - 0.5)
    raster[outside] = fill
    return raster
