"""The door through which foreign bytes come in: whatever a library makes of them leaves as one line of ours."""

import codecs
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medk2n.errors import Medk2nError

MOST_TEXT, MOST_TABLE = 16 * 2**20, 32 * 2**20
"""Bytes of settings and of a table beyond which nothing but a fault is; read, they take many times as much memory."""


@contextmanager
def door(refusal: type[Medk2nError], what: str, cure: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes `refusal`, "what (why); cure"; what libraries warn of stays inside.

    Refusals of our own pass as they are. Lists of what a library may raise are never whole: they are not kept.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Medk2nError:
        raise
    except Exception as error:
        raise refusal(f"{what} ({reason(error)}); {cure}") from error


def reason(error: Any) -> str:
    """An error's words on one line, at most 200 of its letters; its name where it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def read_text(path: Path, *, encoding: str = "utf-8", most: int = MOST_TEXT) -> str:
    """A table or settings file; to be called inside a `door`.

    Raises:
        ValueError: no regular file (a pipe would be waited for, a device has no end), too large, in other letters.
    """
    return _bytes(path, most).decode(encoding)


def read_any_text(path: Path) -> str:
    """A table as people's programs write them: UTF-8, UTF-16 by the mark at its beginning, or else Latin-1.

    Raises:
        ValueError: as `read_text`, but for the letters.
    """
    data = _bytes(path, MOST_TABLE)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def kept_json(path: Path) -> Any:
    """What an earlier run left of itself; None where there is nothing, or nothing that can be read.

    Never raises: such a file may have been cut off, planted, or be a pipe.
    """
    try:
        return json.loads(read_text(path))
    except Exception:
        return None


def _bytes(path: Path, most: int) -> bytes:
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")
    if path.stat().st_size > most:
        raise ValueError(f"it is larger than {most / 2**20:g} MiB")
    return path.read_bytes()
