"""What a file really is, by its first bytes: its name may promise NIfTI and its content be something else."""

import zlib
from typing import NamedTuple

GZIP_MAGIC = b"\x1f\x8b"
ENOUGH = 4096
"""Bytes of the beginning of a file that tell all that is told here."""


class Kind(NamedTuple):
    """What was found, in words, and what a person can do about it."""

    found: str
    cure: str


_CONVERT = "convert it to .nii.gz"
_COPY = "copy or download it again"
# where the signature begins, the signature, what it is of
_SIGNATURES: tuple[tuple[int, bytes, Kind], ...] = (
    (0, b"version https://git-lfs", Kind("a Git LFS pointer, a text in place of the image", "git lfs pull")),
    (128, b"DICM", Kind("a DICOM file", "convert its series with dcm2niix")),
    (0, b"NRRD", Kind("NRRD", _CONVERT)),
    (0, b"ObjectType", Kind("a MetaImage header", _CONVERT)),
    (0, b"NDims", Kind("a MetaImage header", _CONVERT)),
    (0, b"\x89HDF\r\n\x1a\n", Kind("HDF5 (MINC 2 is)", _CONVERT)),
    (0, b"CDF\x01", Kind("NetCDF (MINC 1 is)", _CONVERT)),
    (0, b"\x00\x00\x00\x01\x00\x00", Kind("FreeSurfer's MGH", "convert it with mri_convert")),
    (0, b"\x00\x05\x16\x07", Kind("an AppleDouble file, which macOS writes beside the real one", "take that one")),
    (0, b"PK\x03\x04", Kind("a zip archive", "unpack it")),
    (0, b"\xfd7zXZ", Kind("xz-compressed", "unpack it")),
    (0, b"BZh", Kind("bzip2-compressed", "unpack it")),
    (0, b"\x28\xb5\x2f\xfd", Kind("zstd-compressed", "unpack it")),
    (257, b"ustar", Kind("a tar archive", "unpack it")),
    (0, b"\x93NUMPY", Kind("a NumPy array, which does not say where its voxels are", _CONVERT)),
    (0, b"\x89PNG", Kind("a PNG picture", "find the scan that it shows")),
    (0, b"\xff\xd8\xff", Kind("a JPEG picture", "find the scan that it shows")),
    (0, b"%PDF", Kind("a PDF", "find the scan that it belongs to")),
    (0, GZIP_MAGIC, Kind("gzip-compressed twice", "gunzip it once")),
)
_TEXT = Kind("text", _COPY)
_WEB = Kind("a web page (of a failed download, perhaps)", "download it again")
_ZEROS = Kind("nothing but zero bytes at its beginning", _COPY)
_ANALYZE = Kind("Analyze 7.5, which says neither left nor right", _CONVERT)


def unpacked(head: bytes) -> bytes:
    """The beginning of what a gzip-compressed beginning holds; as it is if it is none, b"" if it is damaged."""
    if not head.startswith(GZIP_MAGIC):
        return head
    try:
        return zlib.decompressobj(wbits=31).decompress(head, ENOUGH)
    except zlib.error:
        return b""


def nifti_version(head: bytes) -> int:
    """1 or 2 by the unpacked beginning of a file; 0 if it is no NIfTI."""
    sizes = {int.from_bytes(head[:4], order) for order in ("little", "big")} if len(head) >= 4 else set()
    if 348 in sizes and head[344:347] in (b"n+1", b"ni1"):
        return 1
    return 2 if 540 in sizes and head[4:7] in (b"n+2", b"ni2") else 0


def other_kind(head: bytes) -> Kind | None:
    """What the unpacked beginning of a file that is no NIfTI shows it to be; None if it shows nothing known."""
    for start, signature, kind in _SIGNATURES:
        if head[start:].startswith(signature):
            return kind
    if 348 in (int.from_bytes(head[:4], order) for order in ("little", "big")):
        return _ANALYZE
    if head and not head.strip(b"\0"):
        return _ZEROS
    if head.lstrip()[:1] == b"<":
        return _WEB
    return _TEXT if head and all(byte >= 32 or byte in b"\t\n\r\f" for byte in head) else None
