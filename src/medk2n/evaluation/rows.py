"""Which questions are asked of a subject: every set of inputs, and what is missing beside it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table: these sources are given, those targets are asked for."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]

    @property
    def label(self) -> str:
        """The sources as text, e.g. "t1n+t2w"."""
        return "+".join(self.sources)


def rows(modalities: Sequence[str], acquired: Collection[str]) -> list[Row]:
    """All non-empty input sets with at least one target left, fewest inputs first.

    Args:
        modalities: those under test, in the order of the table.
        acquired: what the subject has; the rest can be neither source nor reference.

    Returns:
        2^M - 2 rows for M acquired modalities under test (14 for 4); none for M < 2.
    """
    usable = [m for m in modalities if m in acquired]
    return [
        Row(sources, tuple(m for m in usable if m not in sources))
        for count in range(1, len(usable))
        for sources in combinations(usable, count)
    ]
