"""A subject: what was acquired of one patient in one session, read when asked for."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from medk2n.errors import Medk2nError
from medk2n.io.volume import Header, LabelMap, Volume

Reader = Callable[[], Volume]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file beside those of a subject that is not used, and why."""

    path: str
    why: str

    def __str__(self) -> str:
        return f"{Path(self.path).name} ({self.why})"


@dataclass(frozen=True)
class Subject:
    """One subject (or session) of a data set.

    Attributes:
        id: unique in its data set.
        readers: modality -> function that reads it; all volumes of a subject cover one scanner space.
        inputs_only: modality -> other acquisitions of it (other protocols) that serve as training
            inputs but never as a target or a reference.
        masks: "brain", "lesion", ... -> function that reads a mask (non-zero is inside).
        headers: modality -> function that tells where its voxels are without reading them, if the layout can.
        provenance: modality -> path as text, for reports.
        site: where it was acquired, as far as the data set states it.
        files: every file that is read for it.
        prepared: folder with its slices as training draws them, if `medk2n prepare` made the data set.
        patient: whose it is, where the layout tells more than the id does; "" where it does not.
        left_out: what lies beside its files and is not used.
        doubles: modality -> files of which one is meant, but not which.
        fault: why it cannot be used, where that shows before anything is read; `discover` hands such a subject out by
            its id alone.
    """

    id: str
    readers: Mapping[str, Reader]
    inputs_only: Mapping[str, tuple[Reader, ...]] = field(default_factory=dict)
    masks: Mapping[str, Callable[[], LabelMap]] = field(default_factory=dict)
    headers: Mapping[str, Callable[[], Header]] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)
    site: str = ""
    files: tuple[Path, ...] = ()
    prepared: Path | None = None
    patient: str = ""
    left_out: tuple[LeftOut, ...] = ()
    doubles: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    fault: Medk2nError | None = None

    @property
    def modalities(self) -> tuple[str, ...]:
        """Short names of what was acquired, in name order."""
        return tuple(sorted(self.readers))

    def header(self, modality: str) -> Header:
        """Where the voxels of one image are."""
        return self.headers[modality]() if modality in self.headers else self.readers[modality]().header


def or_faulty(subject_id: str, make: Callable[[], Subject]) -> Subject:
    """What `make` makes, or the faulty subject that it refuses to make: one of many must not end the others."""
    try:
        return make()
    except Medk2nError as error:
        return Subject(subject_id, {}, fault=error)


@contextmanager
def all_needed(subject_id: str) -> Iterator[None]:
    """Where one subject that cannot be used ends the work, say whose complaint it is and how to go on without."""
    try:
        yield
    except Medk2nError as error:
        error.add_note(f"of {subject_id}: mend it, or leave it out (exclude)")
        raise
