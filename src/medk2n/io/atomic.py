"""Whole files or none: written beside their place under another name, then renamed."""

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from medk2n.errors import OutputExistsError, OutputPermissionError, SystemLimitError


def atomic_write(path: Path | str, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file in the folder of `path` (same suffix), then rename it to `path`.

    After an error nothing is left behind and what was at `path` before is untouched.

    Raises:
        OutputPermissionError: the folder may not be written to.
        SystemLimitError: the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{secrets.token_hex(4)}-{path.name}")
    try:
        write(temporary)
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _explained(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def _explained(error: OSError, path: Path) -> OSError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SystemLimitError(f"disk full while writing {path}: nothing was written; free some space and repeat")
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return OutputPermissionError(f"no permission to write {path}: choose another --out or change its permissions")
    return error


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text atomically."""
    atomic_write(path, lambda temporary: temporary.write_bytes(text.encode("utf-8")))


def write_json(path: Path | str, data: Any) -> None:
    """Write JSON atomically, indented, keys in the order given; NaN is refused (it is not JSON)."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256_file(path: Path | str) -> str:
    """Hex digest of a file's bytes."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_array(array: np.ndarray) -> str:
    """Hex digest of an array's dtype, shape and values, whatever its memory order."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def refuse_existing(paths: Iterable[Path | str], overwrite: bool) -> None:
    """Raise OutputExistsError for the first of `paths` that is there already, unless `overwrite`."""
    if overwrite:
        return
    for path in map(Path, paths):
        if path.exists():
            raise OutputExistsError(f"{path} exists already: add --overwrite to replace it, or choose another --out")


def check_writable(folder: Path | str) -> Path:
    """Create `folder` if need be and prove that a file can be made in it; returns it.

    Raises:
        OutputPermissionError: it cannot, or something on the way is a file.
        SystemLimitError: the disk is full.
    """
    folder = Path(folder)
    probe = folder / f".tmp-{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except (FileExistsError, NotADirectoryError) as error:
        raise OutputPermissionError(f"{folder} is not a folder but a file: choose another --out") from error
    except OSError as error:
        raise _explained(error, folder) from error
    return folder
