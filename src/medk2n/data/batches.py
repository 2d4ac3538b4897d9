"""Training batches: 2.5-D crops of subjects with different contrasts missing, side by side.

Everything is drawn from a numpy Generator, so a batch depends on (seed, step) alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from medk2n.data.corrupt import corrupt
from medk2n.data.grey import UNCHANGED, Style, shares_below, stretched, to_bytes, towards
from medk2n.data.working import WorkingStudy

ENOUGH = 0.03  # share of a slice that has to be patient (or brain) to be learned from


@dataclass(frozen=True, slots=True)
class Batch:
    """b crops of m modalities, s neighbouring slices.

    Attributes:
        images: (b, m, s, h, w) what inputs are read from, scaled; absent channels hold NaN, so that a leak shows.
        acquired: (b, m) bool.
        targets: (b, m, h, w) what outputs are compared with; NaN where absent.
        foreground: (b, h, w) bool.
        severity: (b, m) in [0, 1], how far each input was damaged; 0 where it is whole.
    """

    images: Tensor
    acquired: Tensor
    targets: Tensor
    foreground: Tensor
    severity: Tensor

    def row(self, k: int) -> "Batch":
        """One of the crops alone."""
        return Batch(*(getattr(self, field.name)[k : k + 1] for field in fields(self)))

    def to(self, device: torch.device) -> "Batch":
        """The same on another device."""
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))


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

    def crop(self, rng: np.random.Generator, slices: int, augmentation: Augmentation, lenders: "Store") -> "_Crop":
        """One random slice with its neighbours, before it is moved and cut to size.

        Args:
            lenders: whose grey scales may be lent.
        """
        k, z = self._slices[rng.integers(len(self._slices))]
        study = self._studies[k]
        strip = rng.random() < augmentation.strip and study.brain is not None and study.brain[z].mean() > ENOUGH
        tables, alone = None, int(strip or study.stripped)
        if rng.random() < augmentation.restyle:
            styles = [style for s in lenders._studies if (style := s.styles[alone]) is not None]
            if styles and (own := study.styles[alone]) is not None:
                tables = towards(own, styles[rng.integers(len(styles))], rng.uniform())
        return study.at(z, slices, rng, strip=strip, tables=tables)


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
    moved = [_moved(c, rng, crop, augmentation) for c in crops]
    images = torch.stack([m[0] for m in moved])
    targets = torch.stack([m[1] for m in moved])
    inside = torch.stack([m[2] for m in moved])
    acquired = torch.tensor(np.stack([c.acquired for c in crops]))
    images, severity = corrupt(images, acquired, rng, augmentation.corrupt)
    images = _disturbed(images, rng, augmentation) * inside[:, None, None]
    images[~acquired] = torch.nan
    targets[~acquired] = torch.nan
    return Batch(images, acquired, targets, inside, severity)


def whole_slices(study: WorkingStudy, modalities: Sequence[str], at: Sequence[int], slices: int) -> Batch:
    """Chosen slices of a study as they are, without augmentation."""
    stored = _Stored.of(study, tuple(modalities))
    crops = [stored.at(z, slices) for z in at]
    images = torch.stack([torch.from_numpy(c.images).float() / 255 for c in crops])
    targets = torch.stack([torch.from_numpy(c.targets).float() / 255 for c in crops])
    acquired = torch.tensor(np.stack([c.acquired for c in crops]))
    images[~acquired] = torch.nan
    targets[~acquired] = torch.nan
    inside = torch.tensor(np.stack([c.inside for c in crops]))
    return Batch(images, acquired, targets, inside, torch.zeros(acquired.shape))


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
    stripped: bool
    useful: np.ndarray
    stretch: tuple[tuple[np.ndarray, ...], ...]  # per modality and acquisition: (256,) table once it is stripped
    styles: tuple[Style | None, Style | None]  # with the skull, and without; None where it is not seen so

    @classmethod
    def of(cls, study: WorkingStudy, modalities: tuple[str, ...]) -> "_Stored":
        variants = tuple(
            tuple(to_bytes(a) for a in (study.images[name], *study.inputs_only.get(name, ())))
            if name in study.images
            else ()
            for name in modalities
        )
        own = [name in study.scalings and study.scalings[name].kind == "robust" for name in modalities]
        brain = study.brain & study.foreground if study.brain is not None and study.brain.any() else None
        stretch = tuple(
            tuple(stretched(a, brain) if free and brain is not None else UNCHANGED for a in v)
            for v, free in zip(variants, own, strict=True)
        )
        seen: Style = tuple(
            shares_below(v[0][study.foreground]) if free else None for v, free in zip(variants, own, strict=True)
        )
        brain_seen: Style | None = None
        if brain is not None:
            brain_seen = tuple(
                shares_below(tables[0][v[0][brain]]) if free else None
                for v, tables, free in zip(variants, stretch, own, strict=True)
            )
        styles = (None, seen) if study.stripped else (seen, brain_seen)
        area = study.foreground.mean(axis=(1, 2))
        return cls(variants, study.foreground, brain, study.stripped, area > ENOUGH, stretch, styles)

    def at(
        self,
        z: int,
        slices: int,
        rng: np.random.Generator | None = None,
        *,
        strip: bool = False,
        tables: Sequence[np.ndarray] | None = None,
    ) -> _Crop:
        """Slice z with its neighbours; without `rng` the acquisition that is also the target is the input."""
        around = neighbours(z, len(self.foreground), slices)
        brain = self.brain if strip else None
        if brain is not None:  # a neighbour without a mask would be shown empty
            around = np.where(brain[around].any(axis=(1, 2)), around, z)
        inside = self.foreground[z] if brain is None else brain[z]
        h, w = inside.shape
        images = np.zeros((len(self.variants), slices, h, w), np.uint8)
        targets = np.zeros((len(self.variants), h, w), np.uint8)
        for m, variants in enumerate(self.variants):
            if variants:
                which = 0 if rng is None else rng.integers(len(variants))
                image, target = variants[which][around], variants[0][z]
                if brain is not None:
                    image = self.stretch[m][which][image] * brain[around]
                    target = self.stretch[m][0][target] * inside
                if tables is not None:
                    target = tables[m][target]
                    image = tables[m][image] if which == 0 else image  # other protocols have scales of their own
                images[m], targets[m] = image, target
        return _Crop(images, targets, inside, np.array([len(v) > 0 for v in self.variants]))


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
