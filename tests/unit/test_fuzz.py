"""A hundred broken files a reader: read, or refused in one line; `recipes/fuzz.py` breaks thousands."""

import runpy
from pathlib import Path

import pytest

FUZZ = runpy.run_path(str(Path(__file__).parents[2] / "recipes" / "fuzz.py"))


@pytest.mark.parametrize("name", FUZZ["READERS"])
def test_no_broken_file_ends_in_an_internal_error(name):
    found = FUZZ["fuzz"](name, 100)
    assert found.internal == []
    assert found.read + found.refused == 100
    assert found.refused > 20


@pytest.mark.parametrize("name", FUZZ["READERS"])
def test_what_is_not_broken_is_read(name, monkeypatch):
    for tool in ("broken", "reworded"):
        monkeypatch.setitem(FUZZ["fuzz"].__globals__, tool, lambda rng, whole: whole)
    monkeypatch.setitem(FUZZ["fuzz"].__globals__, "NUMBERS", (1,))
    found = FUZZ["fuzz"](name, 8)
    assert found.internal == []
    assert found.read >= 1 if name in ("nifti", "png") else found.read == 8
