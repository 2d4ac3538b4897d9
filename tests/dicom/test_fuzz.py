"""Damage anywhere: what a reader says is one of our errors, or the study is read.

`MEDK2N_FUZZ_SECONDS=300 MEDK2N_FUZZ_SEED=7` looks longer, and elsewhere. What it finds becomes a case of
`test_hostile.py`.
"""

import logging
import os
import random
import shutil
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from medk2n.errors import DicomError

from .here import folder, read_here
from .sources import T1, T2, Patient, classic, enhanced

SECONDS = float(os.environ.get("MEDK2N_FUZZ_SECONDS", "4"))
SEED = int(os.environ.get("MEDK2N_FUZZ_SEED", "0"))
LENGTHS = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"SQ\0\0", b"\xfe\xff\x00\xe0")


def damaged(raw: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, lost, put in or doubled; the 128 of the preamble stay."""
    out = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(128, len(out)) if len(out) > 128 else 0
        match rng.choice("cccclldii"):
            case "c":
                out[at] = rng.randrange(256)
            case "l":
                out[at : at + 4] = rng.choice(LENGTHS)
            case "d":
                del out[at : at + rng.randrange(1, 64)]
            case _:
                start = rng.randrange(len(out))
                out[at:at] = out[start : start + rng.randrange(1, 100)]
    return bytes(out)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> Path:
    """A classic and an enhanced study, and a .zip."""
    place = tmp_path_factory.mktemp("seeds")
    array = np.random.default_rng(0).integers(0, 500, (4, 5, 6)).astype(np.int16)
    classic(place / "classic", array, np.eye(4), Patient(), **T1)
    enhanced(place / "enhanced" / "x", array, np.eye(4), Patient(), **T2)
    with zipfile.ZipFile(place / "study.zip", "w") as archive:
        for path in (place / "classic").iterdir():
            archive.write(path, path.name)
    return place


@pytest.mark.parametrize("name", ["classic", "enhanced", "study.zip"])
def test_damage_is_told(seeds, name):
    rng, end = random.Random(f"{SEED} {name}"), time.monotonic() + SECONDS / 3
    logging.disable()
    try:
        while time.monotonic() < end:
            with folder() as place:
                study = place / name
                if name.endswith(".zip"):
                    study.write_bytes(damaged((seeds / name).read_bytes(), rng))
                else:
                    shutil.copytree(seeds / name, study)
                    file = rng.choice(sorted(study.iterdir()))
                    file.write_bytes(damaged(file.read_bytes(), rng))
                started = time.process_time()
                with suppress(DicomError):
                    read_here(study)
                assert time.process_time() - started < 5
    finally:
        logging.disable(logging.NOTSET)


SEEDS = Path(__file__).parent / "seeds"


@pytest.mark.parametrize("name", sorted(path.name for path in SEEDS.iterdir()))
def test_seeds_of_the_fuzzer_are_whole(tmp_path, name):
    """`recipes/fuzz_dicom.py` begins with files that are read to the end (`make_seeds.py` makes them)."""
    study = tmp_path / name
    if name.endswith(".zip") or name.startswith("enhanced"):
        shutil.copy(SEEDS / name, study)
    else:
        study.mkdir()
        for file in {name, *(f"slice{k}.dcm" for k in range(1, 6))}:
            shutil.copy(SEEDS / file, study)
    (series,) = read_here(study).series.values()
    assert series.volume.array.shape[2] >= 5


def test_what_the_fuzzer_calls_runs():
    """A few of its inputs, where atheris is installed (pip install -e ".[fuzz]")."""
    pytest.importorskip("atheris", reason="atheris is not installed: pip install -e '.[fuzz]'")
    recipe = Path(__file__).parents[2] / "recipes" / "fuzz_dicom.py"
    command = [sys.executable, recipe, "--seconds", "3"]
    with folder() as place:
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        assert list(place.glob("crash-*")) == []
