"""Look for files that the DICOM readers neither read nor refuse in one line, led by which code a file reaches.

    pip install -e ".[dev,fuzz]"
    python recipes/fuzz_dicom.py [--seconds 300] [--seed 0] [--corpus DIR]

Begins with `tests/dicom/seeds`; DIR keeps what reached new code, so that the next run goes on from there. A file that
is found lies in the working folder as crash-..., oom-... or timeout-...; its like becomes a case of
`tests/dicom/test_hostile.py`. atheris has wheels for Linux and macOS.
"""

import argparse
import json
import logging
import resource
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["pydicom", "medk2n.dicom"]):
    from medk2n.dicom.answer import Answer, Asked, Question
    from medk2n.dicom.child import answer
    from medk2n.dicom.limits import Limits
from medk2n.errors import DicomError, UsageError

SEEDS = Path(__file__).parents[1] / "tests" / "dicom" / "seeds"
COMPANIONS = [(SEEDS / f"slice{k}.dcm").read_bytes() for k in range(1, 6)]
LIMITS = Limits(unpacked_bytes=32 * 2**20, ratio_free_bytes=2**20, voxels=2**20)
LONGEST_S, MEMORY_MIB = 30, 1024  # by the wall clock: a busy machine makes a slow reader of any


def read(content: bytes) -> None:
    """Read a file or archive alone, and as a slice among others; anything but one of our errors is a find."""
    with suppress(DicomError, UsageError):
        if content.startswith(b"PK"):
            _ask({}, "study.zip", content)
        elif not _ask({"x.dcm": content}, "").series:
            return
    with suppress(DicomError, UsageError):
        _ask({"x.dcm": content} | {f"{k}.dcm": raw for k, raw in enumerate(COMPANIONS)}, "")


def _ask(files: dict[str, bytes], name: str, archive: bytes = b"") -> Answer:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        place, work = Path(folder, "in"), Path(folder, "work")
        place.mkdir()
        work.mkdir()
        for file, content in (files | ({name: archive} if name else {})).items():
            (place / file).write_bytes(content)
        found = answer(Question(Asked.study, str(place / name), {}, None, LIMITS, 60.0), work)
        json.dumps(found.error)
        return found


def main() -> None:
    """Run libFuzzer; it ends the process itself."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # they quote the values that they complain of
    logging.disable()
    sys.setrecursionlimit(1000)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    corpus = options.corpus or Path(tempfile.mkdtemp(prefix="fuzz-corpus-"))
    corpus.mkdir(parents=True, exist_ok=True)
    flags = [f"-max_total_time={options.seconds}", f"-seed={options.seed + 1}", f"-timeout={LONGEST_S}"]
    flags += [f"-rss_limit_mb={MEMORY_MIB}", "-max_len=16384", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *flags, str(corpus), str(SEEDS)], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
