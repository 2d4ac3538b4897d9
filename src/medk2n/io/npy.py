"""NumPy's arrays from foreign files: what their headers promise is held against what is there before it is unpacked."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO

import numpy as np

from medk2n.errors import VolumeReadError
from medk2n.geometry.limits import check_packed, check_size
from medk2n.io.door import door

_DEFLATE_MOST = 1032  # no byte can become more


def read_npy(path: Path) -> np.ndarray:
    """The array of an .npy file.

    Raises:
        VolumeReadError: damaged, or with objects in it.
        GeometryError: too large (`geometry/limits.py`).
    """
    with _opened(path, ".npy") as file:
        size = file.seek(0, 2)
        file.seek(0)
        _shape(file, size, str(path))
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)


@contextmanager
def opened_npz(path: Path) -> Iterator["Npz"]:
    """The arrays of an .npz file; whatever goes wrong inside the block is a refusal of the file.

    Raises:
        VolumeReadError: no .npz of plain arrays, or damaged.
        GeometryError: an array is too large (`geometry/limits.py`).
    """
    with _opened(path, ".npz") as file, zipfile.ZipFile(file) as archive:
        yield Npz(archive, path)


@dataclass(frozen=True)
class Npz:
    """An open .npz: names of arrays, and each one's shape or values when asked for."""

    archive: zipfile.ZipFile
    path: Path

    @property
    def keys(self) -> list[str]:
        """Names of the arrays, as they lie there."""
        return [name.removesuffix(".npy") for name in self.archive.namelist() if name.endswith(".npy")]

    def shape(self, key: str) -> tuple[int, ...]:
        """Of an array, which is not unpacked."""
        info, what = self.archive.getinfo(f"{key}.npy"), f"{self.path}: array {key}"
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"array {key} is packed by method {info.compress_type}, not as NumPy does")
        if info.file_size > _DEFLATE_MOST * info.compress_size + _DEFLATE_MOST:
            raise ValueError(f"array {key} claims {info.file_size} bytes in {info.compress_size}")
        with self.archive.open(info) as member:
            return _shape(member, info.file_size, what)

    def read(self, key: str, *, noisy: bool = False) -> np.ndarray:
        """An array.

        Args:
            noisy: it is a scan, which cannot have been shrunk to almost nothing.
        """
        self.shape(key)
        info = self.archive.getinfo(f"{key}.npy")
        if noisy:
            check_packed(info.file_size, info.compress_size, f"{self.path}: array {key}")
        with self.archive.open(info) as member:
            array = np.lib.format.read_array(member, allow_pickle=False)
            if member.read(1):  # to the end, where the checksum is
                raise ValueError(f"array {key} is longer than it claims")
        return array


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[IO[bytes]]:
    with door(VolumeReadError, f"{path}: cannot be read as {kind}", "expected plain arrays; copy it again"):
        if path.exists() and not path.is_file():
            raise ValueError("it is no regular file")
        with path.open("rb") as file:
            yield file


def _shape(file: IO[bytes], size: int, what: str) -> tuple[int, ...]:
    """What the header of an array of `size` bytes promises, if it can be true."""
    first = np.lib.format.read_magic(file) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds objects, not numbers")
    if any(n < 0 for n in shape):
        raise ValueError(f"its header states the shape {shape}")
    check_size(shape, what, itemsize=dtype.itemsize)
    if prod(shape) * dtype.itemsize != size - file.tell():
        raise ValueError(f"its header promises {shape} of {dtype}, which is not what it holds")
    return shape
