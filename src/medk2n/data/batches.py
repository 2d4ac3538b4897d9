"""Training batches: 2.5-D crops of subjects with different contrasts missing, side by side.

Everything is drawn from a numpy Generator, so a batch depends on (seed, step) alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from medk2n.data.corrupt import corrupt
from medk2n.data.grey import towards
from medk2n.data.stored import ENOUGH, Crop, Stored
from medk2n.data.working import WorkingStudy


@dataclass(frozen=True, slots=True)
class Batch:
    """b crops of m modalities, s neighbouring slices.

    Attributes:
        images: (b, m, s, h, w) what inputs are read from, scaled; absent channels hold NaN, so that a leak shows.
        acquired: (b, m) bool.
        targets: (b, m, h, w) what outputs are compared with; NaN where absent.
        foreground: (b, h, w) bool.
        severity: (b, m) in [0, 1], how far each input was damaged; 0 where it is whole.
        mixed: (b, m) int64, which other modality of the crop was blended into each input; -1 for none.
    """

    images: Tensor
    acquired: Tensor
    targets: Tensor
    foreground: Tensor
    severity: Tensor
    mixed: Tensor

    def frames(self, slices: int) -> Tensor:
        """The images with so many slices, those in the middle: what a model takes that knows no more."""
        spare = (self.images.shape[2] - slices) // 2
        return self.images[:, :, spare : spare + slices]

    def askable(self, sample: Tensor, sources: Tensor) -> Tensor:
        """What sets of inputs (p, m) of samples (p,) may be asked for: (p, m) bool.

        What was acquired, but for an image that was blended into one of the inputs: it would be read, not made. Some
        image is left to any set that is not all of them.
        """
        shown = self.mixed[sample][:, :, None] == torch.arange(sources.shape[1], device=sources.device)
        return self.acquired[sample] & ~(shown & sources[:, :, None]).any(dim=1)

    def row(self, k: int) -> "Batch":
        """One of the crops alone."""
        return Batch(*(getattr(self, field.name)[k : k + 1] for field in fields(self)))

    def to(self, device: torch.device) -> "Batch":
        """The same on another device; onto a CUDA device from pinned memory, so that nobody waits for the copy."""
        tensors = (getattr(self, field.name) for field in fields(self))
        if device.type == "cuda" and self.images.device.type == "cpu":
            return Batch(*(x.pin_memory().to(device, non_blocking=True) for x in tensors))
        return Batch(*(x.to(device) for x in tensors))


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Strengths of what is drawn per crop; gamma, noise and damage are in inputs only.

    Attributes:
        rotation: largest angle in radians.
        zoom: largest relative change of size.
        gamma: largest absolute log of the exponent.
        noise: largest standard deviation.
        strip: chance of cutting the skull away where a brain mask is known; grey scales are stretched again, since
            those of a whole head would not be met in a stripped scan.
        restyle: chance of moving a subject's grey scales towards those of another, heads to heads and brains to
            brains; targets are moved alike, for a scanner draws all contrasts of a visit in its own way.
        corrupt: chance of damaging an input (`data/corrupt.py`).
    """

    rotation: float = 0.15
    zoom: float = 0.15
    gamma: float = 0.25
    noise: float = 0.03
    strip: float = 0.3
    restyle: float = 0.0
    corrupt: float = 0.0


class Store:
    """Studies of one data set, as bytes, in memory or in files that are mapped (`data/stored.py`)."""

    def __init__(self, studies: Iterable[WorkingStudy | Stored], modalities: Sequence[str]) -> None:
        self.modalities = tuple(modalities)
        self.studies = [s if isinstance(s, Stored) else Stored.of(s, self.modalities) for s in studies]
        self._slices = [
            (k, int(z))
            for k, study in enumerate(self.studies)
            for z in np.flatnonzero(study.foreground_share > ENOUGH)
            if study.pairs
        ]
        self._upto = np.cumsum([self.studies[k].pairs for k, _ in self._slices])

    def __len__(self) -> int:
        """Number of slices with enough foreground, and enough modalities, to learn from."""
        return len(self._slices)

    def crop(self, rng: np.random.Generator, slices: int, augmentation: Augmentation, lenders: "Store") -> Crop:
        """One random slice with its neighbours, before it is moved and cut to size.

        A study is drawn as often as it can answer, by its pairs of a source and a target: drawn alike, those that lack
        much teach little and take the turns of the others (docs/lab-log.md).

        Args:
            lenders: whose grey scales may be lent.
        """
        k, z = self._slices[np.searchsorted(self._upto, rng.integers(self._upto[-1]), side="right")]
        study = self.studies[k]
        strip = rng.random() < augmentation.strip and study.brain_share is not None and study.brain_share[z] > ENOUGH
        tables, alone = None, int(strip or study.stripped)
        if rng.random() < augmentation.restyle:
            styles = [style for s in lenders.studies if (style := s.styles[alone]) is not None]
            if styles and (own := study.styles[alone]) is not None:
                tables = towards(own, styles[rng.integers(len(styles))], rng.uniform())
        return study.crop(z, slices, rng, strip=strip, tables=tables)


