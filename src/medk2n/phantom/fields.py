"""Smooth random fields, drawn on a coarse lattice and interpolated."""

import numpy as np
from scipy.ndimage import gaussian_filter


def upsample(lattice: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Trilinear interpolation of a (x, y, z) lattice to `shape`, corners on corners; float32."""
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(lattice, dtype=np.float32))[None, None]
    return torch.nn.functional.interpolate(tensor, size=shape, mode="trilinear", align_corners=True)[0, 0].numpy()


def smooth_field(
    rng: np.random.Generator, shape: tuple[int, int, int], spacing_mm: float, wavelength_mm: float
) -> np.ndarray:
    """A random field of zero mean, unit deviation and about the given wavelength; (x, y, z) float32.

    Args:
        rng: the only source of chance.
        shape: voxels.
        spacing_mm: edge of a voxel.
        wavelength_mm: of the slowest common ripple; below four voxels it is cut off by the grid.
    """
    step_mm = max(spacing_mm, wavelength_mm / 5)
    lattice = tuple(max(2, round((n - 1) * spacing_mm / step_mm) + 1) for n in shape)
    noise = rng.standard_normal(lattice, dtype=np.float32)
    noise = gaussian_filter(noise, wavelength_mm / step_mm / 5, mode="wrap", truncate=3)
    noise = (noise - noise.mean()) / max(float(noise.std()), 1e-6)
    return upsample(noise, shape)
