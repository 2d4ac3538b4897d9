"""Files that mean harm, or are damaged: one line, exit code 2, soon, and nothing left behind."""

import os
import re
import resource
import stat
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import config, dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.tag import Tag
from pydicom.uid import JPEG2000Lossless

from medk2n.dicom import read_study
from medk2n.dicom.limits import Limits
from medk2n.dicom.unpack import unpack
from medk2n.errors import DicomError

from .conftest import AFFINE, scan
from .here import read_here
from .sources import T1, Patient, classic, new, save

SECONDS = 5.0
MEGABYTES = 512


def one(folder: Path) -> Path:
    return sorted(folder.iterdir())[5]


def edited(change):
    """A study in whose sixth slice `change` (of a data set) was made."""

    def make(folder: Path) -> Path:
        classic(folder, scan(), AFFINE, Patient(), **T1)
        data = dcmread(one(folder))
        change(data)
        data.save_as(one(folder))
        return folder

    return make


def patched(change):
    """A study whose sixth file had its bytes changed."""

    def make(folder: Path) -> Path:
        classic(folder, scan(), AFFINE, Patient(), **T1)
        path = one(folder)
        path.write_bytes(change(path.read_bytes()))
        return folder

    return make


def element(tag: tuple[int, int], vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """Explicit VR little endian."""
    length = len(value) if length is None else length
    if vr in (b"SQ", b"OB", b"OW", b"UN"):
        return struct.pack("<HH2sHI", *tag, vr, 0, length) + value
    return struct.pack("<HH2sH", *tag, vr, length) + value


def nested(depth: int, tag=(0x0008, 0x1140)) -> bytes:
    """Sequences of undefined length in each other."""
    opened = element(tag, b"SQ", b"", 0xFFFFFFFF) + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    closed = b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0"
    return opened * depth + closed * depth


def inserted(extra: bytes, before: bytes = b"\x08\x00\x16\x00"):
    """Put an element where tag order has it; the first data element of the files is ImageType (0008,0008)."""
    return patched(lambda raw: raw[: raw.index(before, 132 + 200)] + extra + raw[raw.index(before, 132 + 200) :])


def rows(value: bytes, vr: bytes = b"US"):
    tag = struct.pack("<HH", 0x28, 0x10)

    def change(raw: bytes) -> bytes:
        at = raw.index(tag + b"US")
        return raw[:at] + element((0x28, 0x10), vr, value) + raw[at + 10 :]

    return patched(change)


def preamble(magic: bytes):
    return patched(lambda raw: magic.ljust(128, b"\0") + raw[128:])


def deflated_bomb(folder: Path) -> Path:
    data = new("1.2.840.10008.5.1.4.1.1.4", Patient())
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    folder.mkdir()
    save(data, folder / "bomb")
    raw = (folder / "bomb").read_bytes()
    start = 144 + struct.unpack_from("<I", raw, 140)[0]
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = element((0x0008, 0x0008), b"CS", b"ORIGINAL") + element((0x0009, 0x1000), b"OB", b"", 1 << 30)
    packed = squeeze.compress(head)
    for _ in range(100):
        packed += squeeze.compress(bytes(1 << 20))
    (folder / "bomb").write_bytes(raw[:start] + packed + squeeze.flush())
    return folder


def text_report(folder: Path) -> Path:
    folder.mkdir()
    report = new("1.2.840.10008.5.1.4.1.1.88.11", Patient())
    report.SeriesInstanceUID = "1.2.3"
    save(report, folder / "report")
    return folder


def bad_codestream(folder: Path) -> Path:
    classic(folder, scan(), AFFINE, Patient(), **T1)
    data = dcmread(one(folder))
    data.file_meta.TransferSyntaxUID = JPEG2000Lossless
    data.PixelData = encapsulate([b"\xff\x4f\xff\x51" + bytes(range(200))])
    data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
    data.save_as(one(folder))
    return folder


def zipped(fill):
    """A .zip next to `folder` that `fill` writes into."""

    def make(folder: Path) -> Path:
        folder.mkdir()
        path = folder / "study.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            fill(archive)
        return path

    return make


def entry(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def bomb(archive: zipfile.ZipFile) -> None:
    with archive.open("zeros", "w") as out:
        for _ in range(100):
            out.write(bytes(1 << 20))


def many(said: int, count: int = 100_000, digits: int = 6):
    """A directory of so many entries, under names of so many digits, that says how many it has, truly or not."""

    def make(folder: Path) -> Path:
        folder.mkdir()
        path = folder / "study.zip"
        head = struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, digits, 0, 0, 0, 0, 0, 0)
        directory = b"".join(head + f"{number:06d}"[:digits].encode() for number in range(count))
        end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, said, said, len(directory), 0, 0)
        path.write_bytes(directory + end)
        return path

    return make


