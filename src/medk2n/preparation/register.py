"""Rigid registration of a study's scans to its reference, by mutual information.

Nothing is resampled: a scan that has to move gets another affine, so that it is resampled once, with all else.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import SimpleITK as sitk

from medk2n.data.coarse import LEAST_VOXELS
from medk2n.data.itk import one_thread
from medk2n.data.rigid import clipped, gain, moved, rigid, where_it_is
from medk2n.errors import GeometryError
from medk2n.geometry.grid import Grid
from medk2n.geometry.resample import check_overlap
from medk2n.io.volume import LabelMap, Volume
from medk2n.preparation.draft import Draft, Outcome

_CLEARLY = 1.01  # mutual information has to rise by a hundredth for a move to be believed
_STILL = 0.5  # voxels of the reference: what moves by less is left where it is, if that spares it a resampling
_FAR = 1.0  # voxels: what seems to be displaced by more, and is not believed, is told
_SHRUNK = (4, 2, 1)  # the three resolutions
_WORDS = 20  # of ITK's message: its end says what is wrong
_SAMPLES = 20_000  # voxels that mutual information is taken from, at each; five times as many to judge the result


@dataclass(frozen=True)
class Register:
    """By `data/rigid.py`, at three resolutions, with one thread, so that the same files give the same transform.

    Masks that lie on the grid of a scan that moves, and not on the reference's, move with it.
    """

    name: ClassVar[str] = "register"
    iterations: int = 100

    def apply(self, draft: Draft) -> Outcome:
        """The scans in the reference's space.

        Raises:
            GeometryError: scans that do not overlap to begin with, or that ITK cannot register.
        """
        reference = draft.scans[draft.reference]
        if reason := _unfit(draft, reference):
            return Outcome(draft, {"skipped": reason})
        scans, masks = dict(draft.scans), dict(draft.masks)
        facts: dict[str, Any] = {}
        for label, volume in list(draft.scans.items())[1:]:
            facts[label] = self._compare(reference, volume, (draft.id, label, draft.reference))
            if (transform := facts[label].get("transform")) is None:
                continue
            scans[label] = moved(volume, np.array(transform))
            for kind, mask in draft.masks.items():
                theirs = mask.grid.same_as(volume.grid) and not mask.grid.same_as(reference.grid)
                if theirs and masks[kind] is mask:
                    masks[kind] = LabelMap(mask.array, scans[label].grid)
        warnings = [f"{label} {found['warning']}" for label, found in facts.items() if "warning" in found]
        return Outcome(Draft(draft.id, scans, masks), facts, tuple(warnings))

    def _compare(self, fixed: Volume, moving: Volume, names: tuple[str, str, str]) -> dict[str, Any]:
        """What was found of one scan; with a "transform" if it is to move."""
        subject, label, reference = names
        if min(moving.grid.shape) < LEAST_VOXELS:
            return {"kept": f"fewer than {LEAST_VOXELS} voxels along an axis"}
        check_overlap(fixed.grid, moving.grid, reference, label)
        with one_thread():
            transform, more = self._find(fixed, moving, f"{subject}: {label} to {reference}")
        voxels = largest_move(transform, fixed.grid)
        found = {"gain": round(more, 4), "voxels": round(voxels, 3)}
        if voxels < _STILL and moving.grid.same_as(fixed.grid):
            return found | {"kept": "in place"}
        if more >= _CLEARLY:
            return found | {"transform": transform.tolist()}
        found |= {"kept": "no move makes it clearly more alike"}
        if voxels < _FAR:
            return found
        return found | {
            "warning": f"is left where it is: a move by up to {voxels:.1f} voxels changes its mutual information with "
            f"{reference} by {more - 1:+.1%}, expected +{_CLEARLY - 1:.0%}; look at preview.png"
        }

    def _find(self, fixed: Volume, moving: Volume, what: str) -> tuple[np.ndarray, float]:
        """(4, 4) from where `moving` says it is to where it is (mm, RAS), and by what factor it is more alike there."""
        images = clipped(fixed), clipped(moving)
        try:
            found = self._transform(*images)
            return where_it_is(found), gain(*images, found, samples=5 * _SAMPLES)
        except RuntimeError as error:
            reason = " ".join(str(error).split()[-_WORDS:])
            raise GeometryError(
                f"{what}: cannot be registered ({reason}); leave the image out, or --register (--align fix)"
            ) from error

    def _transform(self, fixed: sitk.Image, moving: sitk.Image) -> sitk.Transform:
        """From points of `fixed` to those of `moving`; has a matrix, a centre and a translation."""
        return rigid(fixed, moving, iterations=self.iterations, shrunk=_SHRUNK, samples=_SAMPLES)


def _unfit(draft: Draft, reference: Volume) -> str:
    if not draft.spacing_known:
        return "spacing unknown"
    if min(reference.grid.shape) < LEAST_VOXELS:
        return f"the reference has fewer than {LEAST_VOXELS} voxels along an axis"
    return "" if len(draft.scans) > 1 else "one scan alone"


def largest_move(transform: np.ndarray, grid: Grid) -> float:
    """Voxels of `grid` by which a transform (mm) moves the corner that it moves most, along one axis."""
    corners = np.stack(np.meshgrid(*((0, n - 1) for n in grid.shape), indexing="ij"), -1).reshape(-1, 3)
    in_voxels = np.linalg.inv(grid.affine) @ transform @ grid.affine
    moved = corners @ in_voxels[:3, :3].T + in_voxels[:3, 3]
    return float(np.abs(moved - corners).max())
