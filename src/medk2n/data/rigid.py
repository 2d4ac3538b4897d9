"""Rigid registration of one volume to another by mutual information (SimpleITK).

Mattes mutual information (Mattes et al., IEEE TMI 2003), 32 bins, gradient descent, one seed; callers keep ITK to one
thread (`itk.one_thread`), so that the same volumes give the same transform.
"""

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk

from medk2n.data.itk import RAS_TO_LPS, image_of
from medk2n.geometry.grid import Grid
from medk2n.io.volume import Volume

SEED = 1
_LAST_STEP_MM = 0.01


def clipped(volume: Volume) -> sitk.Image:
    """The volume for ITK; outliers would take the bins from tissue."""
    return image_of(np.clip(volume.array, *np.percentile(volume.array[::2, ::2, ::2], [0.5, 99.5])), volume.grid)


def rigid(
    fixed: sitk.Image,
    moving: sitk.Image,
    *,
    iterations: int,
    shrunk: Sequence[int],
    samples: int,
    first_step_mm: float = 1.0,
) -> sitk.Transform:
    """From points of `fixed` to those of `moving`; has a matrix, a centre and a translation.

    Args:
        shrunk: by how much the images are shrunk, resolution by resolution, the coarsest first.
        samples: voxels that mutual information is taken from, at each.

    Raises:
        RuntimeError: ITK's, where there is nothing to go by.
    """
    start = sitk.Euler3DTransform()
    start.SetCenter(fixed.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in fixed.GetSize()]))
    method = _metric(*(samples * step**3 / fixed.GetNumberOfPixels() for step in shrunk))
    method.SetOptimizerAsRegularStepGradientDescent(first_step_mm, _LAST_STEP_MM, iterations, 0.5, 1e-8)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(list(shrunk))
    method.SetSmoothingSigmasPerLevel([step // 2 for step in shrunk])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(start, inPlace=False)
    return sitk.Euler3DTransform(sitk.CompositeTransform(method.Execute(fixed, moving)).GetBackTransform())


def gain(fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform, *, samples: int) -> float:
    """By what factor a transform raises the mutual information."""
    before, after = (_alike(fixed, moving, each, samples) for each in (sitk.Euler3DTransform(), transform))
    return after / max(before, 1e-6)


def _alike(fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform, samples: int) -> float:
    method = _metric(samples / fixed.GetNumberOfPixels())
    method.SetInitialTransform(transform)
    return -float(method.MetricEvaluate(fixed, moving))


def _metric(*shares: float) -> sitk.ImageRegistrationMethod:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentagePerLevel([min(1.0, float(share)) for share in shares], SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.MetricUseFixedImageGradientFilterOff()  # gradients where they are asked for, not of whole images
    method.MetricUseMovingImageGradientFilterOff()
    return method


def where_it_is(transform: sitk.Transform) -> np.ndarray:
    """(4, 4) from where `moving` says it is to where it is, in mm, RAS."""
    turn = np.array(transform.GetMatrix()).reshape(3, 3)
    centre, shift = np.array(transform.GetCenter()), np.array(transform.GetTranslation())
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn, centre + shift - turn @ centre
    return np.linalg.inv(RAS_TO_LPS @ matrix @ RAS_TO_LPS)


def moved(volume: Volume, transform: np.ndarray) -> Volume:
    """The volume where a transform (4, 4) of the patient's mm takes it; no voxel changes its value."""
    return Volume(
        volume.array, Grid(volume.grid.shape, transform @ volume.grid.affine), volume.modality, volume.provenance
    )
