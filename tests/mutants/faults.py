"""Reads `faults.txt`, and puts a fault into a text."""

from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
SOURCE = TESTS.parent / "src" / "medk2n"
LEAST = 0.95
"""Share of the faults that the suite has to notice."""


@dataclass(frozen=True)
class Fault:
    """One line of the list.

    Attributes:
        file: below src/medk2n.
        words: what is wrong then.
        old, new: the text that is there once, and what takes its place.
        tests: below tests, as "file::test"; all their parameters.
        excuse: why no test can notice it; empty where the tests have to.
    """

    file: str
    words: str
    old: str
    new: str
    tests: tuple[str, ...]
    excuse: str

    def __str__(self) -> str:
        return f"{self.file}: {self.words}"

    def text(self) -> str:
        """The file with its fault.

        Raises:
            ValueError: what it replaces is not there once.
        """
        text = (SOURCE / self.file).read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise ValueError(f"{self.file}: {self.old!r} is there {text.count(self.old)} times, expected once")
        return text.replace(self.old, self.new)


def read() -> list[Fault]:
    """All of them, in order."""
    found, file = [], ""
    _, *files = (Path(__file__).with_name("faults.txt").read_text(encoding="utf-8")).split("\n== ")
    for part in files:
        file, *faults = part.strip("\n").split("\n\n")
        found += [_fault(file, text.split("\n")) for text in faults]
    return found


def _fault(file: str, lines: list[str]) -> Fault:
    words, *rest = lines
    told = {sign: [line[2:] for line in rest if line.startswith(f"{sign} ")] for sign in "-+?!"}
    if sum(map(len, told.values())) != len(rest):
        raise ValueError(f"faults.txt, {words!r}: expected lines that begin with -, +, ? or ! and a blank")
    return Fault(file, words, "\n".join(told["-"]), "\n".join(told["+"]), tuple(told["?"]), " ".join(told["!"]))
