"""Which files of a study are DICOM: told by their first bytes, never by their names."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from medk2n.dicom.limits import Limits
from medk2n.errors import DicomError

MAGIC_AT = 128
MAGIC = b"DICM"
_PROGRAMS = {b"MZ": "a Windows program", b"\x7fELF": "a Linux program", b"\xcf\xfa\xed\xfe": "a macOS program",
             b"#!": "a script"}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """Files of a folder: the DICOM ones, and how many others there are."""

    dicom: list[Path]
    others: int
    links: int


def regular_files(folder: Path) -> list[Path]:
    """Every regular file of a folder at any depth, in name order; links are not followed."""
    found = []
    for place, folders, names in os.walk(folder, followlinks=False):
        folders.sort()
        found += [Path(place, name) for name in sorted(names) if stat.S_ISREG(Path(place, name).lstat().st_mode)]
    return found


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do: 128 bytes for whatever, then DICM."""
    with path.open("rb") as handle:
        handle.seek(MAGIC_AT)
        return handle.read(4) == MAGIC


def find_files(folder: Path, limits: Limits) -> Found:
    """The DICOM files of a folder, or one file that is DICOM itself.

    Raises:
        DicomError: more files than `limits` allows, or one whose preamble makes it a program as well.
    """
    files = [folder] if folder.is_file() else regular_files(folder)
    if len(files) > limits.files:
        raise DicomError(f"{folder}: holds {len(files)} files, a study may have {limits.files}; name one study")
    dicom = [path for path in files if is_dicom(path)]
    for path in dicom:
        _refuse_program(path)
    links = sum(
        Path(place, name).is_symlink()
        for place, folders, names in os.walk(folder, followlinks=False)
        for name in (*folders, *names)
    )
    return Found(dicom, len(files) - len(dicom), links)


def _refuse_program(path: Path) -> None:
    with path.open("rb") as handle:
        start = handle.read(4)
    for magic, what in _PROGRAMS.items():
        if start.startswith(magic):
            raise DicomError(
                f"{path}: is {what} and a DICOM file in one (its preamble says so); expected images alone; "
                "do not run it, and ask where the study came from"
            )