def draw_batch(
    stores: Sequence[Store],
    shares: Sequence[float],
    rng: np.random.Generator,
    *,
    batch_size: int,
    crop: int,
    slices: int,
    augmentation: Augmentation,
) -> Batch:
    """Draw `batch_size` crops; each comes from store k with probability `shares[k]`, as does a lent grey scale."""

    def any_store() -> Store:
        return stores[rng.choice(len(stores), p=np.asarray(shares) / sum(shares))]

    crops = [any_store().crop(rng, slices, augmentation, lenders=any_store()) for _ in range(batch_size)]
    acquired = torch.tensor(np.stack([c.acquired for c in crops]))
    images = torch.full((*acquired.shape, slices, crop, crop), torch.nan)
    targets = torch.full((*acquired.shape, crop, crop), torch.nan)
    inside = torch.empty((batch_size, crop, crop), dtype=torch.bool)
    for k, drawn in enumerate(crops):
        images[k, acquired[k]], targets[k, acquired[k]], inside[k] = _moved(drawn, rng, crop, augmentation)
    images, severity, mixed = corrupt(images, acquired, rng, augmentation.corrupt)
    _disturb(images, acquired, rng, augmentation)
    return Batch(images.mul_(inside[:, None, None]), acquired, targets, inside, severity, mixed)


def whole_slices(study: Stored, at: Sequence[int], slices: int) -> Batch:
    """Chosen slices of a study as they are, without augmentation."""
    crops = [study.crop(z, slices) for z in at]
    images = torch.stack([torch.from_numpy(c.images).float() / 255 for c in crops])
    targets = torch.stack([torch.from_numpy(c.targets).float() / 255 for c in crops])
    acquired = torch.tensor(np.stack([c.acquired for c in crops]))
    images[~acquired] = torch.nan
    targets[~acquired] = torch.nan
    inside = torch.tensor(np.stack([c.inside for c in crops]))
    whole = torch.zeros(acquired.shape), torch.full(acquired.shape, -1)
    return Batch(images, acquired, targets, inside, *whole)


def _moved(
    crop: Crop, rng: np.random.Generator, size: int, augmentation: Augmentation
) -> tuple[Tensor, Tensor, Tensor]:
    """Flip, turn, zoom and shift one crop to (size, size): the images and targets that it has, and the foreground."""
    h, w = crop.inside.shape
    rows, columns = (np.flatnonzero(crop.inside.any(axis=axis)) for axis in (1, 0))
    angle = rng.uniform(-1, 1) * augmentation.rotation
    zoom = np.exp(rng.uniform(-1, 1) * augmentation.zoom)
    flip = rng.choice([-1.0, 1.0])
    centre = [
        rng.uniform(min(low, high), max(low, high))
        for low, high in ((v.min() + size / 2, v.max() - size / 2) for v in (rows, columns))
    ]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * zoom * size / 2
    turn[0] *= flip  # left and right are the first in-plane axis of an axial slice
    scale = np.array([w / 2, h / 2])  # grid_sample takes (x, y) = (column, row) in [-1, 1]
    theta = np.zeros((1, 2, 3), np.float32)
    theta[0, :, :2] = turn[::-1, ::-1] / scale[:, None]
    theta[0, :, 2] = (np.array([centre[1], centre[0]]) + 0.5) / scale - 1
    grid = functional.affine_grid(torch.from_numpy(theta), [1, 1, size, size], align_corners=False)
    images, targets = crop.images[crop.acquired], crop.targets[crop.acquired]
    m, s = images.shape[:2]
    apart = (images[:, s // 2] != targets).any(axis=(1, 2))  # mostly an input's middle slice is the target
    layers = np.concatenate([images.reshape(m * s, h, w), targets[apart], crop.inside[None] * np.uint8(255)])
    # bytes travel; only what is sampled becomes float
    sampled = functional.grid_sample(
        torch.from_numpy(layers)[None].float(), grid, mode="bilinear", align_corners=False
    )[0].div_(255)
    inside = sampled[-1] > 0.5
    moved = sampled[: m * s].reshape(m, s, size, size)
    aims = moved[:, s // 2].clone()
    aims[torch.from_numpy(apart)] = sampled[m * s : -1]
    return moved, aims.mul_(inside), inside


def _disturb(images: Tensor, acquired: Tensor, rng: np.random.Generator, augmentation: Augmentation) -> None:
    """Gamma and noise in place, drawn per sample and modality; never in targets.

    Each changes half of the images: what would change nothing is neither drawn nor computed.
    """
    b, m = acquired.shape
    exponent = np.exp(rng.uniform(-1, 1, (b, m)) * augmentation.gamma * (rng.random((b, m)) < 0.5))
    strength = rng.uniform(0, augmentation.noise, (b, m)) * (rng.random((b, m)) < 0.5)
    noise = np.empty(images.shape[2:], np.float32)
    for k, i in acquired.nonzero().tolist():
        image = images[k, i].clamp_(0, 1)
        if exponent[k, i] != 1:
            image.pow_(exponent[k, i])
        if strength[k, i] > 0:
            rng.standard_normal(dtype=np.float32, out=noise)
            image.add_(torch.from_numpy(noise), alpha=strength[k, i])
        image.clamp_(1 / 255, 1)
