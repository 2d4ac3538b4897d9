"""Training batches: 2.5-D crops of subjects with different contrasts missing, side by side.

Everything is drawn from a numpy Generator, so a batch depends on (seed, step) alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from medk2n.data.intensity import PERCENTILES
from medk2n.data.working import WorkingStudy


@dataclass(frozen=True, slots=True)
class Batch:
    """b crops of m modalities, s neighbouring slices.

    Attributes:
        images: (b, m, s, h, w) what inputs are read from, scaled; absent channels hold NaN, so that a leak shows.
        acquired: (b, m) bool.
        targets: (b, m, h, w) what outputs are compared with; NaN where absent.
        foreground: (b, h, w) bool.
    """

    images: Tensor
    acquired: Tensor
    targets: Tensor
    foreground: Tensor


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Strengths of what is drawn per crop; intensities are changed in inputs only.

    Attributes:
        rotation: largest angle in radians.
        zoom: largest relative change of size.
        gamma: largest absolute log of the exponent.
        noise: largest standard deviation.
        strip: chance of cutting the skull away where a brain mask is known; grey scales are stretched again, since
            those of a whole head would not be met in a stripped scan.
        restyle: chance of moving a subject's grey scales towards those of another subject of its data set; the one
            change that targets share, for a scanner draws all contrasts of a visit in its own way.
    """

    rotation: float = 0.15
    zoom: float = 0.15
    gamma: float = 0.25
    noise: float = 0.03
    strip: float = 0.3
    restyle: float = 0.0


class Store:
    """Studies of one data set in memory, as bytes: 1/255 is finer than the noise of any of these scans."""

    def __init__(self, studies: Sequence[WorkingStudy], modalities: Sequence[str]) -> None:
        self.modalities = tuple(modalities)
        self._studies = [_Stored.of(study, self.modalities) for study in studies]
        self._slices = [
            (k, z) for k, study in enumerate(self._studies) for z in range(len(study.foreground)) if study.useful[z]
        ]

    def __len__(self) -> int:
        """Number of slices with enough foreground to learn from."""
        return len(self._slices)

    def crop(self, rng: np.random.Generator, slices: int, augmentation: Augmentation) -> "_Crop":
        """One random slice with its neighbours, before it is moved and cut to size."""
        k, z = self._slices[rng.integers(len(self._slices))]
        tables = None
        if rng.random() < augmentation.restyle:
            lender = self._studies[rng.integers(len(self._studies))]
            tables = self._studies[k].towards(lender, rng.uniform())
        return self._studies[k].at(z, slices, rng, augmentation, tables)


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
    """Draw `batch_size` crops; each comes from store k with probability `shares[k]`."""
    crops = [
        stores[rng.choice(len(stores), p=np.asarray(shares) / sum(shares))].crop(rng, slices, augmentation)
        for _ in range(batch_size)
    ]
    moved = [_moved(c, rng, crop, augmentation) for c in crops]
    images = torch.stack([m[0] for m in moved])
    targets = torch.stack([m[1] for m in moved])
    inside = torch.stack([m[2] for m in moved])
    acquired = torch.tensor(np.stack([c.acquired for c in crops]))
    images = _disturbed(images, rng, augmentation) * inside[:, None, None]
    images[~acquired] = torch.nan
    targets[~acquired] = torch.nan
    return Batch(images, acquired, targets, inside)


