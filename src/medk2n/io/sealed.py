"""JSON that holds a hash of itself, so that no altered bit of it is taken for what was learned."""

import hashlib
import json
from pathlib import Path
from typing import Any

from medk2n.io.atomic import write_text


def write_sealed(path: Path, data: dict[str, Any], seal: str) -> None:
    """Write `data` with its hash as the last field, called `seal`."""
    text = json.dumps(data | {seal: ""}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, sealed(text, seal))


def unseal(text: str, data: dict[str, Any], seal: str) -> None:
    """Hold the text of a file, read as `data`, against its hash, which is taken out of `data`.

    Raises:
        ValueError: it was altered.
    """
    if sealed(text.replace(str(data.pop(seal, None)), "", 1), seal) != text:
        raise ValueError("it was altered: its SHA-256 differs")


def sealed(text: str, seal: str) -> str:
    """The text of a description, whose own hash is left empty, with that hash filled in."""
    before, field, after = text.rpartition(f'"{seal}": "')
    return f"{before}{field}{hashlib.sha256(text.encode()).hexdigest()}{after}"
