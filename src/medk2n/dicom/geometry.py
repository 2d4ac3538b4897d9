"""Where the slices of a stack lie: evenly, or why not."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from medk2n.errors import DicomError

_EVEN = 0.01  # of a step that a slice may lie off an even ladder
_TILT_PIXELS = 0.1  # by which slices may slide sideways over the whole stack
_GAP = 1.5  # steps that a missing slice makes of one
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Planes:
    """Parallel slices of one size.

    Attributes:
        positions: (n, 3) centre of the first pixel of each, LPS millimetres, upwards along the normal.
        row, column: (3,) direction of increasing column and row index.
        spacing_mm: (2,) between rows, between columns (as PixelSpacing).
        shape: rows, columns.
        thickness_mm: as stated; None if it was not.
    """

    positions: np.ndarray
    row: np.ndarray
    column: np.ndarray
    spacing_mm: tuple[float, float]
    shape: tuple[int, int]
    thickness_mm: float | None = None

    @cached_property
    def normal(self) -> np.ndarray:
        """(3,) unit vector across the slices."""
        across = np.cross(self.row, self.column)
        return across / np.linalg.norm(across)

    @cached_property
    def heights(self) -> np.ndarray:
        """(n,) along the normal, mm."""
        return self.positions @ self.normal

    @cached_property
    def step_mm(self) -> float:
        """The usual distance of two neighbours."""
        return float(np.median(np.diff(self.heights)))

    @property
    def affine(self) -> np.ndarray:
        """(4, 4) voxel (column, row, slice) -> RAS millimetres, as if the slices were even and straight."""
        lps = np.eye(4)
        lps[:3, 0] = self.row * self.spacing_mm[1]
        lps[:3, 1] = self.column * self.spacing_mm[0]
        lps[:3, 2] = (self.positions[-1] - self.positions[0]) / (len(self.positions) - 1)
        lps[:3, 3] = self.positions[0]
        return LPS_TO_RAS @ lps

    @property
    def slides(self) -> np.ndarray:
        """(n, 2) pixels (column, row) by which each slice lies beside the first, along the normal."""
        offset = self.positions - self.positions[0]
        return np.stack([offset @ self.row / self.spacing_mm[1], offset @ self.column / self.spacing_mm[0]], axis=1)

    @property
    def even(self) -> bool:
        """Whether the steps are equal."""
        ladder = np.linspace(self.heights[0], self.heights[-1], len(self.heights))
        return bool(np.abs(self.heights - ladder).max() <= _EVEN * self.step_mm)

    @property
    def straight(self) -> bool:
        """Whether the slices lie above each other: no tilted gantry."""
        return bool(np.abs(self.slides).max() <= _TILT_PIXELS)

    @property
    def tilted(self) -> bool:
        """Whether each slice slides on from the one below by as much as its step asks, as under a tilted gantry."""
        up = (self.heights - self.heights[0]) / (self.heights[-1] - self.heights[0])
        return bool(np.abs(self.slides - up[:, None] * self.slides[-1]).max() <= _TILT_PIXELS)


def check_directions(planes: Planes, name: str) -> None:
    """Refuse rows and columns that are no right angle; raises DicomError."""
    directions = np.stack([planes.row, planes.column])
    if not np.allclose(directions @ directions.T, np.eye(2), atol=1e-3):
        raise DicomError(f"{name}: its rows and columns are not at right angles; the header is damaged")


def check(planes: Planes, name: str) -> None:
    """Refuse what is no volume.

    Raises:
        DicomError: a spacing of nothing, a slice missing.
    """
    if min(planes.spacing_mm) <= 0 or not 1e-3 < planes.step_mm < 1e3:
        raise DicomError(f"{name}: a spacing of 0 mm or beyond reason; the header is damaged")
    gaps = np.flatnonzero(np.diff(planes.heights) > _GAP * planes.step_mm)
    if gaps.size:
        first = int(gaps[0])
        missing = float(np.diff(planes.heights)[first])
        raise DicomError(
            f"{name}: after slice {first + 1} of {len(planes.positions)} the next lies {missing:.4g} mm on, expected "
            f"{planes.step_mm:.4g} mm; slices are missing; copy the series again, whole"
        )
