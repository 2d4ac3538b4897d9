"""Lesions: tumours with mass effect, strokes, white-matter lesions; drawn in the subject's own frame.

Shapes are level sets of an ellipsoidal radius or cone plus random fields, so borders are ragged.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from medk2n.phantom.anatomy import Anatomy, sigmoid

KINDS = ("none", "tumour", "stroke", "wm_lesions")
_CHANCES = (0.22, 0.36, 0.22, 0.20)


@dataclass(frozen=True, eq=False)
class LesionPlan:
    """What one subject has, drawn before any voxel is made.

    Attributes:
        kind: one of `KINDS`.
        centre_mm: (3,) of the tumour, or where the stroke's territory begins.
        radius_mm: of the tumour's core, or the reach of the stroke.
        enhances: the tumour has an enhancing rim and necrosis.
        push: mass effect, 0..0.6: part of the core's radius by which tissue is moved.
        spots: (n, 4) centre and radius of white-matter lesions.
        shape: (3,) axis ratios or the stroke's direction.
    """

    kind: str = "none"
    centre_mm: np.ndarray = field(default_factory=lambda: np.zeros(3))
    radius_mm: float = 0.0
    enhances: bool = False
    push: float = 0.0
    spots: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    shape: np.ndarray = field(default_factory=lambda: np.ones(3))

    def displaced(self, points_mm: np.ndarray) -> np.ndarray:
        """Where tissue at these points was before the tumour grew: points (n, 3) pulled towards its centre.

        Radially r -> r (1 - push exp(-(r/R)^2)), which is monotone for push < 1: nothing folds.
        """
        if not self.push:
            return points_mm
        offset = points_mm - self.centre_mm.astype(np.float32)
        reach = 1.6 * self.radius_mm
        pull = self.push * np.exp(-(offset**2).sum(axis=1) / reach**2)
        return points_mm - offset * pull[:, None].astype(np.float32)


def draw_lesions(anatomy: Anatomy, rng: np.random.Generator, kind: str | None = None) -> LesionPlan:
    """Draw one subject's lesions (of a given kind, if named)."""
    kind = kind or str(rng.choice(KINDS, p=_CHANCES))
    white, depth, vent = anatomy.maps[1], anatomy.maps[6], anatomy.maps[5]
    sub = (slice(None, None, 2),) * 3
    pool = np.argwhere((white[sub] > 0.7) & (depth[sub] > 8)) * 2
    places = pool @ anatomy.affine[:3, :3].T + anatomy.affine[:3, 3]
    pool, places = pool[places[:, 2] > -25], places[places[:, 2] > -25]
    if kind == "tumour":
        deep = places[depth[tuple(pool.T)] > 14]
        return LesionPlan(
            kind,
            deep[rng.integers(len(deep))],
            float(rng.uniform(8, 24)),
            enhances=bool(rng.random() < 0.75),
            push=float(rng.uniform(0.1, 0.55)),
            shape=rng.uniform(0.75, 1.3, 3),
        )
    if kind == "stroke":
        lacunar = rng.random() < 0.35
        direction = rng.standard_normal(3)
        if lacunar:
            start, reach = places[rng.integers(len(places))], rng.uniform(4, 9)
        else:
            side = rng.choice([-1, 1])
            start, reach = np.array([side * 28.0, -5, 4]) + rng.normal(0, 5, 3), rng.uniform(28, 50)
            direction = np.array([side * rng.uniform(0.4, 1), rng.normal(0, 0.8), rng.uniform(-0.2, 0.9)])
        return LesionPlan(kind, start, float(reach), shape=direction / np.linalg.norm(direction))
    if kind == "wm_lesions" or rng.random() < 0.25:
        weight = np.exp(-vent[tuple(pool.T)] / 9.0) + 0.03
        count = int(rng.integers(6, 40)) if kind == "wm_lesions" else int(rng.integers(1, 6))
        chosen = rng.choice(len(places), size=count, p=weight / weight.sum())
        radii = np.clip(rng.lognormal(0.75, 0.45, count), 1.0, 7.0)
        spots = np.column_stack([places[chosen] + rng.normal(0, 1, (count, 3)), radii])
        return LesionPlan(kind, spots=spots)
    return LesionPlan(kind)


