"""Unpack a .zip that a stranger packed: every entry under a name of ours, or nothing."""

import stat
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from medk2n.dicom.files import MAGIC, MAGIC_AT
from medk2n.dicom.guard import parsing
from medk2n.dicom.limits import MIB, Limits
from medk2n.errors import DicomError

_BLOCK = MIB
_END = b"PK\x05\x06"
_END_BYTES = 22


def unpack(archive: Path, folder: Path, limits: Limits) -> list[Path]:
    """Write each file of `archive` to `folder` as 000000, 000001, ...; names in the archive become no path.

    Raises:
        DicomError: no .zip, encrypted, a link or a device, a name that leaves the folder, entries that share bytes,
            or more entries or bytes than `limits` allows.
    """
    with _opened(archive, limits) as (opened, entries):
        return _write_all(opened, entries, archive, folder, limits)


def unpack_one(archive: Path, path: Path, limits: Limits) -> bool:
    """Write the first DICOM file of `archive` to `path`; returns whether there is one.

    Raises:
        DicomError: as `unpack`.
    """
    with _opened(archive, limits) as (opened, entries):
        for entry in entries:
            with opened.open(entry) as source:
                begins = source.read(MAGIC_AT + len(MAGIC))
            if begins[MAGIC_AT:] == MAGIC:
                (whole,) = _write_all(opened, [entry], archive, path.parent, limits)
                whole.replace(path)
                return True
    return False


@contextmanager
def _opened(archive: Path, limits: Limits) -> Iterator[tuple[zipfile.ZipFile, list[zipfile.ZipInfo]]]:
    """An archive and its files, once its table of contents was looked at."""
    _refuse_many_entries(archive, limits)
    with (
        parsing(archive, "cannot be unpacked", "expected a .zip of DICOM files; pack it again"),
        zipfile.ZipFile(archive) as opened,
    ):
        entries = [entry for entry in opened.infolist() if not entry.is_dir()]
        for entry in entries:
            _refuse_entry(entry, archive)
        if len(entries) > limits.files:
            raise _too_many(archive, len(entries), limits)
        if sum(entry.file_size for entry in entries) > limits.unpacked_bytes:
            raise _too_large(archive, limits)
        yield opened, entries


def _refuse_many_entries(archive: Path, limits: Limits) -> None:
    """Look at the count at the end of the file, before zipfile makes an object for every entry."""
    size = archive.stat().st_size
    with archive.open("rb") as handle:
        handle.seek(max(0, size - _END_BYTES - 65535))
        tail = handle.read()
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < _END_BYTES:
        raise DicomError(f"{archive}: is no .zip file, or is cut off; pack or copy it again")
    entries = struct.unpack_from("<H", tail, at + 10)[0]
    if entries > limits.files:
        raise _too_many(archive, entries, limits)


def _refuse_entry(entry: zipfile.ZipInfo, archive: Path) -> None:
    name = entry.filename.replace("\\", "/")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or ":" in name or "\0" in entry.orig_filename:
        raise DicomError(f"{archive}: an entry's name leads out of the archive; such a .zip is hostile; not unpacked")
    mode = entry.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise DicomError(f"{archive}: an entry is a link or a device, expected files alone; pack the files themselves")
    if entry.flag_bits & 0x1:
        raise DicomError(f"{archive}: is encrypted; unpack it yourself and give the folder")


def _write_all(
    opened: zipfile.ZipFile, entries: list[zipfile.ZipInfo], archive: Path, folder: Path, limits: Limits
) -> list[Path]:
    written, packed, files = 0, 0, []
    for number, entry in enumerate(entries):
        path = folder / f"{number:06d}"
        packed += entry.compress_size
        with opened.open(entry) as source, path.open("xb") as out:
            while block := source.read(_BLOCK):
                written += len(block)
                if written > limits.unpacked_bytes:
                    raise _too_large(archive, limits)
                if written > limits.ratio_free_bytes and written > limits.ratio * packed:
                    raise DicomError(
                        f"{archive}: unpacks to more than {limits.ratio} times its size; such a .zip is hostile"
                    )
                out.write(block)
        files.append(path)
    return files


def _too_many(archive: Path, entries: int, limits: Limits) -> DicomError:
    return DicomError(f"{archive}: holds {entries} entries or more, a study may have {limits.files}; pack one study")


def _too_large(archive: Path, limits: Limits) -> DicomError:
    return DicomError(
        f"{archive}: unpacks to more than {limits.unpacked_bytes // MIB} MiB; pack one study, or give its folder"
    )
