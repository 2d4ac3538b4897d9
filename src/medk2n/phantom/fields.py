"""Random smooth fields: what makes every subject's tissue, thickness and shading its own."""

import numpy as np
from scipy import ndimage


def smooth_field(
    rng: np.random.Generator, shape: tuple[int, int, int], spacing_mm: float, width_mm: float
) -> np.ndarray:
    """Gaussian noise blurred to a standard deviation of about `width_mm` / 2, of unit variance.

    Noise much smoother than the grid is drawn on a coarser one and enlarged.

    Returns:
        float32 array of `shape`.
    """
    sigma = max(width_mm / 2 / spacing_mm, 1e-3)
    factor = max(1.0, sigma / 2)
    coarse = tuple(int(np.ceil(n / factor)) + 3 for n in shape)
    field = ndimage.gaussian_filter(rng.standard_normal(coarse, dtype=np.float32), sigma / factor, mode="wrap")
    field /= field.std() + 1e-9
    if factor == 1.0:
        return field[tuple(slice(0, n) for n in shape)].copy()
    return ndimage.affine_transform(
        field, np.full(3, 1 / factor), offset=1.0, output_shape=shape, output=np.float32, order=1, mode="nearest"
    )
