"""Whole files or none: written beside their place under another name, then renamed."""

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from medk2n.errors import OutputExistsError, OutputPermissionError, SystemLimitError


def atomic_write(path: Path | str, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file in the folder of `path` (same suffix), then rename it to `path`.

    The folder is made if need be.

    After an error nothing is left behind and what was at `path` before is untouched.

    Raises:
        OutputPermissionError: the folder may not be written to.
        SystemLimitError: the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{secrets.token_hex(4)}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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
    """Prove that a file can be made in `folder`, which need not be there yet and is not left behind; returns it.

    Raises:
        OutputPermissionError: it cannot, or something on the way is a file.
        SystemLimitError: the disk is full.
    """
    folder = Path(folder)
    absent = [place for place in (folder, *folder.parents) if not place.exists()]
    probe = folder / f".tmp-{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except (FileExistsError, NotADirectoryError) as error:
        raise OutputPermissionError(f"{folder} is not a folder but a file: choose another --out") from error
    except OSError as error:
        explained = _explained(error, folder)
        if explained is error:  # no such file system, a name too long, ...
            explained = OutputPermissionError(f"{folder} cannot be made ({error.strerror}): choose another --out")
        raise explained from error
    finally:
        for place in absent:  # the deepest first; one that another process has filled meanwhile stays
            with suppress(OSError):
                place.rmdir()
    return folder
