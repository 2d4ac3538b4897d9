"""What evaluation asks of any method, without torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, slots=True)
class Answer:
    """One target: the image (s, h, w) in [0, 1] and the squared error predicted of it, None where a method has none."""

    image: np.ndarray
    variance: np.ndarray | None = None

    def thinned(self, at: Sequence[int]) -> "Answer":
        """Some slices of it."""
        return Answer(self.image[at], None if self.variance is None else self.variance[at])


class Predictor(Protocol):
    """What evaluation asks of any method."""

    name: str
    modalities: tuple[str, ...]

    def predict(self, images: Mapping[str, np.ndarray], targets: Sequence[str]) -> dict[str, Answer]:
        """Scaled inputs (s, h, w), 0 outside the foreground -> scaled targets."""
        ...
