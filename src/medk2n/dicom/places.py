"""In which folders and archives of a cohort the images of which study lie; one image of each is looked at."""

import os
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from medk2n.dicom.answer import Place
from medk2n.dicom.files import is_dicom, regular_files
from medk2n.dicom.frame import is_uid
from medk2n.dicom.guard import parsing
from medk2n.dicom.inflate import Inflater
from medk2n.dicom.limits import Limits
from medk2n.dicom.unpack import unpack_one
from medk2n.errors import DicomError

_TRIES = 3  # images of a folder before it counts as unreadable


def find_places(folder: Path, work: Path, limits: Limits) -> list[Place]:
    """Every folder below `folder` that holds DICOM files itself, and every .zip with one in it, in name order.

    Raises:
        DicomError: more of them than `limits` allows files.
    """
    files: dict[Path, list[Path]] = {}
    for file in regular_files(folder):
        files.setdefault(file if file.suffix.lower() == ".zip" else file.parent, []).append(file)
    if len(files) > limits.files:
        raise DicomError(f"{folder}: holds {len(files)} folders, a cohort may have {limits.files}; give a part of it")
    found = []
    for place, members in files.items():
        with TemporaryDirectory(dir=work) as name:
            spare = Path(name)
            study = _of_zip(place, spare, limits) if place.is_file() else _of_files(members, spare, limits)
        if study is not None:
            found.append(Place(os.path.relpath(place, folder), study))
    return sorted(found, key=lambda place: place.name)


def _of_zip(archive: Path, spare: Path, limits: Limits) -> str | None:
    """The study of its first image; empty if that cannot be told, None if there is no image."""
    copy = spare / "one"
    try:
        there = unpack_one(archive, copy, limits)
    except DicomError:
        return ""
    return _of_files([copy], spare, limits) if there else None


def _of_files(files: list[Path], spare: Path, limits: Limits) -> str | None:
    """The study of the first that says so; empty if several do not, None if there is no image."""
    from pydicom import dcmread

    tried = 0
    for file in files:
        if tried == _TRIES or not is_dicom(file):
            continue
        with suppress(DicomError), parsing(file):
            plain = Inflater(spare, limits).plain(file)
            data = dcmread(plain, specific_tags=["StudyInstanceUID"], stop_before_pixels=True)
            study = str(data.get("StudyInstanceUID") or "")
            if is_uid(study):
                return study
            if not study:
                continue  # such as a DICOMDIR
        tried += 1
    return "" if tried else None
