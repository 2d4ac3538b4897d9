"""The word SYNTHETIC in the pixels: a picture cut out of its file still says what it is."""

import numpy as np

from medk2n.dicom.scale import rescale
from medk2n.geometry.orient import from_canonical, to_canonical
from medk2n.io.volume import Volume

WORD = "SYNTHETIC"
_WIDTH = 0.45  # of a slice that the word takes
_SMALLEST = 9  # pixels a letter at least, if the slice has room


def burn_in(array: np.ndarray, value: float) -> np.ndarray:
    """A copy of (slices, rows, columns) with the word at the top left of every slice, drawn with `value`.

    The letters stand on a dark band of the array's lowest value, so that they can be read on bright ground.
    """
    _, rows, columns = array.shape
    letters = _letters(rows, columns)
    height, width = letters.shape
    burnt = array.copy()
    burnt[:, :height, :width] = np.where(letters, np.float32(value), array.min())
    return burnt


def burn_in_volume(volume: Volume) -> Volume:
    """The same for a volume on any grid: the word can be read on axial slices shown as radiologists do."""
    canonical, _ = to_canonical(volume.array, volume.grid)
    slices = canonical.transpose(2, 1, 0)[:, ::-1, ::-1]  # rows run to posterior, columns to the left
    burnt = burn_in(slices, rescale(volume.array, hounsfield=volume.modality == "ct").window_high)
    array = from_canonical(burnt[:, ::-1, ::-1].transpose(2, 1, 0), volume.grid)
    return Volume(np.ascontiguousarray(array), volume.grid, volume.modality, volume.provenance)


def _letters(rows: int, columns: int) -> np.ndarray:
    """(height, width) bool, true where a letter is; never larger than the slice."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=max(_SMALLEST, _WIDTH * columns / (0.65 * len(WORD))))
    left, top, right, bottom = font.getbbox(WORD)
    picture = Image.new("L", (int(right - left) + 4, int(bottom - top) + 4))
    ImageDraw.Draw(picture).text((2 - left, 2 - top), WORD, font=font, fill=255)
    most = (min(picture.width, columns), min(picture.height, max(1, rows // 4)))
    if most != picture.size:
        picture = picture.resize(most)
    return np.asarray(picture) > 100
