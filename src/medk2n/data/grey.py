"""Grey levels of training images, kept as bytes, and tables that move them: (256,) uint8, applied as `table[image]`.

0 means outside the patient (or the darkest half percent inside) and stays 0. 1/255 is finer than the noise of scans.
"""

import numpy as np

from medk2n.data.intensity import PERCENTILES

Style = tuple[np.ndarray | None, ...]
"""Per modality (256,) share of the voxels below each level; None for one without a grey scale of its own (CT)."""

UNCHANGED = np.arange(256, dtype=np.uint8)


def to_bytes(array: np.ndarray) -> np.ndarray:
    """[0, 1] -> uint8; what is above 0 keeps at least 1."""
    return np.where(array > 0, np.clip(np.rint(array * 255), 1, 255), 0).astype(np.uint8)


def shares_below(values: np.ndarray) -> np.ndarray:
    """(256,) share of the voxels below each level, counting half of those at it."""
    counts = np.bincount(values, minlength=256) / max(1, values.size)
    return np.cumsum(counts) - counts / 2


def stretched(array: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Table to the scaling that the brain alone would have had (data/intensity.py); array uint8, brain bool, alike."""
    low, high = np.percentile(array[brain], PERCENTILES)
    levels = np.arange(256)
    return to_bytes((levels > 0) * np.maximum((levels - low) / max(high - low, 1.0), 1 / 255))


def towards(own: Style, lent: Style, amount: float) -> tuple[np.ndarray, ...]:
    """Per modality a table part of the way (amount 0 to 1) to a lent histogram.

    Histogram matching, interpolated: a mix of two quantile functions is one too (their Wasserstein barycentre), so
    that order is kept and styles between the two are met as well.
    """
    levels = np.arange(256.0)
    return tuple(
        UNCHANGED
        if a is None or b is None
        else to_bytes((levels > 0) * ((1 - amount) * levels + amount * np.interp(a, b, levels)) / 255)
        for a, b in zip(own, lent, strict=True)
    )
