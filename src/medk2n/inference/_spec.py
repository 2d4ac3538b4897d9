"""What evaluation asks of any method, without torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np


@dataclass(frozen=True, slots=True)
class Answer:
    """One target.

    Attributes:
        image: (s, h, w) in [0, 1].
        variance: the squared error predicted of it, None where a method has none.
        weighed: input -> its weight in dB and how far it was let in (0 to 1); empty where a method does not weigh.
    """

    image: np.ndarray
    variance: np.ndarray | None = None
    weighed: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def thinned(self, at: Sequence[int]) -> "Answer":
        """Some slices of it."""
        return replace(self, image=self.image[at], variance=None if self.variance is None else self.variance[at])


class Predictor(Protocol):
    """What evaluation asks of any method."""

    name: str
    modalities: tuple[str, ...]

    def predict(self, images: Mapping[str, np.ndarray], targets: Sequence[str]) -> dict[str, Answer]:
        """Scaled inputs (s, h, w), 0 outside the foreground -> scaled targets."""
        ...
