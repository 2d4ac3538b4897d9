"""Deflated DICOM files made plain: pydicom inflates without a bound, this stops at one."""

import zlib
from pathlib import Path
from typing import BinaryIO

from medk2n.dicom.guard import parsing
from medk2n.dicom.limits import MIB, Limits
from medk2n.errors import DicomError

_META_AT = 132  # after the preamble and DICM
_GROUP_LENGTH_BYTES = 12


class Inflater:
    """Makes plain copies in `folder`, of one study and with one budget of bytes."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder, self._limits = folder, limits
        self._left, self._made = limits.unpacked_bytes, 0

    def plain(self, path: Path) -> Path:
        """`path` itself, or for a deflated file a copy that is not.

        Raises:
            DicomError: it is damaged, or inflates to more than `limits` allows.
        """
        from pydicom.filebase import DicomFileLike
        from pydicom.filereader import read_file_meta_info
        from pydicom.filewriter import write_file_meta_info
        from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

        with parsing(path):
            meta = read_file_meta_info(path)
            if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
                return path
            start = _META_AT + _GROUP_LENGTH_BYTES + int(meta.FileMetaInformationGroupLength)
            meta.TransferSyntaxUID = ExplicitVRLittleEndian
            copy = self._folder / f"inflated-{self._made:06d}"
            self._made += 1
            with path.open("rb") as source, copy.open("xb") as out:
                out.write(bytes(_META_AT - 4) + b"DICM")
                write_file_meta_info(DicomFileLike(out), meta)
                source.seek(start)
                self._copy(source, out, path)
            return copy

    def _copy(self, source: BinaryIO, out: BinaryIO, path: Path) -> None:
        most = max(self._limits.ratio_free_bytes, self._limits.ratio * path.stat().st_size)
        stream, written = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while block := (stream.unconsumed_tail or source.read(MIB)):
            piece = stream.decompress(block, MIB)
            written += len(piece)
            self._left -= len(piece)
            if written > most or self._left < 0:
                raise DicomError(f"{path}: inflates to more than {written // MIB} MiB; such a file is hostile")
            out.write(piece)
