"""Does a metric see an erased lesion? The truth with its lesion filled by what surrounds it, scored as a prediction.

For every value of every protocol the score of three predictions is taken, all of them the truth with the same noise:

- mild: 30 dB inside the foreground, which nobody would notice;
- doubled: the same noise with twice the power, 27 dB;
- erased: mild, and the lesion is gone.

Sensitivity = what erasing costs / what doubling costs. 1: an erased lesion is as bad as that little more noise. 0: the
metric is blind to it. The noise is there because PSNR of an exact image is infinite. The three scores are kept too: a
mean over a volume in which most voxels cannot differ may be sensitive by this measure and yet move in its third digit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import binary_dilation, gaussian_filter

from medk2n.errors import UsageError
from medk2n.evaluation.evaluate import regions_of
from medk2n.evaluation.protocols._protocol import Pair, Protocol
from medk2n.metrics._similarity import content_box
from medk2n.registry import resolve

if TYPE_CHECKING:
    from medk2n.data.working import WorkingStudy

MILD_DB = 30.0
_REACH = (1.5, 3.0, 6.0, 12.0, 24.0)  # deviations of the Gaussians that fill, voxels
_ENOUGH = 0.1  # of a Gaussian's weight on healthy tissue
_RIM = 2  # voxels around what is filled that are not taken for healthy
_NEIGHBOURS = np.ones((3, 3, 3), bool)


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """One metric in one region under one protocol, on one image: its scores of the three predictions."""

    subject: str
    target: str
    protocol: str
    region: str
    metric: str
    mild: float
    doubled: float
    erased: float

    @property
    def value(self) -> float:
        """The cost of erasing in units of the cost of doubling; NaN where more noise costs nothing."""
        mild, doubled, erased = map(resolve("metrics", self.metric).badness, (self.mild, self.doubled, self.erased))
        return (erased - mild) / (doubled - mild) if doubled > mild else float("nan")


def erase(image: np.ndarray, lesion: np.ndarray, tissue: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A copy of (s, h, w) `image` without its lesion: (s, h, w) bool, grown by one voxel, becomes healthy tissue.

    Each voxel gets the Gaussian mean of the healthy tissue around it (`tissue` without the lesion and its rim), by the
    narrowest Gaussian that finds enough of it, and white noise of the deviation from that mean there.

    Raises:
        UsageError: no healthy tissue around the lesion.
    """
    hole = binary_dilation(lesion, _NEIGHBOURS) & tissue
    box = content_box(hole, hole, int(2 * _REACH[-1]))
    if box is None:
        return image.copy()
    todo, known = hole[box], (tissue & ~binary_dilation(lesion, _NEIGHBOURS, iterations=1 + _RIM))[box]
    if not known.any():
        raise UsageError("erase: no healthy tissue around the lesion; expected a tissue mask larger than the lesion")
    seen = np.where(known, image[box], 0).astype(np.float64)
    means, deviations = np.zeros(todo.shape), np.zeros(todo.shape)
    for reach in _REACH:
        weight = gaussian_filter(known.astype(np.float64), reach)
        found = todo & (weight > (_ENOUGH if reach < _REACH[-1] else 0))
        safe = np.maximum(weight, 1e-12)
        mean = gaussian_filter(seen, reach) / safe
        variance = gaussian_filter(seen * seen, reach) / safe - mean * mean
        means[found], deviations[found] = mean[found], np.sqrt(np.maximum(variance[found], 0))
        todo = todo & ~found
    filled = np.where(hole[box], means + deviations * rng.standard_normal(means.shape), image[box])
    erased = image.copy()
    erased[box] = np.clip(filled, 0, 1)
    return erased


def sensitivities(
    study: "WorkingStudy", target: str, protocols: Sequence[Protocol], rng: np.random.Generator
) -> Iterator[Sensitivity]:
    """Of every value that the protocols have, for one image of a study with a lesion.

    Raises:
        UsageError: the study has no lesion.
    """
    regions = regions_of(study)
    lesion, foreground = regions.get("lesion"), study.foreground
    if lesion is None:
        raise UsageError(f"subject {study.id} has no lesion to erase; choose one that has")
    truth = study.images[target]
    noise = _noise(truth.shape, foreground, rng)
    tissue = foreground if study.brain is None else study.brain
    images = (truth + noise, truth + np.sqrt(2) * noise, erase(truth, lesion, tissue, rng) + noise)
    pairs = [Pair(target, _as_predicted(x, foreground), truth, study.scalings[target], regions) for x in images]
    for protocol in protocols:
        for found in zip(*(protocol.measure(pair) for pair in pairs), strict=True):
            place = (protocol.name, found[0].region, found[0].metric)
            yield Sensitivity(study.id, target, *place, *(value.value for value in found))


def _noise(shape: tuple[int, ...], foreground: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """White noise whose mean square inside the foreground is exactly what MILD_DB says."""
    noise = rng.standard_normal(shape)
    return noise * np.sqrt(10 ** (-MILD_DB / 10) / np.mean(np.square(noise[foreground])))


def _as_predicted(image: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """As every prediction is when it is measured: in [0, 1], 0 outside the patient."""
    return np.where(foreground, np.clip(image, 0, 1), 0).astype(np.float32)