def nest(archive: zipfile.ZipFile) -> None:
    inner = b"PK\x05\x06" + bytes(18)
    for _ in range(10):
        buffer = BytesIO()
        with zipfile.ZipFile(buffer, "w") as layer:
            layer.writestr("inner.zip", inner)
        inner = buffer.getvalue()
    archive.writestr("inner.zip", inner)


def altered(change):
    """A .zip with one stored entry, with its bytes changed."""

    def make(folder: Path) -> Path:
        folder.mkdir()
        path = folder / "study.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("a", b"hello" * 100)
        path.write_bytes(change(path.read_bytes()))
        return path

    return make


def flags(raw: bytes) -> bytes:
    """Say that the entry is encrypted, in its own header and in the directory."""
    at = raw.index(b"PK\x01\x02")
    return raw[:6] + b"\x01" + raw[7 : at + 8] + b"\x01" + raw[at + 9 :]


def size_lie(raw: bytes) -> bytes:
    """The directory and the header promise 5 bytes of the 500."""
    at = raw.index(b"PK\x01\x02")
    small = struct.pack("<I", 5)
    return raw[:22] + small + raw[26 : at + 24] + small + raw[at + 28 :]


def unchecked(name: str, vr: str, value: object):
    """A value that pydicom would not take."""

    def change(data) -> None:
        data[Tag(name)] = DataElement(Tag(name), vr, value, validation_mode=config.IGNORE)

    return edited(change)


