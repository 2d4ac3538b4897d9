"""metrics.csv: what a run's models cost and reached while they learned."""

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medk2n.errors import CheckpointError
from medk2n.io.atomic import write_text
from medk2n.io.door import MOST_TABLE, door, read_text

if TYPE_CHECKING:
    from medk2n.training.contender import Contender

METRICS = "metrics.csv"
VALIDATION = "validation_psnr_db"
COLUMNS = ("model", "step", "seconds", "progress", "name", "value")
_EVERY = 20


@dataclass(frozen=True, slots=True)
class Point:
    """One number of one model: `seconds` it had learned by then, of which `progress` is the share of its budget."""

    model: str
    step: int
    seconds: float
    progress: float
    name: str
    value: float


def read_log(path: Path) -> list[Point]:
    """Everything in a metrics.csv, in the order in which it was written; a last row that was cut off is left out.

    Raises:
        CheckpointError: no such file, or not of a run.
    """
    with door(CheckpointError, f"{path}: no metrics of a run", "expected the folder that medk2n train --out wrote"):
        header, *rows = csv.reader(StringIO(read_text(path, most=MOST_TABLE), newline=""))
        if tuple(header) != COLUMNS:
            raise ValueError(f"columns {', '.join(header)}")
        whole = [row for row in rows if len(row) == len(COLUMNS)]
        return [
            Point(model, int(step), float(seconds), float(progress), name, float(value))
            for model, step, seconds, progress, name, value in whole
        ]


class Log:
    """One row per model, interval and number, written at once so that a cut run keeps its history."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sums: dict[str, dict[str, list[float]]] = {}

    def start(self) -> None:
        """An empty log."""
        write_text(self.path, ",".join(COLUMNS) + "\n")

    def state(self) -> dict[str, object]:
        """What `restore` needs."""
        return {"bytes": self.path.stat().st_size, "sums": self._sums}

    def restore(self, kept: dict[str, Any]) -> None:
        """Rows written after the state are dropped: they will be written again."""
        self._sums = kept["sums"]
        if self.path.is_file():
            os.truncate(self.path, min(kept["bytes"], self.path.stat().st_size))
        else:
            self.start()

    def count(self, contender: "Contender", numbers: Mapping[str, float]) -> dict[str, float]:
        """Take in a step's numbers; every so many steps their means are given back, to be written."""
        sums = self._sums.setdefault(contender.name, {})
        for name, value in numbers.items():
            total, n = sums.get(name, (0.0, 0))  # not every step has every part
            sums[name] = [total + value, n + 1]
        if contender.steps % _EVERY:
            return {}
        return {name: total / n for name, (total, n) in self._sums.pop(contender.name).items()}

    def write(self, contender: "Contender", numbers: Mapping[str, float]) -> None:
        """Write numbers as of now."""
        with self.path.open("a", newline="", encoding="utf-8") as file:
            at = [contender.name, contender.steps, round(contender.seconds, 1), round(contender.progress, 4)]
            csv.writer(file).writerows([*at, name, round(value, 7)] for name, value in numbers.items())
