"""From float voxels to 16-bit ones and a window that shows them well."""

from dataclasses import dataclass

import numpy as np

_INT16 = 32767
_SAMPLE = 1_000_000  # voxels that the window is found on
_HEAD_WINDOW_HU = (40.0, 80.0)  # centre and width that a radiologist opens a head CT with


@dataclass(frozen=True)
class Scale:
    """value = stored x slope + intercept; the texts are what the file says, the numbers what they mean.

    Attributes:
        slope_text, intercept_text, window_center_text, window_width_text: decimal strings of at most 16 characters.
    """

    slope_text: str
    intercept_text: str
    window_center_text: str
    window_width_text: str

    @property
    def slope(self) -> float:
        """The step: what one stored unit means."""
        return float(self.slope_text)

    @property
    def window_high(self) -> float:
        """The value that is shown white."""
        return float(self.window_center_text) + float(self.window_width_text) / 2

    def store(self, array: np.ndarray) -> np.ndarray:
        """int16 of the same shape; within half a step of `array`."""
        codes = np.rint((array.astype(np.float64) - float(self.intercept_text)) / self.slope)
        return np.clip(codes, -_INT16 - 1, _INT16).astype(np.int16)


def rescale(array: np.ndarray, *, hounsfield: bool) -> Scale:
    """CT keeps whole HU; everything else uses the range 0 to 32767 for its lowest to its highest value.

    The window spans what holds all but a hundredth of the voxels above the lowest value at each end.
    """
    from pydicom.valuerep import format_number_as_ds

    if hounsfield:
        return Scale("1", "0", *(f"{number:g}" for number in _HEAD_WINDOW_HU))
    low, high = float(array.min()), float(array.max())
    step = (high - low) / (_INT16 - 1) or 1.0
    sample = array.ravel()[:: array.size // _SAMPLE + 1]
    inside = sample[sample > low]
    first, last = np.percentile(inside, [1.0, 99.0]) if inside.size else (low, low + 1.0)
    width = max(float(last - first), step)
    texts = (step, low, (first + last) / 2, width)
    return Scale(*(format_number_as_ds(float(f"{number:.8g}")) for number in texts))