def whole_slices(study: WorkingStudy, modalities: Sequence[str], at: Sequence[int], slices: int) -> Batch:
    """Chosen slices of a study as they are, without augmentation."""
    stored = _Stored.of(study, tuple(modalities))
    plain = Augmentation(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    crops = [stored.at(z, slices, None, plain) for z in at]
    images = torch.stack([torch.from_numpy(c.images).float() / 255 for c in crops])
    targets = torch.stack([torch.from_numpy(c.targets).float() / 255 for c in crops])
    acquired = torch.tensor(np.stack([c.acquired for c in crops]))
    images[~acquired] = torch.nan
    targets[~acquired] = torch.nan
    return Batch(images, acquired, targets, torch.tensor(np.stack([c.inside for c in crops])))


def neighbours(z: int, depth: int, slices: int) -> np.ndarray:
    """Indices of `slices` neighbouring slices around z; the edge slice is repeated beyond the edge."""
    return np.clip(np.arange(z - slices // 2, z + slices // 2 + 1), 0, depth - 1)


@dataclass(frozen=True, slots=True)
class _Crop:
    images: np.ndarray  # (m, s, h, w) uint8
    targets: np.ndarray  # (m, h, w) uint8
    inside: np.ndarray  # (h, w) bool
    acquired: np.ndarray  # (m,) bool


@dataclass(frozen=True, slots=True)
class _Stored:
    variants: tuple[tuple[np.ndarray, ...], ...]  # per modality: acquisitions (s, h, w) uint8, the target first
    foreground: np.ndarray
    brain: np.ndarray | None
    useful: np.ndarray
    shares: tuple[np.ndarray | None, ...]  # per modality with a grey scale of its own: (256,) share below each level
    stretched: tuple[tuple[np.ndarray, ...], ...]  # per modality and acquisition: (256,) table once it is stripped

    @classmethod
    def of(cls, study: WorkingStudy, modalities: tuple[str, ...]) -> "_Stored":
        variants = tuple(
            tuple(_bytes(a) for a in (study.images[name], *study.inputs_only.get(name, ())))
            if name in study.images
            else ()
            for name in modalities
        )
        area = study.foreground.mean(axis=(1, 2))
        shares = tuple(
            _shares(v[0][study.foreground]) if v and study.scalings[name].kind == "robust" else None
            for name, v in zip(modalities, variants, strict=True)
        )
        stretched = tuple(
            tuple(_stretched(array, study.brain) if own is not None else np.arange(256, dtype=np.uint8) for array in v)
            for v, own in zip(variants, shares, strict=True)
        )
        return cls(variants, study.foreground, study.brain, area > 0.03, shares, stretched)

    def towards(self, lender: "_Stored", amount: float) -> tuple[np.ndarray | None, ...]:
        """Per modality a (256,) uint8 table of grey levels, part of the way to the lender's histogram.

        Histogram matching, interpolated: a mix of two quantile functions is one too (their Wasserstein barycentre),
        so that order is kept and styles between the two are met as well. None where either has no such scale.
        """
        levels = np.arange(256.0)
        return tuple(
            None
            if own is None or theirs is None
            else _bytes((levels > 0) * ((1 - amount) * levels + amount * np.interp(own, theirs, levels)) / 255)
            for own, theirs in zip(self.shares, lender.shares, strict=True)
        )

    def at(
        self,
        z: int,
        slices: int,
        rng: np.random.Generator | None,
        augmentation: Augmentation,
        tables: Sequence[np.ndarray | None] | None = None,
    ) -> _Crop:
        inside, depth = self.foreground[z], len(self.foreground)
        around = neighbours(z, depth, slices)
        keep = None
        if self.brain is not None and rng is not None and rng.random() < augmentation.strip and self.brain[z].any():
            keep, inside = self.brain[around], self.brain[z]
        h, w = inside.shape
        images = np.zeros((len(self.variants), slices, h, w), np.uint8)
        targets = np.zeros((len(self.variants), h, w), np.uint8)
        for m, variants in enumerate(self.variants):
            if variants:
                which = 0 if rng is None else rng.integers(len(variants))
                image, target = variants[which][around], variants[0][z]
                if tables is not None and (table := tables[m]) is not None:
                    target = table[target]
                    image = table[image] if which == 0 else image  # other protocols have scales of their own
                if keep is not None:
                    image, target = self.stretched[m][which][image] * keep, self.stretched[m][0][target] * inside
                images[m], targets[m] = image, target
        return _Crop(images, targets, inside, np.array([len(v) > 0 for v in self.variants]))


def _shares(values: np.ndarray) -> np.ndarray:
    """(256,) share of the voxels below each level, counting half of those at it."""
    counts = np.bincount(values, minlength=256) / max(1, values.size)
    return np.cumsum(counts) - counts / 2


def _stretched(array: np.ndarray, brain: np.ndarray | None) -> np.ndarray:
    """(256,) uint8 table: the scaling that the brain alone would have had."""
    if brain is None or not brain.any():
        return np.arange(256, dtype=np.uint8)
    low, high = np.percentile(array[brain], PERCENTILES)
    levels = np.arange(256)
    return _bytes((levels > 0) * np.maximum((levels - low) / max(high - low, 1.0), 1 / 255))


def _bytes(array: np.ndarray) -> np.ndarray:
    """[0, 1] -> uint8; the foreground keeps at least 1, so that 0 still means outside."""
    return np.where(array > 0, np.clip(np.rint(array * 255), 1, 255), 0).astype(np.uint8)


def _moved(
    crop: _Crop, rng: np.random.Generator, size: int, augmentation: Augmentation
) -> tuple[Tensor, Tensor, Tensor]:
    """Flip, turn, zoom and shift one crop to (size, size): images, targets, foreground."""
    h, w = crop.inside.shape
    rows, columns = np.nonzero(crop.inside)
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
    m, s = crop.images.shape[:2]
    layers = np.concatenate([crop.images.reshape(m * s, h, w), crop.targets, crop.inside[None] * np.uint8(255)])
    # bytes travel; only what is sampled becomes float
    sampled = functional.grid_sample(
        torch.from_numpy(layers)[None].float(), grid, mode="bilinear", align_corners=False
    )[0].div_(255)
    inside = sampled[-1] > 0.5
    return sampled[: m * s].reshape(m, s, size, size), sampled[m * s : -1] * inside, inside


def _disturbed(images: Tensor, rng: np.random.Generator, augmentation: Augmentation) -> Tensor:
    """Gamma and noise, drawn per sample and modality; never in targets."""
    b, m = images.shape[:2]
    exponent = np.exp(rng.uniform(-1, 1, (b, m)) * augmentation.gamma * (rng.random((b, m)) < 0.5))
    strength = rng.uniform(0, augmentation.noise, (b, m)) * (rng.random((b, m)) < 0.5)
    noise = torch.from_numpy(rng.standard_normal(images.shape, dtype=np.float32))
    as_view = (b, m, 1, 1, 1)
    images = images.clamp(0, 1) ** torch.from_numpy(exponent.astype(np.float32)).view(as_view)
    return (images + noise * torch.from_numpy(strength.astype(np.float32)).view(as_view)).clamp(1 / 255, 1)