def lesion_fractions(
    plan: LesionPlan, points_mm: np.ndarray, tissue: Mapping[str, np.ndarray], fields: np.ndarray, vent_mm: np.ndarray
) -> dict[str, np.ndarray]:
    """Fractions of lesion tissues at points (n, 3); they take the place of what `tissue` held there.

    Args:
        plan: what to draw.
        points_mm: in the frame of the plan (before mass effect is undone).
        tissue: fractions of healthy tissue there.
        fields: (2, n) random fields, unit deviation, of long and short wavelength.
        vent_mm: (n,) distance to the ventricles.
    """
    if plan.kind == "tumour":
        return _tumour(plan, points_mm, tissue, fields)
    if plan.kind == "stroke":
        return _stroke(plan, points_mm, tissue, fields)
    if len(plan.spots):
        return _spots(plan, points_mm, tissue, fields, vent_mm)
    return {}


def _tumour(
    plan: LesionPlan, points_mm: np.ndarray, tissue: Mapping[str, np.ndarray], fields: np.ndarray
) -> dict[str, np.ndarray]:
    offset = (points_mm - plan.centre_mm.astype(np.float32)) / plan.shape.astype(np.float32)
    radius = np.linalg.norm(offset, axis=1) / np.float32(plan.radius_mm)
    steep = np.float32(2.5 * plan.radius_mm)
    wall = 0.15 * fields[0] + 0.04 * fields[1]
    core = sigmoid(steep * (1 - radius - wall))
    centre = sigmoid(steep * (0.72 - radius - 1.25 * wall)) * sigmoid(6 * (fields[1] + 1.6))
    # Oedema creeps along white matter, hardly into grey, and not into CSF.
    affinity = tissue["white"] + 0.45 * tissue["grey"] + 0.4 * (tissue["thalamus"] + tissue["putamen"])
    spread = sigmoid(0.22 * steep * (1.75 - radius - 2.0 * wall)) * np.clip(affinity, 0, 1)
    solid = 1 - 0.85 * tissue["csf"]  # a tumour displaces CSF only in part
    core = core * solid
    if not plan.enhances:
        return {"oedema": np.maximum(core, 0.8 * spread)}
    return {
        "necrosis": core * centre,
        "enhancing": core * (1 - centre),
        "oedema": np.maximum(spread - core, 0),
    }


def _stroke(
    plan: LesionPlan, points_mm: np.ndarray, tissue: Mapping[str, np.ndarray], fields: np.ndarray
) -> dict[str, np.ndarray]:
    offset = points_mm - plan.centre_mm.astype(np.float32)
    radius = np.linalg.norm(offset, axis=1)
    if plan.radius_mm < 12:
        level = 1 - radius / plan.radius_mm - 0.15 * fields[0]
    else:
        along = offset @ plan.shape.astype(np.float32)
        angle = np.arccos(np.clip(along / np.maximum(radius, 1e-3), -1, 1))
        level = (
            np.minimum(1 - radius / plan.radius_mm, (0.65 - angle) / 0.65) - 0.14 * fields[0] - 0.06 * fields[1] + 0.1
        )
        level = np.minimum(level, (radius - 3) / plan.radius_mm)
    return {"stroke": sigmoid(0.9 * plan.radius_mm * level * 2) * (1 - tissue["csf"])}


def _spots(
    plan: LesionPlan, points_mm: np.ndarray, tissue: Mapping[str, np.ndarray], fields: np.ndarray, vent_mm: np.ndarray
) -> dict[str, np.ndarray]:
    amount = np.zeros(len(points_mm), np.float32)
    for x, y, z, radius in plan.spots:
        near = np.flatnonzero((np.abs(points_mm - np.float32([x, y, z])) < 2.5 * radius).all(axis=1))
        distance = np.linalg.norm(points_mm[near] - np.float32([x, y, z]), axis=1)
        level = radius * (1 - 0.2 * fields[0, near] - 0.15 * fields[1, near]) - distance
        amount[near] = np.maximum(amount[near], sigmoid(2.2 * level))
    if plan.kind == "wm_lesions":  # periventricular caps and bands
        amount = np.maximum(amount, sigmoid(2 * (0.6 + 1.3 * fields[0] - vent_mm)))
    return {"wm_lesion": amount * np.clip(tissue["white"] + 0.15 * tissue["grey"], 0, 1)}