CASES = {
    "zip slip": (zipped(lambda a: a.writestr("../../evil", b"x")), "leads out of the archive"),
    "zip slip, backslash": (zipped(lambda a: a.writestr("a\\..\\..\\evil", b"x")), "leads out of the archive"),
    "zip absolute": (zipped(lambda a: a.writestr("/tmp/evil", b"x")), "leads out of the archive"),
    "zip drive": (zipped(lambda a: a.writestr("C:/evil", b"x")), "leads out of the archive"),
    "zip link": (zipped(lambda a: a.writestr(entry("link", stat.S_IFLNK), b"/etc/passwd")), "a link or a device"),
    "zip device": (zipped(lambda a: a.writestr(entry("null", stat.S_IFCHR), b"")), "a link or a device"),
    "zip bomb": (zipped(bomb), "unpacks to more than 200 times its size"),
    "zip of zips": (zipped(nest), "no DICOM image in it"),
    "zip of 100,000": (many(0xFFFF), "entries or more"),
    "zip of 100,000 that says 5": (many(5), "entries or more"),
    "zip entry without a name": (many(1, 1, 0), "cannot be unpacked (IndexError)"),
    "zip encrypted": (altered(flags), "is encrypted"),
    "zip that lies about sizes": (altered(size_lie), "cannot be unpacked"),
    "zip, wrong sum": (altered(lambda raw: raw[:40] + b"J" + raw[41:]), "cannot be unpacked"),
    "zip cut off": (altered(lambda raw: raw[:300]), "is no .zip file, or is cut off"),
    "zip, nothing in it": (altered(lambda raw: b""), "is no .zip file, or is cut off"),
    "deflated bomb": (deflated_bomb, "inflates to more than"),
    "sequences 300 deep": (inserted(nested(300)), "too deep"),
    "sequences 5,000 deep": (inserted(nested(5000)), "too deep"),
    "sequences 100 deep": (inserted(nested(100, (0x0018, 0x0012)), b"\x18\x00\x50\x00"), "too deep"),
    "rows 0": (rows(b"\0\0"), "Rows or Columns"),
    "rows as UL": (rows(struct.pack("<I", 1 << 20), b"UL"), "Rows or Columns"),
    "rows as text": (rows(b"abc ", b"LO"), "Rows or Columns"),
    "rows empty": (rows(b""), "Rows or Columns"),
    "huge": (edited(lambda d: (setattr(d, "Rows", 65535), setattr(d, "Columns", 65535))), "voxels"),
    "pixels short": (edited(lambda d: setattr(d, "PixelData", d.PixelData[:100])), "pixels cannot be read"),
    "no pixels": (edited(lambda d: d.__delitem__("PixelData")), "pixels cannot be read"),
    "cut off": (patched(lambda raw: raw[: len(raw) // 2]), "pixels cannot be read"),
    "cut off in the header": (patched(lambda raw: raw[:600]), None),
    "an element of 4 GB": (inserted(element((0x0009, 0x1000), b"OB", b"", 0xFFFFFFF0), b"\x18\x00"), None),
    "damaged meta information": (patched(lambda raw: raw[:136] + b"XX" + raw[138:]), "cannot be read as DICOM"),
    "no transfer syntax": (edited(lambda d: d.file_meta.__delitem__("TransferSyntaxUID")), None),
    "unknown transfer syntax": (
        patched(lambda raw: raw.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.7\0", 1)),
        "pixels cannot be read",
    ),
    "bad codestream": (bad_codestream, "pixels cannot be read"),
    "Windows program": (preamble(b"MZ\x90\0"), "is a Windows program and a DICOM file in one"),
    "Linux program": (preamble(b"\x7fELF\x02"), "is a Linux program and a DICOM file in one"),
    "no image": (text_report, "no MR or CT image (Basic Text SR Storage)"),
    "UID that is a path": (unchecked("SOPInstanceUID", "UI", "../../../../etc/passwd"), "SOPInstanceUID is no UID"),
    "series UID that is a path": (unchecked("SeriesInstanceUID", "UI", "/etc/passwd"), "SeriesInstanceUID is no UID"),
    "UID of 300": (unchecked("StudyInstanceUID", "UI", "1." * 150), "StudyInstanceUID is no UID"),
    "position NaN": (unchecked("ImagePositionPatient", "DS", ["nan", "0", "0"]), "ImagePositionPatient"),
    "position of two numbers": (unchecked("ImagePositionPatient", "DS", ["1", "0"]), "ImagePositionPatient"),
    "slope NaN": (unchecked("RescaleSlope", "DS", "1e39"), "RescaleSlope or the pixels"),
    "slope infinite": (unchecked("RescaleSlope", "DS", "inf"), "cannot be read as DICOM (ValueError)"),
    "spacing 0": (edited(lambda d: setattr(d, "PixelSpacing", [0, 0])), None),
}  # fmt: skip


@pytest.fixture
def _temporary(tmp_path, monkeypatch):
    """Everything that Python would put into a temporary folder goes to one that is looked at."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)


def contents(folder: Path) -> dict[Path, int | None]:
    """Everything in a folder, and when files were written."""
    return {path: path.lstat().st_mtime_ns if path.is_file() else None for path in folder.rglob("*")}


# Those that a bound of the confined process, and not a look at the file, might have to stop.
THROUGH_THE_COMMAND = (
    "zip slip", "zip bomb", "zip of 100,000 that says 5", "deflated bomb", "sequences 5,000 deep", "huge",
    "an element of 4 GB", "bad codestream",
)  # fmt: skip


@pytest.mark.usefixtures("_temporary")
@pytest.mark.parametrize(("make", "message"), CASES.values(), ids=CASES)
def test_refused(tmp_path, make, message):
    source = make(tmp_path / "study")
    before, started = contents(tmp_path), time.process_time()
    with pytest.raises(DicomError, match=re.escape(message) if message else ".") as told:
        read_here(source)
    assert time.process_time() - started < SECONDS
    assert contents(tmp_path) == before
    assert "\n" not in str(told.value)


@pytest.mark.usefixtures("_temporary")
@pytest.mark.parametrize("case", THROUGH_THE_COMMAND)
def test_refused_by_the_command_in_one_line(synth, tmp_path, capsys, case):
    make, message = CASES[case]
    source = make(tmp_path / "study")
    before = contents(tmp_path)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = synth(source)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    complaint = capsys.readouterr().err
    assert (code, complaint.count("\n")) == (2, 1), complaint
    assert complaint.startswith("medk2n: error: ")
    assert (message or "") in complaint
    assert after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime < SECONDS
    # a process is told to have taken what its parent had when it began, and this is the largest child so far
    known = max(used.ru_maxrss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert after.ru_maxrss <= max(known, MEGABYTES * 1024)
    assert contents(tmp_path) == before


def test_a_dicomdir_leads_nowhere(study):
    """It is left out, and the files are found by looking: no name in it becomes a path."""
    directory = new("1.2.840.10008.1.3.10", Patient())
    record = Dataset()
    way = DataElement(Tag("ReferencedFileID"), "CS", ["..", "..", "etc", "passwd"], validation_mode=config.IGNORE)
    record[way.tag] = way
    directory.DirectoryRecordSequence = [record]
    for name in ("StudyInstanceUID", "SOPInstanceUID", "PatientID", "PatientName"):
        if name in directory:
            del directory[name]
    save(directory, study / "DICOMDIR")
    found = read_here(study)
    assert set(found.series) == {"t1n", "t2w"}
    assert [row.reason for row in found.left_out] == ["no MR or CT image (Media Storage Directory Storage)"]


def test_links_out_of_a_folder_are_not_followed(tmp_path, study):
    (tmp_path / "links").mkdir()
    for number, path in enumerate(study.rglob("I*")):
        (tmp_path / "links" / str(number)).symlink_to(path)
    with pytest.raises(DicomError, match="no DICOM image in it"):
        read_here(tmp_path / "links")


def test_the_budget_of_an_archive_is_kept(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a", os.urandom(3 << 20))
    (tmp_path / "out").mkdir()
    with pytest.raises(DicomError, match="unpacks to more than 2 MiB"):
        unpack(tmp_path / "a.zip", tmp_path / "out", Limits(unpacked_bytes=2 << 20))
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.usefixtures("_temporary")
def test_what_a_killed_run_left_is_removed_later(tmp_path):
    place = tmp_path / "temporary"
    for name in ("medk2n-dicom-old", "medk2n-dicom-new", "other-old"):
        (place / name).mkdir()
        (place / name / "0.npy").write_bytes(b"voxels")
        if name.endswith("old"):
            os.utime(place / name, (0, 0))
    (place / "medk2n-dicom-link").symlink_to(tmp_path)
    classic(tmp_path / "study", scan(), AFFINE, Patient(), **T1)
    read_here(tmp_path / "study")
    assert sorted(path.name for path in place.iterdir()) == ["medk2n-dicom-link", "medk2n-dicom-new", "other-old"]


def test_limits_reach_the_reader(tmp_path):
    classic(tmp_path, scan(), AFFINE, Patient(), **T1)
    with pytest.raises(DicomError, match="holds 16 files, a study may have 10"):
        read_study(tmp_path, limits=Limits(files=10))


def confined(code: str, seconds: float = 60.0) -> subprocess.CompletedProcess:
    """Run code as the reader runs: after `confine`."""
    start = f"from medk2n.dicom.limits import Limits, confine; confine(Limits(), {seconds})\n"
    return subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="bounds of memory and time as Linux has them")
def test_the_reader_is_bounded(tmp_path):
    assert confined("x = bytearray(300 << 20)").returncode == 0
    assert "MemoryError" in confined("x = bytearray(600 << 20)").stderr
    assert confined("while True: pass", 0.0).returncode != 0
    assert "File too large" in confined(f"open({str(tmp_path / 'x')!r}, 'wb').truncate(5 << 30)").stderr


def test_a_reader_that_dies_or_hangs_is_told(tmp_path, monkeypatch):
    from medk2n.dicom import study as module

    folder = tmp_path / "study"
    classic(folder, scan(), AFFINE, Patient(), **T1)
    monkeypatch.setattr(module.sys, "executable", "/bin/false")
    with pytest.raises(DicomError, match=r"the reader was ended by its limits \(code 1\)"):
        module.read_study(folder)
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 30\n")
    slow.chmod(0o755)
    monkeypatch.setattr(module.sys, "executable", str(slow))
    with pytest.raises(DicomError, match="not read within 1 s"):
        module.read_study(folder, limits=Limits(seconds=0.7, bytes_per_second=1e9))
