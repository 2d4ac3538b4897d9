"""Brain masks for whole heads in npz folders (TCGA-LGG at 128 x 128): training then shows them skull-stripped too.

    python recipes/brain_masks.py DATA/lgg128/train OUT

Copies each file with a `brain` array added. Classical steps in each axial slice, then only slices whose mask is
plausible are kept: for training, where a slice without a mask is simply shown with its skull. Not for measuring.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.measure import regionprops
from skimage.morphology import disk

from medk2n.io.atomic import atomic_write
from medk2n.io.outputs import output_folder

CONTRASTS = ("t2f", "t1n", "t1c")


def brain_mask(images: list[np.ndarray]) -> np.ndarray:
    """(slice, row, column) bool; empty in slices where no plausible brain was found."""
    heads = images[0] > 0.5 * threshold_otsu(images[0])
    tissue = np.logical_and.reduce([image > 0.6 * threshold_otsu(image) for image in images])
    return np.stack([_slice_mask(*pair) for pair in zip(heads, tissue, strict=True)])


def _slice_mask(head: np.ndarray, tissue: np.ndarray) -> np.ndarray:
    empty = np.zeros_like(head)
    head = ndimage.binary_fill_holes(ndimage.binary_closing(head, disk(3)))
    core = ndimage.binary_erosion(ndimage.binary_erosion(head, disk(5)) & tissue, disk(2))
    labels, n = ndimage.label(core)
    if n == 0:
        return empty
    largest = labels == 1 + np.argmax(ndimage.sum_labels(core, labels, range(1, n + 1)))
    mask = ndimage.binary_closing(ndimage.binary_dilation(largest, disk(3)), disk(6))
    mask = ndimage.binary_opening(ndimage.binary_fill_holes(mask) & head, disk(4))
    return mask if _plausible(mask, head) else empty


def _plausible(mask: np.ndarray, head: np.ndarray) -> bool:
    """One smooth, symmetric, convex piece that leaves room for skull and scalp."""
    if not 0.45 * head.sum() < mask.sum() < 0.88 * head.sum() or mask.sum() < 1500:
        return False
    middle = round(2 * np.nonzero(head)[1].mean())
    columns = middle - np.arange(mask.shape[1])
    mirrored = mask[:, columns.clip(0, mask.shape[1] - 1)]
    overlap = 2 * (mask & mirrored).sum() / (mask.sum() + mirrored.sum())
    return regionprops(mask.astype(np.uint8))[0].solidity > 0.95 and overlap > 0.85


def main() -> None:
    """Copy a folder with masks added, and say how many slices have one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    folders = parser.parse_args()
    found, slices = 0, 0
    with output_folder(folders.out, ["*.npz"]) as place, place.in_place():
        for path in sorted(folders.source.glob("*.npz")):
            with np.load(path) as data:
                arrays = {key: data[key] for key in data.files}
            brain = brain_mask([arrays[name] for name in CONTRASTS if name in arrays])
            arrays["brain"] = brain
            atomic_write(folders.out / path.name, partial(np.savez_compressed, **arrays))
            found, slices = found + int(brain.any(axis=(1, 2)).sum()), slices + len(brain)
    print(f"{found} of {slices} slices have a brain mask; look at some before you train on them")


if __name__ == "__main__":
    main()
