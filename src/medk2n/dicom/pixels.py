"""The voxels of a stack, slice by slice into one file, so that memory holds one slice."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from medk2n.dicom.frame import Frame
from medk2n.dicom.guard import parsing
from medk2n.dicom.stacks import Stack
from medk2n.errors import DicomError
from medk2n.io.volume import MOST

AIR_HU = -1000.0


def write_voxels(stack: Stack, path: Path) -> None:
    """Write (slices, rows, columns) float32 as .npy: rescaled, CT in HU with padding as air.

    Raises:
        DicomError: pixels missing, cut off, in a transfer syntax that is not read, or not finite.
    """
    first = stack.frames[0]
    header = {"descr": "<f4", "fortran_order": False, "shape": (len(stack.frames), first.rows, first.columns)}
    slots: dict[Path, dict[int, int]] = defaultdict(dict)
    for slot, frame in enumerate(stack.frames):
        slots[frame.file][frame.number] = slot
    with path.open("xb") as out:
        np.lib.format.write_array_header_1_0(out, header)
        start, size = out.tell(), first.rows * first.columns * 4
        for file, wanted in slots.items():
            for number, raw in _frames(file, sorted(wanted), first):
                out.seek(start + wanted[number] * size)
                out.write(_values(raw, stack.frames[wanted[number]], file).tobytes())


def _frames(file: Path, numbers: list[int], first: Frame) -> Any:
    """(number, stored values) of frames of a file, in its order."""
    from pydicom.pixels.utils import iter_pixels

    expected = f"expected {first.rows} x {first.columns} in a transfer syntax of pydicom's plug-ins"
    with parsing(file, "its pixels cannot be read", f"{expected}; copy or convert it again"):
        yield from zip(numbers, iter_pixels(file, indices=numbers, raw=True), strict=True)


def _values(raw: np.ndarray, frame: Frame, file: Path) -> np.ndarray:
    if raw.shape != (frame.rows, frame.columns):
        raise DicomError(
            f"{file}: decodes to {raw.shape}, its header states {frame.rows} x {frame.columns}; the file is damaged"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        values = raw.astype(np.float32) * np.float32(frame.slope) + np.float32(frame.intercept)
    if frame.padding is not None and frame.facts.modality == "CT":
        values[raw == frame.padding] = AIR_HU
    if not (np.abs(values) <= MOST).all():
        raise DicomError(
            f"{file}: its rescaled values are not finite, or beyond {MOST:g}; RescaleSlope or the pixels are damaged"
        )
    return values
