"""Between our volumes and SimpleITK's images."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import SimpleITK as sitk

from medk2n.geometry.grid import Grid

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def image_of(array: np.ndarray, grid: Grid) -> sitk.Image:
    """An (x, y, z) array as a float32 image that lies where `grid` says."""
    affine = RAS_TO_LPS @ grid.affine
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T, dtype=np.float32))
    image.SetSpacing(grid.spacing_mm.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / grid.spacing_mm).ravel().tolist())
    return image


def array_of(image: sitk.Image) -> np.ndarray:
    """The (x, y, z) voxels of an image."""
    return sitk.GetArrayFromImage(image).T


@contextmanager
def one_thread() -> Iterator[None]:
    """ITK sums in an order that depends on its threads, and some of its parts listen to the global number alone."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
