"""Where the patient is in a volume: the same voxels of the body, however its axes are stored and its edges padded."""

import numpy as np

from medk2n.data.foreground import background_value, foreground
from medk2n.geometry.orient import from_canonical, to_canonical
from medk2n.io.volume import Volume
from medk2n.vocabulary import modality

_NO_TISSUE_HU = -1100.0  # below it is neither tissue nor air, but what fills the corners of a reconstruction
_AIR_BELOW_HU = -500.0
_NEAR_AIR, _NEAR_WATER = (-1100.0, -850.0), (-150.0, 150.0)
_LEAST_AIR, _LEAST_WATER = 0.02, 0.04  # of the voxels


def patient(volume: Volume) -> np.ndarray:
    """Boolean mask, shape of the array: the patient, holes included; all False if nothing is there."""
    array, air_below = _seen(volume)
    return from_canonical(foreground(array, air_below), volume.grid)


def background(volume: Volume) -> float | None:
    """The exact constant around a skull-stripped (or otherwise masked) image, None if there is none."""
    array, air_below = _seen(volume)
    return background_value(array, air_below)


def is_stripped(volume: Volume) -> bool:
    """Whether an exact constant background surrounds the content."""
    return background(volume) is not None


def air_level(volume: Volume) -> float:
    """What to fill a volume up with where it was not acquired: its background, the unit's, or its darkest level."""
    if (constant := background(volume)) is not None:
        return constant
    row = modality(volume.modality)
    if row.scaling == "fixed" and float(volume.array.min()) < row.background / 2:
        return row.background
    return float(np.percentile(volume.array, 0.5))


def _seen(volume: Volume) -> tuple[np.ndarray, float | None]:
    """The array in RAS order, and below which value is air, if its unit tells; of CT without what no tissue has."""
    array, _ = to_canonical(volume.array, volume.grid)
    if modality(volume.modality).unit != "HU" or not _is_hounsfield(array):
        return array, None
    return np.where(array < _NO_TISSUE_HU, array.dtype.type(modality(volume.modality).background), array), _AIR_BELOW_HU


def _is_hounsfield(array: np.ndarray) -> bool:
    """Whether both air and soft tissue are where they are in Hounsfield units."""
    share = (np.mean((array >= low) & (array <= high)) for low, high in (_NEAR_AIR, _NEAR_WATER))
    return next(share) >= _LEAST_AIR and next(share) >= _LEAST_WATER
