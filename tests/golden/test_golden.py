"""Small seeded models answer, decide and learn as they did when `golden.json` was written."""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

MAKE = Path(__file__).with_name("make.py")


@pytest.fixture(scope="module")
def make() -> ModuleType:
    spec = spec_from_file_location("make_golden", MAKE)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def kept(make: ModuleType) -> dict[str, Any]:
    return json.loads(make.FILE.read_text(encoding="utf-8"))


def flat(found: Any, name: str = "") -> dict[str, float]:
    """Every number by where it stands."""
    if isinstance(found, float | int):
        return {name: float(found)}
    entries = found.items() if isinstance(found, dict) else enumerate(found)
    return {key: value for part, inner in entries for key, value in flat(inner, f"{name}/{part}").items()}


def test_answers_decisions_and_losses_are_those_that_were_kept(make: ModuleType, kept: dict[str, Any]) -> None:
    now, then = flat(make.golden()), flat(kept)
    assert now.keys() == then.keys()
    moved = [f"{k}: {then[k]:.6g} -> {v:.6g}" for k, v in now.items() if not np.isclose(v, then[k], 1e-4, 1e-4)]
    hint = "; if that is meant, run python tests/golden/make.py and say so in the commit"
    assert not moved, f"{len(moved)} of {len(now)} values moved, the first {moved[0]}{hint}"


def test_every_model_is_kept(make: ModuleType, kept: dict[str, Any]) -> None:
    assert set(kept["answers"]) >= set(make.names("models"))
    assert len(kept["answers"]["unet"]) == 6, "every K and N of four modalities"
    assert {name: len(losses) for name, losses in kept["learning"].items()} == {"medk2n": 20, "unet": 20}
