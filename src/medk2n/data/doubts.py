"""What speaks against the scans of a study: the one place that decides what is told of, and what is refused.

Nothing here looks at voxels; it judges what `data/scan.py` and `data/agreement.py` measured. A certainty is a logistic
curve through two values of what was measured: 0.02 at the worst that good scans of validation patients reach (with
room), 0.98 where bad ones begin (recipes/door.py; docs/results/door).
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medk2n.identity.texts import NOTHING

if TYPE_CHECKING:
    from medk2n.data.agreement import Agreement
    from medk2n.data.scan import Look

TOLD, REFUSED = 0.5, 0.98
"""Certainty from which a doubt is told, and from which a scan is refused, unless it is forced."""
NAMED = 0.9
"""Probability from which it is told that a scan looks like another modality."""
_OR_ELSE = "it may be one, lie far off, or have its slices or axes in another order"
_FAINT = 1e-3  # agreement of detail below which nothing agrees
_CLEARLY = 1.03  # a displaced scan's mutual information rises by more when it is moved back


@dataclass(frozen=True)
class Doubt:
    """One thing that speaks against one scan.

    Attributes:
        modality: what the scan is said to be.
        kind: "scan" (it is none), "identity", "displaced", "mirrored" or "patient" (somebody else's).
        what: a plain line.
        certainty: from `TOLD` to 1.
        refuses: whether the scan is not to be used unless somebody insists.
    """

    modality: str
    kind: str
    what: str
    certainty: float
    refuses: bool = False

    @property
    def line(self) -> str:
        """For people."""
        return f"{self.modality} {self.what} (certainty {self.certainty:.2f})"

    def to_json(self) -> dict[str, Any]:
        """Plain data for a sidecar."""
        return asdict(self) | {"certainty": round(self.certainty, 3)}


def _certainty(value: float, *, good: float, bad: float) -> float:
    """0.02 at `good`, 0.98 at `bad`, a logistic curve between and beyond."""
    edge = float(np.log(REFUSED / (1 - REFUSED)))
    at = edge * (2 * (value - good) / (bad - good) - 1)
    return float(1 / (1 + np.exp(-np.clip(at, -10, 10))))


def of_image(modality: str, seen: "Look | None") -> list[Doubt]:
    """Whether an image is any scan at all."""
    if seen is None:
        return []
    judged = [
        (_certainty(seen.steady, good=0.4, bad=0.1),
         f"looks like noise: voxels of 3 mm correlate by {seen.steady:.2f} with the next ones, expected 0.5 or more"),
        (_certainty(np.log2(seen.levels), good=5.0, bad=3.0),
         f"looks like a mask or label map: it has about {seen.levels:.0f} grey levels, expected 50 or more"),
        (_certainty(seen.brightest, good=0.05, bad=0.3),
         f"looks cut off: {seen.brightest:.0%} of the patient are at its highest value, expected 1% or less"),
        (_certainty(seen.darker, good=0.8, bad=0.95),
         f"looks like a negative: {seen.darker:.0%} of what it shows is darker than its edges, expected dark air"),
    ]  # fmt: skip
    certainty, what = max(judged, key=lambda row: row[0])  # of equals the first
    return [Doubt(modality, "scan", what, certainty, certainty >= REFUSED)] if certainty >= TOLD else []


def of_pair(modality: str, seen: "Agreement | None", reference: str, *, unit: str = "mm") -> list[Doubt]:
    """How a scan lies to the study's reference, and whether both show one patient; told, never refused.

    Args:
        unit: "voxels" where nobody stated millimetres.
    """
    if seen is None:
        return []
    sided = float(np.log(max(seen.alike, _FAINT) / max(seen.mirrored, _FAINT)))
    stranger = _certainty(abs(sided) + 2 * max(seen.alike, seen.mirrored), good=0.8, bad=0.5)
    mirrored = _certainty(sided, good=0.0, bad=-0.25)
    moved = _certainty(seen.move_mm, good=1.0, bad=3.0) if seen.gain > _CLEARLY else 0.0
    judged = [
        ("mirrored", f"looks mirrored left to right against {reference}: turned round, they agree better", mirrored),
        (
            "patient",
            f"agrees with {reference} no better than another patient's, lies far off, or its slices are in disorder",
            stranger,
        ),
        ("displaced", f"lies {seen.move_mm:.1f} {unit} off {reference} on average over the head", moved),
    ]
    kind, what, certainty = max(judged, key=lambda row: row[2])  # one explains the others
    return [Doubt(modality, kind, what, certainty)] if certainty >= TOLD else []


def of_identity(name: str, modality: str, probabilities: Mapping[str, float], acquired: Collection[str]) -> list[Doubt]:
    """Whether an image is what it is called, by the probabilities of what it is recognised as.

    Args:
        name: what the image is called where it is told.
        modality: what it is said to be.
        acquired: modalities of which V learned real scans; between others nothing is refused.

    A modality that is not among the probabilities was never learned: nothing is said of it. Told is what is likely
    another modality, refused what surely is; what resembles none that was learned is left to `of_image`, for scans of
    bodies that the networks never met do that too.
    """
    if modality not in probabilities:
        return []
    likeliest = max(probabilities, key=lambda name: probabilities[name])
    certainty = probabilities[likeliest]
    if likeliest in (modality, NOTHING) or certainty < NAMED:
        return []
    refuses = certainty >= REFUSED and {modality, likeliest} <= set(acquired)
    return [Doubt(name, "identity", f"looks like {likeliest}", certainty, refuses)]
