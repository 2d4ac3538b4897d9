"""What a benchmark is."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Group:
    """Subjects that are reported together, apart from others: those whose id starts with one of `prefixes`."""

    label: str
    prefixes: tuple[str, ...] = ("",)

    def among(self, subjects: Iterable[str]) -> list[str]:
        """Those of the subjects that belong to it, in their order."""
        return [subject for subject in subjects if subject.startswith(self.prefixes)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One data set and what is asked of it: every non-empty set of `modalities`, for all that is missing from it.

    Attributes:
        name: as its file's name.
        label: for people.
        modalities: in the order of the table.
        subjects: ids of the test part, where the data's folder holds more; none means all that are there.
        groups: each has its own tables; a subject may be in several.
        notes: what to know before reading the tables, one sentence each.
    """

    name: str
    label: str
    modalities: tuple[str, ...]
    subjects: tuple[str, ...] = ()
    groups: tuple[Group, ...] = (Group("all subjects"),)
    notes: tuple[str, ...] = ()
