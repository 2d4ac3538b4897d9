"""Whatever a damaged file makes pydicom, zlib or a decoder raise becomes one line that quotes nothing of the file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medk2n.errors import DicomError


@contextmanager
def parsing(path: Path, failure: str = "cannot be read as DICOM", cure: str = "copy it again") -> Iterator[None]:
    """Turn any exception into a DicomError that names `path`; one that is ours passes.

    Raises:
        DicomError: `failure`, with the name of the exception and the `cure`.
    """
    try:
        yield
    except DicomError:
        raise
    except RecursionError as error:
        raise too_deep(path) from error
    except MemoryError as error:
        raise DicomError(f"{path}: needs more memory than a study may take; it is damaged or hostile") from error
    except Exception as error:
        raise DicomError(f"{path}: {failure} ({type(error).__name__}); {cure}") from error


def too_deep(path: Path) -> DicomError:
    """Of sequences in sequences."""
    return DicomError(f"{path}: sequences lie too deep in each other; such a file is damaged or hostile")
