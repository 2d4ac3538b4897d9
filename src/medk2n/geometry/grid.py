"""A grid: shape and affine of a volume."""

from dataclasses import dataclass

import numpy as np

from medk2n.errors import GeometryError
from medk2n.geometry.limits import EDGES_MM, FARTHEST_MM


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of a 3-D array are.

    Attributes:
        shape: (x, y, z) voxels.
        affine: (4, 4) float64, voxel index -> scanner millimetres (RAS+, as NIfTI means it).
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    def __post_init__(self) -> None:
        try:
            affine = np.array(self.affine, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise GeometryError(f"affine is not a finite 4 x 4 matrix: {self.affine!r}") from error
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise GeometryError(f"affine is not a finite 4 x 4 matrix: {affine.tolist()}")
        with np.errstate(over="ignore", invalid="ignore"):
            volume, edges = abs(np.linalg.det(affine[:3, :3])), np.linalg.norm(affine[:3, :3], axis=0)
        if volume < 1e-9:
            raise GeometryError("affine is singular (a voxel has no volume); mend the header before synthesis")
        if edges.min() < EDGES_MM[0] or edges.max() > EDGES_MM[1]:
            told = " x ".join(f"{edge:.4g}" for edge in edges)
            raise GeometryError(
                f"voxels of {told} mm; expected edges from {EDGES_MM[0]:g} to {EDGES_MM[1]:g} mm; mend the header"
            )
        if np.abs(affine[:3, 3]).max() > FARTHEST_MM:
            raise GeometryError(
                f"its first voxel is {np.abs(affine[:3, 3]).max():.4g} mm from the scanner's centre; expected at most "
                f"{FARTHEST_MM:g}; mend the header"
            )
        affine.flags.writeable = False
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))

    @property
    def spacing_mm(self) -> np.ndarray:
        """(3,) edge lengths of a voxel."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def same_as(self, other: "Grid") -> bool:
        """Same shape, and the affines differ by less than a thousandth of a millimetre."""
        return self.shape == other.shape and bool(np.allclose(self.affine, other.affine, atol=1e-3))
