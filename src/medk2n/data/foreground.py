"""Foreground: where the patient is, in skull-stripped images and in heads with air around them.

All functions take an (x, y, z) array in RAS order; `data/patient.py` turns volumes so.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

_THRESHOLD_SAMPLE = 200_000  # voxels that a threshold is found on
_LEAST_SHARE = 0.1  # a constant background fills at least this much of the image
_FACE_SHARE = 0.8  # and this much of the image's outer faces (median over the faces)
_MOST_BORDERS = 2.0  # and is entered and left at most so often along a line that meets the content
_FAINT = 0.05  # content this close to the background, as a share of the contrast, is faint
_MOST_FAINT = 0.12  # and little of the content is faint
_SPECK_SHARE = 0.01  # a component smaller than this share of the largest is a speck
_AIR_SHARE = 0.3  # of the outer faces, that one grey level must fill to be taken for air
_DARKER_SHARE = 0.02  # of the image, darker than air, for air not to be the darkest
_MOST_SPLITS = 2
_PAD_SHARE = 0.005  # of the image, that one value at its faces must fill to be padding
_PAD_APART = 0.02  # of the content's range, between that value and the air within it
_DARK = 0.1  # of the range above the darkest content: what may be air
_AIRY = (0.5, 0.2)  # least share of such among the content's outer voxels, and in all of it
_TIGHT = 0.06  # of the range: from the 10th percentile of the outer voxels to their median, where they are air
_FRAMED_SHARE = 0.1  # of the outer voxels, that one value must fill to be taken for padding within padding
_PAD_SAMPLE = 1_000_000  # voxels that padding is looked for in
_THICK = 4  # an axis with fewer voxels has no faces and is not smoothed along


def without_padding(array: np.ndarray, air_below: float | None = None) -> np.ndarray:
    """The array with what a scanner or a program filled up with one value set to the level of the air inside it.

    Such a value lies at the image's faces, in areas, and what it borders on is mostly air: as dark as the content
    gets, and all alike. (The outer 2 voxels of 162 skull-stripped real scans: 5 to 45 % dark, 10th percentile to
    median over 7 % of the range; of real heads inside a padded circle: 82 to 100 %, under 4 %.) What borders on the
    background of a stripped image is tissue.

    Args:
        air_below: where the unit tells air from tissue, that limit decides.
    """
    step = 1 + int((array.size / _PAD_SAMPLE) ** (1 / 3))
    thin = array[tuple(slice(None, None, step if n >= _THICK * step else 1) for n in array.shape)]
    pad, _ = _commonest(np.concatenate([face.ravel() for face in _faces(thin)]))
    if (beside := _around(thin, [pad])) is None:
        return array
    inner, share = _commonest(beside[1])
    for pads in ([pad, inner], [pad]) if share > _FRAMED_SHARE else ([pad],):  # a frame around a padded circle
        beside = _around(thin, pads)
        if beside is not None and (air := _air_beside(pads[-1], *beside, air_below)) is not None:
            return np.where(np.isin(array, pads), array.dtype.type(air), array)
    return array


def _commonest(values: np.ndarray) -> tuple[float, float]:
    """The commonest value and its share."""
    found, counts = np.unique(values, return_counts=True)
    return found[np.argmax(counts)], float(counts.max() / values.size)


def _around(array: np.ndarray, pads: Sequence[float]) -> tuple[np.ndarray, np.ndarray] | None:
    """What is not at those values, and of it the outer two voxels; None if these values form no areas."""
    content = ~np.isin(array, pads)
    if not content.any() or np.mean(content) > 1 - _PAD_SHARE or _borders_a_line(content) > _MOST_BORDERS:
        return None
    outer = ndimage.binary_dilation(~content, iterations=2) & content
    return array[content], array[outer]


def _air_beside(pad: float, content: np.ndarray, outer: np.ndarray, air_below: float | None) -> float | None:
    """The level of the air that padding borders on; None if it is no padding, or so near that it does not matter."""
    low, high = np.percentile(content, [0.5, 99.5])
    dark = low + _DARK * (high - low)
    tenth, air = (float(level) for level in np.percentile(outer, [10, 50]))
    if not abs(float(pad) - air) > _PAD_APART * (high - low):
        return None
    if air_below is not None:
        return air if air < air_below else None
    airy = np.mean(outer < dark) >= _AIRY[0] and np.mean(content < dark) >= _AIRY[1]
    return air if airy and air - tenth < _TIGHT * (high - low) else None


def background_value(array: np.ndarray, air_below: float | None = None) -> float | None:
    """The exact constant around a skull-stripped (or otherwise masked) image, None if there is none.

    It covers most of the image's faces, at least a tenth of all voxels, and forms areas, not a sprinkle
    (air that was rounded to few grey levels is noise, not a constant: a line through it enters and
    leaves the "content" many times; through 59 skull-stripped real scans 1.1 to 1.4 times). Nor is a
    blank frame around a picture of head and air one: there 8 to 60 % of the content is as dark as the
    frame, in the stripped scans under 5 %. Nor is padding (`without_padding`).
    """
    return _background_value(without_padding(array, air_below))


def _background_value(array: np.ndarray) -> float | None:
    faces = _faces(array)
    values, counts = np.unique(np.concatenate([face.ravel() for face in faces]), return_counts=True)
    value = values[np.argmax(counts)]
    if np.median([np.mean(face == value) for face in faces]) < _FACE_SHARE:
        return None
    inside = array != value
    n_inside = np.count_nonzero(inside)
    if n_inside == 0 or inside.size - n_inside < _LEAST_SHARE * inside.size:
        return None
    if _borders_a_line(inside) > _MOST_BORDERS:
        return None
    contrast = np.abs(array[inside][:: n_inside // _THRESHOLD_SAMPLE + 1] - float(value))
    faint = np.mean(contrast < _FAINT * np.percentile(contrast, 99))
    return float(value) if faint <= _MOST_FAINT else None


def foreground(array: np.ndarray, air_below: float | None = None) -> np.ndarray:
    """Boolean mask, shape of `array`: the patient, holes included; all False if nothing is there.

    With a constant background: what differs from it. Otherwise: what stands out from the noise of the
    air around a head, its largest connected part, filled slice by slice (across each axis).
    """
    array = without_padding(array, air_below)
    background = _background_value(array)
    if background is not None:
        return _fill_holes(_without_specks(array != background, _SPECK_SHARE), by_slice=False)
    levels = _above_air(array.astype(np.float32, copy=False))
    thick = [n >= _THICK for n in array.shape]
    smooth = ndimage.uniform_filter(levels, [3 if t else 1 for t in thick], mode="nearest")
    threshold = _air_threshold(smooth)
    mask = _without_specks(smooth > threshold, 1.0)
    # smoothing carried the edge outwards: there a voxel counts only if it stands out itself
    core = ndimage.binary_erosion(mask, _cross(thick), border_value=1)
    return _fill_holes(core | (mask & (levels > threshold)), by_slice=True)


def _cross(thick: list[bool]) -> np.ndarray:
    """A voxel and its neighbours along the thick axes."""
    cross = ndimage.generate_binary_structure(len(thick), 1)
    for axis, is_thick in enumerate(thick):
        if not is_thick:
            cross = cross.take([1], axis=axis)
    return cross


def _faces(array: np.ndarray) -> list[np.ndarray]:
    axes = [axis for axis, n in enumerate(array.shape) if n >= _THICK] or range(array.ndim)
    return [np.moveaxis(array, axis, 0)[end] for axis in axes for end in (0, -1)]  # `take` would copy all of a view


def _above_air(array: np.ndarray) -> np.ndarray:
    """Distance from the air's level where air is not the darkest value (signed inversion recovery)."""
    low, high = np.percentile(array.ravel()[:: max(1, array.size // _THRESHOLD_SAMPLE) | 1], [0.5, 99.5])
    if not high > low:
        return array
    rim = np.clip(np.concatenate([face.ravel() for face in _faces(array)]), low, high)
    counts, edges = np.histogram(rim, bins=32, range=(low, high))
    peak = int(np.argmax(counts))
    air = float(edges[peak] + edges[peak + 1]) / 2
    is_air = counts[peak] >= _AIR_SHARE * rim.size and np.mean(array < air - 0.15 * (high - low)) > _DARKER_SHARE
    return np.abs(array - air) if is_air else array


def _borders_a_line(inside: np.ndarray) -> float:
    """How often, on average, a line along the longest axis that meets the content enters and leaves it."""
    along = int(np.argmax(inside.shape))
    changes = int(np.count_nonzero(np.diff(inside.view(np.int8), axis=along)))
    return changes / 2 / max(1, int(np.count_nonzero(inside.any(axis=along))))


def _air_threshold(smooth: np.ndarray) -> float:
    """A level between air and tissue: well under Otsu's, for dark tissue, and clear of the air's noise.

    Where a very bright scalp draws Otsu's threshold above the brain, what is below is no tight cluster
    of air; then it is split once more (a third time would split the air).
    """
    sample = smooth.ravel()[:: max(1, smooth.size // _THRESHOLD_SAMPLE) | 1]
    sample = np.clip(sample, *np.percentile(sample, [0.5, 99.0]))
    for _ in range(_MOST_SPLITS):
        otsu = _otsu(sample)
        air = sample[sample <= otsu]
        level = float(np.median(air))
        clear = level + 4.0 * 1.4826 * float(np.median(np.abs(air - level)))
        if clear < (level + otsu) / 2:
            break
        sample = air
    return min(otsu, max(level + 0.4 * (otsu - level), clear))


def _otsu(sample: np.ndarray) -> float:
    """Threshold of largest between-class variance (Otsu 1979), 256 bins."""
    counts, edges = np.histogram(sample, bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above: np.ndarray = counts.sum() - below
    sums = np.cumsum(counts * centres)
    split = (below > 0) & (above > 0)
    if not split.any():
        return float(edges[-1])
    gap = sums[split] / below[split] - (sums[-1] - sums[split]) / above[split]
    return float(edges[1:][split][np.argmax(below[split] * above[split] * gap**2)])


def _without_specks(mask: np.ndarray, share_of_largest: float) -> np.ndarray:
    labels, n = ndimage.label(mask)
    if n <= 1:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return (sizes >= share_of_largest * sizes.max())[labels]


def _fill_holes(mask: np.ndarray, *, by_slice: bool) -> np.ndarray:
    """Add what is enclosed: in three dimensions, or within a slice of any axis that has more than one."""
    if not by_slice:
        return _closed(mask, None)
    thick = [axis for axis, n in enumerate(mask.shape) if n >= _THICK] or [mask.ndim - 1]
    across = thick if len(thick) == mask.ndim else [axis for axis in range(mask.ndim) if axis not in thick]
    return np.logical_or.reduce([_closed(mask, axis) for axis in across])


def _closed(mask: np.ndarray, across: int | None) -> np.ndarray:
    """The mask and its holes; within the slices across one axis, if one is given.

    (The background is labelled; parts that reach no outer face are holes. Far faster than
    `binary_fill_holes`, which dilates step by step.)
    """
    structure = ndimage.generate_binary_structure(mask.ndim, 1)
    if across is not None:
        np.moveaxis(structure, across, 0)[[0, 2]] = False
    labels, _ = ndimage.label(~mask, structure)
    open_axes = [a for a, n in enumerate(mask.shape) if n > 1 and a != across]
    outside = np.unique(np.concatenate([np.moveaxis(labels, a, 0)[end].ravel() for a in open_axes for end in (0, -1)]))
    return ~np.isin(labels, outside[outside > 0], kind="table")
