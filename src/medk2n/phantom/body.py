"""One digital subject before any scan: which tissue is where, and in what part of each voxel."""

from dataclasses import dataclass

import numpy as np

from medk2n.geometry.grid import Grid
from medk2n.phantom.anatomy import Anatomy, brain_fractions, sigmoid, to_voxels
from medk2n.phantom.deform import random_deformation, sample
from medk2n.phantom.fields import smooth_field
from medk2n.phantom.head import head_distance, head_fractions, mean_thickness
from medk2n.phantom.lesions import LesionPlan, draw_lesions, lesion_fractions
from medk2n.phantom.tissues import LESION_LABELS, TISSUES
from medk2n.phantom.vessels import vessel_map

# Field of view in subject millimetres, about the same origin as MNI: it holds the head down to the upper neck.
FOV_LOW_MM = np.array([-98.0, -136.0, -86.0])
FOV_HIGH_MM = np.array([98.0, 108.0, 104.0])
LEAST_FRACTION = 0.004  # smaller shares of a voxel are dropped


@dataclass(frozen=True, eq=False)
class Body:
    """Tissue fractions of one subject on one grid.

    Attributes:
        grid: shape and affine.
        fractions: tissue -> (flat voxel indices int32, share of the voxel float32); shares sum to 1
            within the head, the rest is air.
        brain, head: (x, y, z) bool.
        texture: (3, x, y, z) float32, unit deviation: smooth variation within tissue.
        plan: the lesions that were drawn.
    """

    grid: Grid
    fractions: dict[str, tuple[np.ndarray, np.ndarray]]
    brain: np.ndarray
    head: np.ndarray
    texture: np.ndarray
    plan: LesionPlan

    def dense(self, name: str) -> np.ndarray:
        """Share of one tissue in every voxel; (x, y, z) float32."""
        out = np.zeros(self.grid.shape, np.float32)
        if name in self.fractions:
            index, share = self.fractions[name]
            out.ravel()[index] = share
        return out

    def thinned(self, step: int = 3) -> "Body":
        """Every `step`-th voxel along each axis: the same body, cheap to try many protocols on."""
        position = np.full(self.grid.shape, -1, np.int32)
        coarse = (slice(None, None, step),) * 3
        shape = position[coarse].shape
        position[coarse] = np.arange(np.prod(shape)).reshape(shape)
        fractions = {}
        for name, (index, share) in self.fractions.items():
            there = position.ravel()[index]
            fractions[name] = (there[there >= 0], share[there >= 0])
        affine = self.grid.affine @ np.diag([step, step, step, 1.0])
        texture = np.ascontiguousarray(self.texture[(slice(None), *coarse)])
        return Body(Grid(shape, affine), fractions, self.brain[coarse], self.head[coarse], texture, self.plan)

    def labels(self) -> np.ndarray:
        """(x, y, z) uint8: label of the tissue with the largest share, 0 where air has most."""
        best, label = np.full(self.grid.shape, 0.34, np.float32), np.zeros(self.grid.shape, np.uint8)
        for name, (index, share) in self.fractions.items():
            wins = share > best.ravel()[index]
            best.ravel()[index[wins]] = share[wins]
            label.ravel()[index[wins]] = TISSUES[name].label
        return label

    def lesion_labels(self) -> np.ndarray:
        """(x, y, z) uint8: 1 necrosis, 2 oedema, 3 enhancing, 4 stroke, 5 white-matter lesion; half a voxel counts."""
        total, best = np.zeros(self.grid.shape, np.float32), np.zeros(self.grid.shape, np.float32)
        label = np.zeros(self.grid.shape, np.uint8)
        for name, value in LESION_LABELS.items():
            share = self.dense(name)
            total += share
            label[share > best] = value
            best = np.maximum(best, share)
        label[total < 0.5] = 0
        return label


def subject_grid(rng: np.random.Generator, spacing_mm: float) -> tuple[Grid, np.ndarray]:
    """A subject's grid (its origin where a scanner might put it) and its affine in the template's frame."""
    shape = tuple(int(n) for n in np.round((FOV_HIGH_MM - FOV_LOW_MM) / spacing_mm))
    in_template = np.diag([spacing_mm] * 3 + [1.0])
    in_template[:3, 3] = FOV_LOW_MM + spacing_mm / 2
    scanner = in_template.copy()
    scanner[:3, 3] += np.round(rng.uniform(-12, 12, 3), 2) + (0, 18, 0)
    return Grid(shape, scanner), in_template


