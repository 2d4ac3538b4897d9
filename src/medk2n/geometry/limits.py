"""How large images and voxels may be: what a few bytes of a header promise must not take the machine."""

import os
from collections.abc import Sequence
from math import inf, prod

from medk2n.errors import ConfigError, GeometryError

SETTING = "MEDK2N_MAX_IMAGE_GIB"
"""Environment variable: GiB that one image may take in memory, as 32-bit numbers or as it is stored; 1 if not set."""
EDGES_MM = (0.01, 50.0)
"""Shortest and longest edge of a voxel that is believed."""
FARTHEST_MM = 1e5
"""Farthest from the scanner's centre that the first voxel is believed to be."""
_GROWTH = 8  # a working grid may have this share of the limit, whatever it is made of
_WORTH_A_LOOK = 16 * 2**20  # bytes: what is smaller costs nothing
_PACKED = 200  # a scan has noise: deflate shrinks it by far less


def most_bytes() -> float:
    """The limit of one image.

    Raises:
        ConfigError: the environment variable holds no number above 0.
    """
    stated = os.environ.get(SETTING, "1")
    try:
        gib = float(stated)
        if not 0 < gib < inf:
            raise ValueError
    except ValueError:
        raise ConfigError(f"{SETTING}={stated}: expected a number of GiB above 0") from None
    return gib * 2**30


def check_size(shape: Sequence[float], what: str, *, itemsize: int = 4) -> None:
    """Refuse an image before anything is allocated for it.

    Args:
        shape: voxels along each axis.
        what: the image, as the message names it.
        itemsize: bytes of a stored voxel.

    Raises:
        GeometryError: it would take more than the limit.
    """
    needed = prod(map(float, shape)) * max(itemsize, 4)
    if needed > most_bytes():
        raise GeometryError(
            f"{what}: {_in_words(shape)} voxels take {needed / 2**30:.3g} GiB, the limit is {most_bytes() / 2**30:g}; "
            f"if it is not damaged crop it, or set {SETTING} higher"
        )


def check_growth(old: Sequence[float], new: Sequence[float], spacing_mm: float) -> None:
    """Refuse a working grid that would be far larger than the image it is made for.

    Raises:
        GeometryError: more voxels than the image, and than an eighth of the limit.
    """
    allowed = max(prod(map(float, old)), most_bytes() / 4 / _GROWTH)
    if not prod(map(float, new)) <= allowed:
        raise GeometryError(
            f"at a working spacing of {spacing_mm:g} mm {_in_words(old)} voxels would become {_in_words(new)}, more "
            f"than the limit of {allowed:.3g}; check the voxel size in the header and the spacing, or set {SETTING} "
            "higher"
        )


def check_packed(unpacked: int, packed: int, what: str) -> None:
    """Refuse an image that its file has shrunk to almost nothing, before it is unpacked.

    Raises:
        GeometryError: it is large and was shrunk 200-fold or more.
    """
    if unpacked > _WORTH_A_LOOK and unpacked > _PACKED * packed:
        raise GeometryError(
            f"{what}: {packed} bytes would be unpacked to {unpacked}; no scan can be shrunk so far: it shows nothing, "
            "or is damaged; leave it out"
        )


def _in_words(shape: Sequence[float]) -> str:
    return " x ".join(f"{n:.7g}" for n in shape)
