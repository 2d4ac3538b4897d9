"""Whole files or none: written beside their place under another name, then renamed."""

import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from medk2n.errors import Medk2nError, OutputExistsError, OutputPermissionError, SystemLimitError

_TAIL = 48  # letters of a file's name that its temporary name ends with; the whole would be too long for some
_TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{8}-(.+)", re.DOTALL)


def atomic_write(path: Path | str, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file in the folder of `path` (same suffix), then rename it to `path`.

    The folder is made if need be.

    After an error nothing is left behind and what was at `path` before is untouched.

    Raises:
        OutputPermissionError: the folder may not be written to.
        SystemLimitError: the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{secrets.token_hex(4)}-{path.name[-_TAIL:]}")
    with explaining(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(temporary)
            with temporary.open("rb+") as handle:
                os.fsync(handle.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def explaining(path: Path) -> Iterator[None]:
    """What the system says against writing to `path`, as errors of ours."""
    try:
        yield
    except Medk2nError:
        raise
    except OSError as error:
        raise _explained(error, path) from error


def _explained(error: OSError, path: Path) -> OSError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SystemLimitError(f"disk full while writing {path}: nothing was written; free some space and repeat")
    if error.errno == errno.EFBIG:
        return SystemLimitError(f"{path} would be larger than a file may be here (ulimit -f): nothing was written")
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return OutputPermissionError(f"no permission to write {path}: choose another --out or change its permissions")
    if isinstance(error, FileExistsError | NotADirectoryError):
        return OutputPermissionError(f"{path} is not a folder but a file: choose another --out")
    if error.errno == errno.ENAMETOOLONG:
        return OutputPermissionError(f"{path}: the name is too long for the file system: choose a shorter --out")
    return error


def is_left_over(name: str) -> bool:
    """Whether a file has a name as `atomic_write` gives while it writes."""
    return bool(_TEMPORARY.fullmatch(name))


def remove_left_over(folder: Path, names: Collection[str]) -> None:
    """Remove what `atomic_write` had not finished of files of these names (or patterns) when its process was killed."""
    for path in folder.iterdir() if folder.is_dir() and not folder.is_symlink() else ():
        found = _TEMPORARY.fullmatch(path.name)
        if found and path.is_file() and any(fnmatchcase(found[1], name[-_TAIL:]) for name in names):
            path.unlink(missing_ok=True)


def flush(folder: Path) -> None:
    """Make a rename last through a power cut, where the system lets a folder be synced."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text atomically; what no UTF-8 can say (of a file's name) becomes an escape that JSON reads back."""
    atomic_write(path, lambda temporary: temporary.write_bytes(text.encode("utf-8", "backslashreplace")))


def write_json(path: Path | str, data: Any) -> None:
    """Write JSON atomically, indented, keys in the order given; NaN is refused (it is not JSON)."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256_file(path: Path | str, *, flushed: bool = False) -> str:
    """Hex digest of a file's bytes, which are on the disk then if wanted."""
    with Path(path).open("rb") as handle:
        if flushed:
            os.fsync(handle.fileno())
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
