"""A file of voxels, read once from its beginning to its end: hashed as it passes, unpacked no further than wanted."""

import gzip
import os
from typing import Any, BinaryIO

import numpy as np
from nibabel.volumeutils import apply_read_scaling

_CHUNK = 1 << 20
TAIL = 1 << 20
"""Bytes after the voxels that are passed over: some writers pad."""
_DEFLATE_MOST = 1032  # no byte can become more


class Source:
    """The bytes of one open file.

    Args:
        file: at its beginning.
        digest: of hashlib; is given every byte that is read, as it lies on the disk.
        packed: by gzip.
    """

    def __init__(self, file: BinaryIO, digest: Any, *, packed: bool) -> None:
        self.size = os.fstat(file.fileno()).st_size
        self.packed = packed
        hashed = _Hashed(file, digest)
        self._stream: Any = gzip.GzipFile(fileobj=hashed, mode="rb") if packed else hashed  # type: ignore[call-overload]
        self._at = 0

    @property
    def most(self) -> int:
        """Bytes that can be in it, unpacked."""
        return self.size * (_DEFLATE_MOST if self.packed else 1)

    @property
    def least(self) -> int:
        """Bytes that must be in it, unpacked: gzip makes nothing longer by a hundredth."""
        return self.size - self.size // 100 if self.packed else self.size

    def read(self, count: int) -> bytes:
        """The next bytes, unpacked.

        Raises:
            EOFError: there are fewer.
        """
        parts = []
        while count > 0 and (part := self._stream.read(min(count, _CHUNK))):
            parts.append(part)
            count -= len(part)
            self._at += len(part)
        if count > 0:
            raise EOFError(f"it ends {count} bytes too early")
        return b"".join(parts)

    def skip_to(self, position: int) -> None:
        """Pass over bytes, so that the next one is that at `position` of what is unpacked.

        Raises:
            EOFError: it ends before.
        """
        while self._at < position:
            self.read(min(_CHUNK, position - self._at))

    def finish(self) -> None:
        """Read what is left, so that a checksum at the end is checked and the hash is that of the file.

        Raises:
            ValueError: there is far more.
        """
        left = TAIL
        while part := self._stream.read(_CHUNK):
            left -= len(part)
            if left < 0:
                raise ValueError(f"more than {TAIL} bytes follow the voxels that its header promises")

    def values(self, shape: tuple[int, ...], dtype: np.dtype, slope: float | None, inter: float | None) -> np.ndarray:
        """The next voxels as float32, first axis fastest, slope and intercept applied.

        Stretches of zeros take no memory until they are written to.
        """
        total = int(np.prod(shape))
        flat = np.zeros(total, np.float32)
        step = _CHUNK // dtype.itemsize
        for start in range(0, total, step):
            count = min(step, total - start)
            stored = np.frombuffer(self.read(count * dtype.itemsize), dtype)
            with np.errstate(over="ignore", invalid="ignore"):
                scaled = apply_read_scaling(stored, slope, inter).astype(np.float32)
            if scaled.any():
                flat[start : start + count] = scaled
        return flat.reshape(shape, order="F")


class _Hashed:
    """What gzip needs of a file, which a digest sees too."""

    def __init__(self, file: BinaryIO, digest: Any) -> None:
        self._file, self._digest = file, digest

    def read(self, count: int = -1) -> bytes:
        part = self._file.read(count)
        self._digest.update(part)
        return part
