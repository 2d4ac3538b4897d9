"""Random smooth diffeomorphisms: an affine map after the exponential of a stationary velocity field.

Arsigny et al. 2006 (MICCAI): the flow of a smooth velocity field is invertible; scaling and
squaring computes it by composing a tiny step with itself.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from medk2n.errors import InternalError

STEP_MM = 4.0  # lattice of the displacement; its smallest ripple is several steps long
SQUARINGS = 7


def sample(maps: np.ndarray, points_vox: np.ndarray) -> np.ndarray:
    """Trilinear values of maps (channels, x, y, z) at points (n, 3) in voxels; edges extended; (channels, n)."""
    import torch

    last = torch.tensor(maps.shape[1:], dtype=torch.float32) - 1
    where = torch.from_numpy(np.ascontiguousarray(points_vox, dtype=np.float32)) * (2 / last) - 1
    where = where.flip(-1)[None, None, None]  # torch names the last axis first
    tensor = torch.from_numpy(np.ascontiguousarray(maps, dtype=np.float32))[None]
    values = torch.nn.functional.grid_sample(tensor, where, padding_mode="border", align_corners=True)
    return values[0, :, 0, 0].numpy()


def lattice_points(shape: tuple[int, ...]) -> np.ndarray:
    """Voxel indices of a grid, (n, 3) float32, in C order."""
    axes = [np.arange(n, dtype=np.float32) for n in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def random_velocity(rng: np.random.Generator, shape: tuple[int, int, int], strength: float = 1.0) -> np.ndarray:
    """Velocity (3, x, y, z) in millimetres on the lattice: broad shape changes plus finer ones.

    Deviations at `strength` 1: 4 mm over some 70 mm, 1 mm over some 30 mm.
    """
    total = np.zeros((3, *shape), np.float32)
    for sigma_mm, size_mm in ((28.0, 4.0), (12.0, 1.0)):
        noise = rng.standard_normal((3, *shape), dtype=np.float32)
        noise = gaussian_filter(noise, (0, *[sigma_mm / STEP_MM] * 3), mode="reflect", truncate=3)
        total += size_mm * strength * noise / noise.std()
    return total


def exponentiate(velocity_mm: np.ndarray) -> np.ndarray:
    """Displacement (3, x, y, z) in millimetres of the flow of a stationary velocity after unit time."""
    shape = velocity_mm.shape[1:]
    here = lattice_points(shape)
    moved = (velocity_mm / 2**SQUARINGS).astype(np.float32)
    for _ in range(SQUARINGS):
        there = here + moved.reshape(3, -1).T / STEP_MM
        moved = moved + sample(moved, there).reshape(3, *shape)
    return moved


def jacobian_determinant(displacement_mm: np.ndarray, step_mm: float = STEP_MM) -> np.ndarray:
    """Determinant (x, y, z) of the gradient of x + displacement(x); positive means not folded."""
    rows = [np.stack(np.gradient(component, step_mm)) for component in displacement_mm]
    gradient = np.stack(rows) + np.eye(3)[:, :, None, None, None]
    return np.linalg.det(np.moveaxis(gradient, (0, 1), (-2, -1)))


def random_affine(rng: np.random.Generator) -> np.ndarray:
    """(4, 4) map of millimetres: head position, size and shear of one subject."""
    angles = np.deg2rad(rng.normal(0, (4, 2, 2)))
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [a for a in range(3) if a != axis]
        turn = np.eye(3)
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = matrix @ turn
    sizes = 1 + np.clip(rng.normal(0, 0.025) + rng.normal(0, 0.025, 3), -0.1, 0.1)
    shear = np.eye(3) + np.triu(rng.normal(0, 0.015, (3, 3)), 1)
    affine = np.eye(4)
    affine[:3, :3] = matrix @ np.diag(sizes) @ shear
    affine[:3, 3] = rng.normal(0, 2, 3)
    return affine


@dataclass(frozen=True)
class Deformation:
    """Map from subject millimetres to template millimetres.

    Attributes:
        affine: (4, 4), applied after the displacement.
        displacement_mm: (3, x, y, z) on a lattice of `STEP_MM` beginning at `origin_mm`.
        origin_mm: (3,) subject millimetres of the first lattice point.
    """

    affine: np.ndarray
    displacement_mm: np.ndarray
    origin_mm: np.ndarray

    def on_grid(self, shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
        """Template millimetres of every voxel of a grid that spans the lattice; (n, 3) float32, C order."""
        points = lattice_points(shape) @ affine[:3, :3].T.astype(np.float32) + affine[:3, 3].astype(np.float32)
        vox = (points - self.origin_mm.astype(np.float32)) / np.float32(STEP_MM)
        points += sample(self.displacement_mm, vox).T
        return points @ self.affine[:3, :3].T.astype(np.float32) + self.affine[:3, 3].astype(np.float32)


def random_deformation(
    rng: np.random.Generator,
    origin_mm: np.ndarray,
    size_mm: np.ndarray,
    life_size: np.ndarray,
    strength: float = 1.0,
) -> Deformation:
    """Draw one subject's deformation over the box that begins at `origin_mm` and is `size_mm` long.

    Subjects vary about a head of `life_size` (subject millimetres per template millimetre, one per axis):
    brain, skull and scalp alike. A draw that folds anywhere is made gentler until it does not.

    Raises:
        InternalError: if no gentler draw is free of folds.
    """
    shape = tuple(int(n) for n in np.ceil(np.asarray(size_mm) / STEP_MM) + 1)
    velocity = random_velocity(rng, shape, strength)
    affine = np.diag([*(1 / life_size), 1.0]) @ random_affine(rng)
    for _ in range(6):
        displacement = exponentiate(velocity)
        if jacobian_determinant(displacement).min() > 0.05:
            return Deformation(affine, displacement, np.asarray(origin_mm, dtype=np.float64))
        velocity = velocity * 0.75
    raise InternalError("random deformation folds however gentle it is made")
