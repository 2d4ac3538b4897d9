"""What a study from outside may cost before it is refused."""

import sys
from dataclasses import dataclass
from pathlib import Path

MIB = 1024**2


@dataclass(frozen=True)
class Limits:
    """Bounds for one study; a large real one is far below all.

    Attributes:
        files: files in a folder, or entries of a .zip.
        unpacked_bytes: of a .zip in all, and of one deflated file.
        ratio: unpacked to packed, after the first `ratio_free_bytes`.
        voxels: of one series.
        depth: of sequences in sequences.
        memory_bytes: address space of the reader above what it starts with.
        seconds: for reading, and `bytes_per_second` more for what has to be read.
    """

    files: int = 20_000
    unpacked_bytes: int = 4096 * MIB
    ratio: int = 200
    ratio_free_bytes: int = 64 * MIB
    voxels: int = 1024**3
    depth: int = 64
    memory_bytes: int = 448 * MIB
    seconds: float = 60.0
    bytes_per_second: float = 2.0 * MIB

    def wall_clock_s(self, size_bytes: int) -> float:
        """How long a study of this size may take to be read."""
        return self.seconds + size_bytes / self.bytes_per_second


def confine(limits: Limits, wall_clock_s: float) -> None:
    """Bound this process's memory, processor time, files and recursion; what the system cannot bound is left.

    The parent's wall clock holds everywhere, these where POSIX is.
    """
    sys.setrecursionlimit(1000)
    try:
        import resource
    except ImportError:  # Windows
        return
    _lower(resource.RLIMIT_CPU, int(wall_clock_s) + 1)
    _lower(resource.RLIMIT_FSIZE, limits.unpacked_bytes + MIB)
    _lower(resource.RLIMIT_CORE, 0)
    if used := _address_space_bytes():
        _lower(resource.RLIMIT_AS, used + limits.memory_bytes)


def _lower(kind: int, bound: int) -> None:
    import resource

    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (bound if hard == resource.RLIM_INFINITY else min(bound, hard), hard))


def _address_space_bytes() -> int:
    """What this process has mapped now; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError):
        return 0
    import resource

    return pages * resource.getpagesize()
