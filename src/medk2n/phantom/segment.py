"""The anatomy of one real head, segmented on the spot from a T1-weighted image.

Brain by threshold and morphology (unless the image is skull-stripped already), placed into the MNI
frame by the box around it, tissue by a Gaussian mixture of intensities weighed with the ICBM152
prior. Plain means: good enough to lend digital subjects real folds, not meant for measuring.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy import ndimage

from medk2n.errors import VolumeReadError
from medk2n.io.nifti import read_volume
from medk2n.phantom.anatomy import Anatomy, build_anatomy, load_icbm152

_BRAIN_ML = (700.0, 2300.0)  # what passes for a brain with its coverings removed


@lru_cache(maxsize=2)
def load_head(path: Path) -> Anatomy:
    """Segment a T1-weighted NIfTI, whole head or skull-stripped, roughly upright.

    Raises:
        VolumeReadError: not readable, or no brain is found in it.
    """
    volume = read_volume(path, "t1n")
    image, affine = np.maximum(volume.array, 0), volume.grid.affine
    mask = find_brain(image, volume.grid.spacing_mm)
    voxel_ml = float(np.prod(volume.grid.spacing_mm)) / 1000
    found_ml = float(mask.sum()) * voxel_ml
    if not _BRAIN_ML[0] <= found_ml <= _BRAIN_ML[1]:
        raise VolumeReadError(
            f"{path}: no brain found ({found_ml:.0f} ml; expected {_BRAIN_ML[0]:.0f} to {_BRAIN_ML[1]:.0f}); "
            "pass a T1-weighted image of an adult, best skull-stripped"
        )
    template = load_icbm152()
    match = _box_match(template, mask, affine)
    to_image = np.linalg.inv(affine) @ match @ template.affine
    shape = template.maps.shape[1:]
    t1 = ndimage.affine_transform(image, to_image, output_shape=shape, order=1, output=np.float32)
    inside = ndimage.affine_transform(mask.astype(np.float32), to_image, output_shape=shape, order=1) > 0.5
    t1 = t1 * inside
    grey, white = tissue_posteriors(t1, inside, template)
    life_size = match.diagonal()[:3]
    return build_anatomy(t1, grey, white, inside, template.affine, life_size=life_size, blurred=False, name=path.name)


def find_brain(image: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """Brain mask (x, y, z) bool of a T1-weighted image that is stripped already or shows the whole head."""
    from skimage.filters import threshold_otsu

    positive = image[image > 0]
    bright = image > 0.5 * threshold_otsu(np.clip(positive, 0, np.percentile(positive, 99)))
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    if (filled := ndimage.binary_fill_holes(bright)).sum() * voxel_ml < _BRAIN_ML[1]:
        return _largest(filled)
    # The skull is dark: eroded by 4 mm, scalp and brain no longer hang together; the thin scalp vanishes.
    strong = image > threshold_otsu(np.clip(positive, 0, np.percentile(positive, 97)))
    inner = ndimage.distance_transform_edt(strong, sampling=spacing_mm) > 4.0
    grown = ndimage.distance_transform_edt(~_largest(inner), sampling=spacing_mm) < 5.5
    closed = ndimage.distance_transform_edt(grown, sampling=spacing_mm) > 0.5
    return ndimage.binary_fill_holes(closed & (image > 0))


def _largest(mask: np.ndarray) -> np.ndarray:
    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    return labels == 1 + int(np.argmax(ndimage.sum_labels(mask, labels, np.arange(1, count + 1))))


def _box_match(template: Anatomy, mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """(4, 4) MNI millimetres -> scanner millimetres that lays the boxes around both brains on each other."""
    boxes = []
    for points, matrix in ((np.argwhere(template.maps[6] > 0), template.affine), (np.argwhere(mask), affine)):
        millimetres = points[:: max(1, len(points) // 200_000)] @ matrix[:3, :3].T + matrix[:3, 3]
        boxes.append(np.percentile(millimetres, (0.3, 99.7), axis=0))
    (low, high), (real_low, real_high) = boxes
    scale = (real_high - real_low) / (high - low)
    out = np.diag([*scale, 1.0])
    out[:3, 3] = real_low - scale * low
    return out


def tissue_posteriors(t1: np.ndarray, inside: np.ndarray, template: Anatomy) -> tuple[np.ndarray, np.ndarray]:
    """Posteriors (grey, white) of a three-class mixture in order of T1 brightness, weighed with the blurred prior."""
    from sklearn.mixture import GaussianMixture

    values = t1[inside][:, None]
    low, high = np.percentile(values, (0.5, 99.5))
    values = np.clip(values, low, high)
    start = np.percentile(values, (6, 40, 80))[:, None]
    mixture = GaussianMixture(3, means_init=start, random_state=0).fit(values[:: max(1, len(values) // 50_000)])
    order = np.argsort(mixture.means_[:, 0])
    # A wide class must not claim what is darker than CSF or brighter than white: beyond the outer means all is sure.
    values = np.clip(values, mixture.means_[order[0]], mixture.means_[order[2]])
    posterior = mixture.predict_proba(values)[:, order]
    prior = [ndimage.gaussian_filter(template.maps[i], 3)[inside] + 0.08 for i in (2, 0, 1)]  # csf, grey, white
    posterior = posterior * np.stack(prior, axis=1)
    posterior /= posterior.sum(axis=1, keepdims=True)
    maps = []
    for k in (1, 2):
        dense = np.zeros(t1.shape, np.float32)
        dense[inside] = posterior[:, k]
        maps.append(ndimage.gaussian_filter(dense, 0.5))
    return maps[0], maps[1]