def build_body(anatomy: Anatomy, rng: np.random.Generator, spacing_mm: float, *, stripped: bool = False) -> Body:
    """Draw one subject.

    Args:
        anatomy: what is bent.
        rng: the subject's own source of chance.
        spacing_mm: edge of the voxels.
        stripped: leave out everything around the brain.
    """
    grid, in_template = subject_grid(rng, spacing_mm)
    deformation = random_deformation(rng, FOV_LOW_MM, FOV_HIGH_MM - FOV_LOW_MM, anatomy.life_size)
    plan = draw_lesions(anatomy, rng)
    fields = {mm: smooth_field(rng, grid.shape, spacing_mm, mm).ravel() for mm in (5, 9, 35, 60)}
    points = deformation.on_grid(grid.shape, in_template)
    outside = anatomy.distance_outside(points)
    thicker = np.float32(rng.normal(0, 1.0))
    skin = head_distance(outside, points, mean_thickness() + thicker)
    width = max(1.0, spacing_mm)
    keep = np.flatnonzero((skin < 1.5 * width) if not stripped else (outside < 2.5 + width))
    mixture = _Mixture(grid, keep)

    points, outside, skin = points[keep], outside[keep], skin[keep]
    wobble = np.stack([fields[60][keep], fields[35][keep]])
    around = head_fractions(outside, skin, points, wobble, width)
    in_brain = np.clip(sigmoid(-skin * 4 / width) - sum(around.values()), 0, 1)
    within = np.flatnonzero(in_brain > LEAST_FRACTION)
    brain = _brain(anatomy, plan, rng, points[within], {mm: f[keep][within] for mm, f in fields.items()}, width)
    for name, share in brain.items():
        mixture.add(name, within, share * in_brain[within])
    for name, share in around.items():
        mixture.add(name, np.arange(len(keep)), share)
    texture = np.stack([_texture(rng, grid.shape, spacing_mm) for _ in range(3)])
    mask, head = np.zeros(np.prod(grid.shape), bool), np.zeros(np.prod(grid.shape), bool)
    mask[keep] = outside < 0.8
    head[keep] = skin < 0
    fractions = mixture.finished(mask if stripped else None)
    return Body(grid, fractions, mask.reshape(grid.shape), head.reshape(grid.shape), texture, plan)


def _brain(
    anatomy: Anatomy,
    plan: LesionPlan,
    rng: np.random.Generator,
    points: np.ndarray,
    fields: dict[int, np.ndarray],
    width: float,
) -> dict[str, np.ndarray]:
    """Fractions of everything within the brain's surface, lesions and vessels included; they sum to 1."""
    before = plan.displaced(points)
    channels = anatomy.at(before)
    ripple = np.stack([fields[5], fields[9], 0.7 * fields[9] - 0.7 * fields[5]])
    tissue = brain_fractions(anatomy, before, channels, ripple, sharpness=1.7 / width**0.5)
    blood = sample(vessel_map(anatomy, rng)[None], to_voxels(anatomy.affine, before))[0]
    # Large vessels lie in CSF and between folds; within tissue only a part of the tube is let through.
    tissue["vessel"] = blood * np.clip(0.45 + tissue["csf"], 0, 1)
    lesion = lesion_fractions(
        plan, points, tissue, np.stack([0.6 * fields[35] + 0.8 * fields[9], fields[5]]), channels["from_ventricle"]
    )
    taken = np.clip(sum(lesion.values()), 0, 1) if lesion else np.zeros(len(points), np.float32)
    vessel = tissue.pop("vessel") * (1 - taken)
    healthy = {name: share * (1 - taken) * (1 - vessel) for name, share in tissue.items()}
    return healthy | {name: share * (1 - vessel) for name, share in lesion.items()} | {"vessel": vessel}


def _texture(rng: np.random.Generator, shape: tuple[int, int, int], spacing_mm: float) -> np.ndarray:
    fine, slow = smooth_field(rng, shape, spacing_mm, 4), smooth_field(rng, shape, spacing_mm, 30)
    return np.clip(0.8 * fine + 0.6 * slow, -3, 3)


class _Mixture:
    """Collects sparse tissue fractions while a body is built."""

    def __init__(self, grid: Grid, keep: np.ndarray) -> None:
        self._keep, self._size = keep, int(np.prod(grid.shape))
        self._parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}

    def add(self, name: str, where: np.ndarray, share: np.ndarray) -> None:
        """Add shares of a tissue at positions `where` of the kept voxels."""
        some = np.flatnonzero(share > LEAST_FRACTION)
        self._parts.setdefault(name, []).append((self._keep[where[some]], share[some].astype(np.float32)))

    def finished(self, only: np.ndarray | None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Tissue -> (indices, shares); within `only`, if given."""
        out = {}
        for name, parts in self._parts.items():
            total = np.zeros(self._size, np.float32)
            for index, share in parts:
                total[index] += share
            if only is not None:
                total[~only] = 0
            index = np.flatnonzero(total).astype(np.int32)
            if len(index):
                out[name] = (index, total[index])
        return out
