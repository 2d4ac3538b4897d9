"""The exception family: what a caller can cure, and what only we can.

Every error carries an `exit_code` that the command line returns: 2 for what the caller can
cure with another command, 1 for the rest. A message says what was being done and to which
file, what was expected, what was found and what to do next, in one line.
"""


class Medk2nError(Exception):
    """Base of all errors raised on purpose by this package."""

    exit_code = 2

    def __str__(self) -> str:
        """One line, whatever names of files and values out of them are in it."""
        return " ".join(super().__str__().splitlines())


class UsageError(Medk2nError, ValueError):
    """An option or argument that cannot be what the caller meant."""


class ConfigError(Medk2nError, ValueError):
    """A configuration value that does not validate."""


class UnknownNameError(Medk2nError, LookupError):
    """A name (modality, component, model) that is not known; the message suggests near ones."""


class VolumeReadError(Medk2nError, OSError):
    """A file that is not a readable, finite, three-dimensional image."""


class DoubtfulScanError(Medk2nError, ValueError):
    """A scan that is almost certainly not what it is said to be; refused without `--force`."""


class GeometryError(Medk2nError, ValueError):
    """Grids that are singular, do not overlap, or do not fit."""


class DatasetError(Medk2nError, ValueError):
    """A folder in which no usable subject was found, or subjects that contradict each other."""


class DicomError(Medk2nError, ValueError):
    """DICOM that is damaged, hostile, in doubt, or no single study of one patient."""


class OutputExistsError(Medk2nError, FileExistsError):
    """An output that is already there; refused without `--overwrite`."""


class OutputPermissionError(Medk2nError, PermissionError):
    """An output folder that may not be written to."""


class CheckpointError(Medk2nError, ValueError):
    """A model folder that is incomplete, altered, or of another kind."""


class StoppedError(Medk2nError):
    """Work that was asked to stop, did, and can go on where it was."""

    exit_code = 130


class SystemLimitError(Medk2nError, OSError):
    """The machine's limit, not the caller's mistake: disk full, out of memory."""

    exit_code = 1


class InternalError(Medk2nError, RuntimeError):
    """A broken promise of our own."""

    exit_code = 1


def contained(error: Exception) -> Medk2nError:
    """What ends one subject of many, and not the others: ours as it is, any other under its name.

    Raises:
        SystemLimitError: it is one, and the others would end the same way.
    """
    if isinstance(error, SystemLimitError):
        raise error
    if isinstance(error, Medk2nError):
        return error
    if out_of_memory(error):
        return SystemLimitError("out of memory; leave it out, or take a machine with more memory")
    said = " ".join(str(error).split())[:200]
    if isinstance(error, OSError):
        return SystemLimitError(said)
    return InternalError(f"internal error ({type(error).__name__}: {said})")


def out_of_memory(error: BaseException) -> bool:
    """Python's, and torch's without importing it: on the CPU torch raises a plain RuntimeError."""
    names = {cls.__name__ for cls in type(error).__mro__}
    if names & {"MemoryError", "OutOfMemoryError"}:
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
