"""NIfTI headers as the field has them: units other than mm, quaternions a hair too long, two placements at odds."""

import logging
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

_QUIET = logging.Logger("medk2n.quiet", level=logging.CRITICAL + 1)  # nibabel's lines name no file; ours do
_ROUNDING = 1e-3  # of a quaternion's squared length: more is no rounding
_APART_MM = 1.0  # two placements of one image that differ by more are told
_IN_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # code of a unit of space -> millimetres
_UNITS = {1: "metres", 3: "microns"}


class _Header(nib.Nifti1Header):
    """Takes a quaternion that rounding made too long for one of unit length, as other readers do; says nothing."""

    def get_qform_quaternion(self) -> np.ndarray:
        bcd = np.array([self[f"quatern_{name}"] for name in "bcd"], dtype=np.float64)
        length = float(bcd @ bcd)
        if 1.0 < length <= 1.0 + _ROUNDING:
            return np.array([0.0, *(bcd / np.sqrt(length))])
        return np.asarray(super().get_qform_quaternion())

    def check_fix(self, logger: Any = None, error_level: int | None = None) -> None:
        super().check_fix(_QUIET, error_level)

    @classmethod
    def from_fileobj(cls, *args: Any, **kwargs: Any) -> "_Header":
        header: _Header = super().from_fileobj(*args, **kwargs)
        header.check_values()
        return header

    def check_values(self) -> None:
        """Refuse what would make other voxels of those in the file; an image forgets it once it is open."""
        offset, slope, inter = (float(self[name]) for name in ("vox_offset", "scl_slope", "scl_inter"))
        if self.is_single and not offset >= self.single_vox_offset:
            raise HeaderDataError(f"its header says that the voxels begin at byte {offset:g}, inside the header")
        if np.isinf(slope) or (np.isfinite(slope) and slope != 0 and not np.isfinite(inter)):
            raise HeaderDataError(f"its header multiplies the voxels by {slope:g} and adds {inter:g}")


class _PairHeader(_Header, nib.nifti1.Nifti1PairHeader):
    pass


class _Header2(_Header, nib.Nifti2Header):
    pass


class _PairHeader2(_Header, nib.nifti2.Nifti2PairHeader):
    pass


class _Image(nib.Nifti1Image):
    header_class = _Header


class _Pair(nib.Nifti1Pair):
    header_class = _PairHeader


class _Image2(nib.Nifti2Image):
    header_class = _Header2


class _Pair2(nib.Nifti2Pair):
    header_class = _PairHeader2


IMAGE_CLASSES: dict[tuple[int, bool], Any] = {
    (1, True): _Image,
    (1, False): _Pair,
    (2, True): _Image2,
    (2, False): _Pair2,
}
"""(version, in a single file) -> nibabel class that reads such a file."""


def affine_mm(image: Any) -> np.ndarray:
    """(4, 4) voxel -> mm, whatever unit of length the header states (none is taken for mm)."""
    affine = np.array(image.affine, dtype=np.float64)
    affine[:3] *= _IN_MM.get(_unit(image.header), 1.0)
    return affine


def remarks(image: Any) -> list[str]:
    """What was taken on trust or chosen between in the header, for the eyes of a person; often nothing."""
    header, told = image.header, []
    if unit := _UNITS.get(_unit(header)):
        told.append(f"header states {unit}; turned into mm")
    elif _unit(header) not in _IN_MM:
        told.append(f"header states an unknown unit of length (code {_unit(header)}); taken for mm")
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    if not sform and not qform:
        told.append("header states no orientation (sform and qform code 0); taken from the spacing alone")
    if sform and qform:
        told += _at_odds(image)
    if np.isnan(image.extra.get("slope", 1.0)):
        told.append("header multiplies the voxels by no number; taken as they are stored")
    return told


def _unit(header: Any) -> int:
    return int(header["xyzt_units"]) & 7


def _at_odds(image: Any) -> list[str]:
    """Whether qform and sform put some corner of the image at two places."""
    try:
        qform = image.header.get_qform()
    except (HeaderDataError, ValueError):
        return ["qform is damaged; the sform was taken"]
    corners = np.stack(np.meshgrid(*((0, n - 1) for n in image.shape[:3]), indexing="ij"), -1).reshape(-1, 3)
    between = qform - image.header.get_sform()
    shift = corners @ between[:3, :3].T + between[:3, 3]
    most = float(np.linalg.norm(shift, axis=1).max()) * _IN_MM.get(_unit(image.header), 1.0)
    if not most > _APART_MM:
        return []
    return [f"qform and sform place the image up to {most:.4g} mm apart; the sform was taken"]
