"""The state of a run: all that must be kept so that it can go on as if it had never been stopped.

A state is a folder `step-N`: a safetensors file per model, counters in JSON and, written last, a manifest of SHA-256.
It is filled under another name and renamed, so a run that is killed while it saves leaves the one before it. The last
two stay. No pointer file says which is newest: the manifests do.
"""

import json
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from medk2n.io.atomic import atomic_write, flush, sha256_file, write_json

KEPT = 2
_COUNTERS, _MANIFEST = "counters.json", "MANIFEST.json"


@dataclass(frozen=True, slots=True)
class State:
    """What was read.

    Attributes:
        tensors: model -> name -> tensor.
        counters: plain numbers and names.
        damaged: folders that were newer and not whole.
    """

    tensors: dict[str, dict[str, Tensor]]
    counters: dict[str, Any]
    damaged: tuple[Path, ...]


def write(root: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], counters: Mapping[str, Any]) -> None:
    """Write `root/step-N` whole or not at all, then drop what is older than the last two.

    Raises:
        SystemLimitError: disk full; older states are untouched.
    """
    root.mkdir(parents=True, exist_ok=True)
    _tidy(root)
    filling = root / f".tmp-{secrets.token_hex(4)}"
    filling.mkdir()
    try:
        for model, named in tensors.items():
            raw = to_bytes({name: tensor.detach().cpu().contiguous() for name, tensor in named.items()})
            atomic_write(filling / f"{model}.safetensors", lambda path, raw=raw: path.write_bytes(raw))
        write_json(filling / _COUNTERS, dict(counters))
        write_json(filling / _MANIFEST, {path.name: sha256_file(path) for path in sorted(filling.iterdir())})
        place = root / f"step-{step}"
        if place.exists():  # the same step again: a run that was stopped where it had just saved
            shutil.rmtree(place)
        filling.rename(place)
        flush(root)
    finally:
        shutil.rmtree(filling, ignore_errors=True)
    for old in _newest_first(root)[KEPT:]:
        shutil.rmtree(old)


def newest(root: Path) -> State | None:
    """The newest state that is whole; None if there is none."""
    damaged = []
    for folder in _newest_first(root):
        with suppress(Exception):  # whatever a damaged file makes a library raise: an older state is whole
            manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
            if _COUNTERS in manifest and all(sha256_file(folder / name) == digest for name, digest in manifest.items()):
                files = [folder / name for name in manifest if name.endswith(".safetensors")]
                tensors = {path.stem: from_bytes(path.read_bytes()) for path in files}
                counters = json.loads((folder / _COUNTERS).read_text(encoding="utf-8"))
                return State(tensors, counters, tuple(damaged))
        damaged.append(folder)
    return None


def remove(root: Path) -> None:
    """Take away all states, and the folder unless something else lies in it."""
    _tidy(root)
    for folder in _newest_first(root):
        shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        root.rmdir()


def _newest_first(root: Path) -> list[Path]:
    """Folders called step-N, and nothing else that is called nearly so."""
    steps = {int(number): path for path in root.glob("step-*") if (number := path.name[5:]).isdecimal()}
    return [steps[number] for number in sorted(steps, reverse=True) if not steps[number].is_symlink()]


def _tidy(root: Path) -> None:
    """Remove what a killed process was writing."""
    for left in root.glob(".tmp-*"):
        shutil.rmtree(left, ignore_errors=True)
