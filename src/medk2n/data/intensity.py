"""Intensity: a linear scale to about [0, 1] per volume, kept so that it can be undone."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from medk2n.errors import VolumeReadError
from medk2n.vocabulary import modality as vocabulary_row

PERCENTILES = (0.5, 99.5)
"""Of the values inside the foreground: what becomes 0 and 1."""

_MOST_SAMPLES = 1_000_000
_LEAST_SPREAD_HU = 30.0  # grey and white matter alone are that far apart, with noise
_BODY_HU = (-600.0, 200.0)  # the median inside a patient: a chest with its lungs, a head with its bone
_AIR_BELOW_HU = -500.0


@dataclass(frozen=True)
class Scaling:
    """`low` becomes 0 and `high` becomes 1.

    Attributes:
        kind: "robust" (percentiles of this volume) or "fixed" (the vocabulary's window, in its unit).
    """

    low: float
    high: float
    kind: Literal["robust", "fixed"] = "robust"

    def apply(self, array: np.ndarray) -> np.ndarray:
        """Scaled float32 copy; not clipped, so that it can be undone."""
        return ((array.astype(np.float32, copy=False) - self.low) * (1.0 / (self.high - self.low))).astype(np.float32)

    def invert(self, array: np.ndarray) -> np.ndarray:
        """Back to stored units, float32."""
        return (array.astype(np.float32, copy=False) * (self.high - self.low) + self.low).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """Plain data for a sidecar; `Scaling(**data)` reads it back."""
        return asdict(self)


def unit_doubt(scaling: Scaling, modality: str) -> str | None:
    """For people: that a volume's values cannot be in the unit of its modality; None if nothing speaks against it."""
    row = vocabulary_row(modality)
    if row.scaling == scaling.kind or row.scaling == "robust":
        return None
    return (
        f"its values cannot be {row.unit} (mostly {scaling.low:.4g} to {scaling.high:.4g} inside the patient); "
        "scaled by their own range"
    )


def fit_scaling(array: np.ndarray, mask: np.ndarray, modality: str) -> Scaling:
    """The scaling of one volume by its modality's policy.

    "robust": the 0.5 and 99.5 percentiles inside `mask`. "fixed": the vocabulary's window; but values
    that cannot be in that unit (an 8-bit picture of a CT, a CT without its intercept or scaled to [-1, 1])
    are scaled robustly, and `kind` says so.

    Raises:
        VolumeReadError: nothing inside the mask, or no contrast there.
    """
    row = vocabulary_row(modality)
    values = array[mask]
    if values.size == 0:
        raise VolumeReadError(f"{row.name} volume: no foreground found; expected a patient in it; check the image")
    if row.scaling == "fixed" and not (_is_grey_levels(array, row.window) or _is_no_hounsfield(array, mask)):
        return Scaling(*row.window, kind="fixed")
    low, high = np.percentile(values[:: values.size // _MOST_SAMPLES + 1], PERCENTILES)
    if not high - low > 1e-6 * max(abs(low), abs(high), 1e-30):
        raise VolumeReadError(
            f"{row.name} volume: no contrast inside the foreground (0.5 and 99.5 percentiles are both {low:g}); "
            "check the image or leave it out"
        )
    return Scaling(float(low), float(high), kind="robust")


def _is_no_hounsfield(array: np.ndarray, mask: np.ndarray) -> bool:
    """Whether Hounsfield units are ruled out: next to no spread, a body unlike water (0), or air unlike air (-1000).

    What surrounds a body may be one value that a program put there; noise around it is air.
    """
    low, high = np.percentile(array.ravel()[:: array.size // _MOST_SAMPLES + 1], PERCENTILES)
    if high - low < _LEAST_SPREAD_HU or not _BODY_HU[0] <= float(np.median(array[mask])) <= _BODY_HU[1]:
        return True
    around = array[~mask][:: array.size // _MOST_SAMPLES + 1]
    if not around.size:
        return False
    tenth, middle, ninetieth = np.percentile(around, [10, 50, 90])
    return bool(ninetieth > tenth and middle > _AIR_BELOW_HU)


def _is_grey_levels(array: np.ndarray, window: tuple[float, float]) -> bool:
    """Never negative and within 8 bits, where the unit's window has negative values (air in HU)."""
    return window[0] < 0 and float(array.min()) >= 0 and float(array.max()) <= 255
