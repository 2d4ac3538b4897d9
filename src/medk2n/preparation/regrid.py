"""Every scan and mask of a study on one grid: each is resampled once, from where it was acquired."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from medk2n.data.intensity import Scaling, unit_doubt
from medk2n.data.patient import air_level, background
from medk2n.data.working import mask_on, scaled
from medk2n.geometry.grid import Grid
from medk2n.geometry.resample import check_overlap, resample, working_grid
from medk2n.io.volume import LabelMap, Volume
from medk2n.preparation.draft import Draft, Outcome


@dataclass(frozen=True)
class Regrid:
    """The working grid of the reference (`geometry/resample.py`), with the axis across the slices last, so that a
    slice is one piece of a file.

    Attributes:
        spacing_mm: in-plane spacing; None keeps the reference's own, as a spacing that nobody stated does.
    """

    name: ClassVar[str] = "regrid"
    spacing_mm: float | None

    def apply(self, draft: Draft) -> Outcome:
        """The study on that grid; images linearly, masks by the nearest voxel. Scalings are fitted here, before.

        Raises:
            GeometryError: something does not overlap the reference.
            VolumeReadError: a volume without a patient or without contrast.
        """
        reference = draft.scans[draft.reference]
        spacing = self.spacing_mm if draft.spacing_known else None
        working = working_grid(reference.grid, spacing, reference.provenance.get("slice_axis"))
        across = working.slice_axis
        order = [axis for axis in range(3) if axis != across] + [across]
        i, j, k = (working.grid.shape[axis] for axis in order)
        grid = Grid((i, j, k), working.grid.affine[:, [*order, 3]])

        scans, warnings = {}, []
        for label, volume in draft.scans.items():
            check_overlap(reference.grid, volume.grid, draft.reference, str(volume.provenance.get("path", label)))
            head = mask_on(draft.masks["head"], volume.grid, draft.id) if "head" in draft.masks else None
            _, inside, scaling = scaled(volume, volume.modality, head)
            if doubt := unit_doubt(scaling, volume.modality):
                warnings.append(f"{label}: {doubt}")
            facts = {**volume.provenance, "slice_axis": across, "scaling": scaling.to_json()}
            scans[label] = Volume(_brought(volume, grid, inside, scaling), grid, volume.modality, facts)
        masks = {}
        for kind, mask in draft.masks.items():
            check_overlap(reference.grid, mask.grid, draft.reference, f"the {kind} mask of {draft.id}")
            array = resample(mask.array, mask.grid, grid, order=0)
            masks[kind] = LabelMap(np.rint(array).astype(np.int32), grid)
        facts = {
            "shape": list(grid.shape),
            "affine": grid.affine.tolist(),
            "slice_axis": across,
            "kept_voxels": [label for label, v in draft.scans.items() if _same_voxels(v.grid, grid)],
        }
        return Outcome(Draft(draft.id, scans, masks), facts, tuple(warnings))


def _brought(volume: Volume, grid: Grid, inside: np.ndarray, scaling: Scaling) -> np.ndarray:
    """The volume on another grid.

    The edge of a stripped image fades to what is scaled to 0, as it does where a scaled image is resampled: a mix of
    tissue and a background far below it would be a level that no tissue has. Beyond the edge is exact background.
    """
    air = background(volume)
    if air is None or _same_voxels(volume.grid, grid):
        return resample(volume.array, volume.grid, grid, fill=air_level(volume))
    faded = np.where(inside, volume.array, np.float32(scaling.low))
    kept = resample(inside, volume.grid, grid, order=0) > 0
    return np.where(kept, resample(faded, volume.grid, grid, fill=scaling.low), np.float32(air))


def _same_voxels(a: Grid, b: Grid) -> bool:
    """Whether one is the other with its axes turned and flipped, so that no value changes."""
    return working_grid(a, None).grid.same_as(working_grid(b, None).grid)
