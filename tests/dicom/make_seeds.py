"""Make the seeds of the DICOM fuzzer anew: `python -m tests.dicom.make_seeds` (from the repository's root).

Small studies of ours, the same bytes every time: one file of each kind that the readers take. `recipes/fuzz_dicom.py`
begins with them.
"""

import zipfile
from io import BytesIO
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from . import sources

SEEDS = Path(__file__).parent / "seeds"
SHAPE = (32, 32, 6)  # JPEG 2000 is not encoded smaller


def seeds() -> dict[str, bytes]:
    """Name -> content."""
    uids = (f"1.2.826.0.1.3680043.8.498.{number}" for number in count(1))
    with (
        TemporaryDirectory() as name,
        mock.patch.object(sources, "generate_uid", side_effect=uids),
    ):
        folder = Path(name)
        array = np.random.default_rng(0).integers(0, 500, SHAPE).astype(np.int16)
        one = sources.Patient()
        sources.classic(folder / "classic", array, np.eye(4), one, names=lambda k: f"{k}.dcm", **sources.T1)
        sources.enhanced(folder / "mr.dcm", array, np.eye(4), one, **sources.T2)
        sources.enhanced(folder / "ct.dcm", array, np.eye(4), sources.Patient(), kind="CT", intercept=-1024.0)
        slices = sorted((folder / "classic").iterdir())
        found = {f"slice{k}.dcm": path.read_bytes() for k, path in enumerate(slices)}
        found |= {f"enhanced-{kind}.dcm": (folder / f"{kind}.dcm").read_bytes() for kind in ("mr", "ct")}
        for label, syntax in (("rle", RLELossless), ("jpegls", JPEGLSLossless), ("jpeg2000", JPEG2000Lossless)):
            found[f"{label}.dcm"] = _compressed(slices[0], syntax)
        found["deflated.dcm"] = _deflated(slices[0])
        found["study.zip"] = _zipped(slices)
    return found


def _compressed(path: Path, syntax: str) -> bytes:
    data = dcmread(path)
    data.compress(syntax, generate_instance_uid=False)
    return _bytes(data)


def _bytes(data: Dataset) -> bytes:
    out = BytesIO()
    data.save_as(out, enforce_file_format=True)
    return out.getvalue()


def _deflated(path: Path) -> bytes:
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    plain = dcmread(path)
    plain.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    return _bytes(plain)


def _zipped(slices: list[Path]) -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in slices:
            archive.writestr(zipfile.ZipInfo(path.name), path.read_bytes(), zipfile.ZIP_DEFLATED)
    return out.getvalue()


if __name__ == "__main__":
    SEEDS.mkdir(exist_ok=True)
    for name, content in seeds().items():
        (SEEDS / name).write_bytes(content)
