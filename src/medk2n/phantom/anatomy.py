"""The anatomy that subjects are bent from: tissue maps in the MNI frame, from ICBM152 or from one real head.

The ICBM152 maps (Fonov et al. 2011, shipped with nilearn) are group averages: folds are blurred and
sulci closed. `brain_fractions` gives them back: classes are hardened, and CSF is carved where grey
matter is thicker than cortex can be, along the middle between two white-matter blades.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.ndimage import binary_closing, binary_opening, distance_transform_edt, gaussian_filter

from medk2n.phantom.deform import sample

CHANNELS = ("grey", "white", "csf", "detail", "from_white", "from_ventricle", "from_outside")
# The MNI frame is larger than life: its brain, with the CSF between the folds, holds 2 litres, an adult's 1.45.
_ICBM152_LIFE_SIZE = (0.9, 0.9, 0.9)
_SHELL_STEP_MM = 2.0  # the distance map around the brain is smooth and may be coarse

# Deep grey nuclei, right side, MNI millimetres: centre, half axes. After the Harvard-Oxford and Talairach
# atlases, rounded. Left is the mirror image.
_NUCLEI: dict[str, tuple[tuple[tuple[float, float, float], tuple[float, float, float]], ...]] = {
    "thalamus": (((11, -19, 7), (9, 13, 8)),),
    "caudate": (((12, 13, 7), (5.5, 10, 8)), ((15, -2, 18), (4.5, 12, 5))),
    "putamen": (((26, 4, 1), (6, 15, 9)),),
    "pallidum": (((20, -4, -1), (4.5, 8, 5.5)),),
}
_CHOROID = (((23, -41, 9), (4, 6, 4)), ((10, -10, 18), (2, 12, 2)))


@dataclass(frozen=True, eq=False)
class Anatomy:
    """Maps of one brain in the MNI frame.

    Attributes:
        maps: (channels, x, y, z) float32 as `CHANNELS`: posteriors in 0..1, T1 detail (high-pass, unit
            deviation), distances in mm (from white matter; from ventricles; inwards from the brain's surface).
        affine: (4, 4) voxel -> MNI millimetres of `maps`.
        outside_mm: (x, y, z) float32 on a padded lattice: signed distance to the brain, negative inside.
        outside_affine: (4, 4) of `outside_mm`.
        life_size: (3,) millimetres of a head as it is in life per MNI millimetre, along each axis.
        blurred: the maps are a group average whose folds need carving.
        name: where it came from, for the records.
    """

    maps: np.ndarray
    affine: np.ndarray
    outside_mm: np.ndarray
    outside_affine: np.ndarray
    life_size: np.ndarray
    blurred: bool
    name: str

    def at(self, points_mm: np.ndarray) -> dict[str, np.ndarray]:
        """Every channel at MNI points (n, 3); a dict of (n,) float32."""
        values = sample(self.maps, to_voxels(self.affine, points_mm))
        return dict(zip(CHANNELS, values, strict=True))

    def distance_outside(self, points_mm: np.ndarray) -> np.ndarray:
        """Signed distance in mm to the brain's surface at MNI points (n, 3); negative inside."""
        return sample(self.outside_mm[None], to_voxels(self.outside_affine, points_mm))[0]


def to_voxels(affine: np.ndarray, points_mm: np.ndarray) -> np.ndarray:
    """Millimetres (n, 3) -> voxel indices of a grid."""
    inverse = np.linalg.inv(affine).astype(np.float32)
    return points_mm @ inverse[:3, :3].T + inverse[:3, 3]


@lru_cache(maxsize=2)
def load_icbm152() -> Anatomy:
    """The ICBM152 2009a symmetric maps that nilearn ships; no network."""
    from nilearn import datasets

    load = {
        "t1": datasets.load_mni152_template,
        "grey": datasets.load_mni152_gm_template,
        "white": datasets.load_mni152_wm_template,
        "mask": datasets.load_mni152_brain_mask,
    }
    images = {name: loader(resolution=1) for name, loader in load.items()}
    arrays = {name: image.get_fdata(dtype=np.float32) for name, image in images.items()}
    mask = arrays["mask"] > 0.5
    return build_anatomy(
        arrays["t1"],
        arrays["grey"],
        arrays["white"],
        mask,
        images["t1"].affine,
        life_size=np.array(_ICBM152_LIFE_SIZE),
        blurred=True,
        name="ICBM152 2009a",
    )


def build_anatomy(
    t1: np.ndarray,
    grey: np.ndarray,
    white: np.ndarray,
    mask: np.ndarray,
    affine: np.ndarray,
    *,
    life_size: np.ndarray,
    blurred: bool,
    name: str,
) -> Anatomy:
    """Derive the distance and detail maps from posteriors on a 1 mm grid in the MNI frame."""
    csf = np.clip(1 - grey - white, 0, 1) * mask
    detail = (t1 - gaussian_filter(t1, 4)) * mask
    detail /= max(float(detail[mask].std()), 1e-6)
    from_white = distance_transform_edt(white < 0.45).astype(np.float32)
    shell, shell_affine = _shell(mask, affine)
    inwards = np.minimum(distance_transform_edt(mask), 60).astype(np.float32)
    ventricles = _ventricles(csf, inwards, affine)
    from_ventricle = distance_transform_edt(~ventricles) if ventricles.any() else np.full(mask.shape, 60.0)
    maps = np.stack([grey * mask, white * mask, csf, detail, np.minimum(from_white, 15), from_ventricle, inwards])
    return Anatomy(maps.astype(np.float32), np.asarray(affine, float), shell, shell_affine, life_size, blurred, name)


def _ventricles(csf: np.ndarray, inwards: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """CSF deep in the brain, above the brain stem and near the midline."""
    x, y, z = np.ogrid[tuple(slice(0, n) for n in csf.shape)]
    x, y, z = (affine[i, i] * index + affine[i, 3] for i, index in enumerate((x, y, z)))  # no rotation in MNI's frame
    near = (np.abs(x) < 40) & (y > -65) & (y < 40) & (np.abs(z - 10) < 22)
    return binary_opening((csf > 0.5) & (inwards > 22) & near)


def _shell(mask: np.ndarray, affine: np.ndarray, margin_mm: float = 50.0) -> tuple[np.ndarray, np.ndarray]:
    """Signed distance to the brain's closed surface on a coarse lattice that reaches `margin_mm` beyond the grid."""
    step = max(1, round(_SHELL_STEP_MM / abs(affine[0, 0])))
    pad = int(margin_mm / _SHELL_STEP_MM)
    coarse = np.pad(mask[::step, ::step, ::step], pad)
    coarse = binary_closing(coarse, iterations=4)
    distance = distance_transform_edt(~coarse) - distance_transform_edt(coarse)
    distance = gaussian_filter(distance * _SHELL_STEP_MM, 0.7)
    scale = np.diag([step, step, step, 1.0])
    scale[:3, 3] = -pad * step
    return distance.astype(np.float32), affine @ scale


def ellipsoid_level(points_mm: np.ndarray, centre: tuple[float, ...], axes: tuple[float, ...]) -> np.ndarray:
    """Mirror-symmetric ellipsoid: 0 at its centre, 1 at its surface; (n,) float32."""
    mirrored = np.abs(points_mm[:, 0]) - np.float32(centre[0])
    y, z = points_mm[:, 1] - np.float32(centre[1]), points_mm[:, 2] - np.float32(centre[2])
    return np.sqrt((mirrored / axes[0]) ** 2 + (y / axes[1]) ** 2 + (z / axes[2]) ** 2).astype(np.float32)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), safe for any x."""
    return (1 / (1 + np.exp(-np.clip(x, -30, 30)))).astype(np.float32)


def _blob(points_mm: np.ndarray, parts: tuple, wobble: np.ndarray) -> np.ndarray:
    """Soft membership of a union of ellipsoids; the border is about a millimetre wide."""
    weight = np.zeros(len(points_mm), np.float32)
    for centre, axes in parts:
        level = ellipsoid_level(points_mm, centre, axes)
        weight = np.maximum(weight, sigmoid((1 - level + 0.06 * wobble) * 2 * min(axes)))
    return weight


def _regions(points_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Soft masks of the cerebellum and of the deep brain (nuclei, capsules, brain stem), where no cortex is."""
    x, y, z = np.abs(points_mm[:, 0]), points_mm[:, 1], points_mm[:, 2]
    tentorium = -9 + 0.28 * (y + 42) + 14 * np.exp(-((x / 14) ** 2))  # the vermis rises above the hemispheres
    cerebellum = sigmoid(0.8 * (tentorium - z)) * sigmoid(0.8 * (-36 - y)) * sigmoid(0.5 * (54 - x))
    deep = sigmoid(4 * (1.25 - ellipsoid_level(points_mm, (14, -5, 4), (22, 32, 17))))
    stem = sigmoid(4 * (1.2 - ellipsoid_level(points_mm, (0, -26, -32), (18, 14, 30))))
    return cerebellum, np.maximum(deep, stem)


def brain_fractions(
    anatomy: Anatomy, points_mm: np.ndarray, channels: Mapping[str, np.ndarray], ripple: np.ndarray, sharpness: float
) -> dict[str, np.ndarray]:
    """Fractions of grey, white, csf, the nuclei and choroid plexus at brain points; they sum to 1.

    Args:
        anatomy: whose `channels` these are.
        points_mm: (n, 3) MNI millimetres.
        channels: `anatomy.at(points_mm)`.
        ripple: (3, n) random fields of unit deviation that make the folds this subject's own.
        sharpness: power of the posteriors; larger means narrower borders.
    """
    log = {name: np.log(channels[name] + 0.01) for name in ("grey", "white", "csf")}
    cerebellum, deep = _regions(points_mm)
    if anatomy.blurred:
        _carve_folds(log, channels, (1 - cerebellum) * (1 - deep), ripple)
        _carve_folia(log, points_mm, cerebellum, ripple)
    amount = np.stack([sharpness * (log[name] + 0.25 * ripple[i]) for i, name in enumerate(log)])
    amount = np.exp(amount - amount.max(axis=0))
    amount /= amount.sum(axis=0)
    fractions = dict(zip(log, amount, strict=True))
    _place_nuclei(fractions, points_mm, ripple[2])
    return fractions


def _carve_folds(
    log: dict[str, np.ndarray], channels: Mapping[str, np.ndarray], cortex: np.ndarray, ripple: np.ndarray
) -> None:
    """Open sulci: where cortex would be too thick, and where the average T1 keeps a dark trace of one."""
    thickness = 3.9 + 0.5 * ripple[0]
    trace = np.clip(-0.75 - channels["detail"], -1.5, 1.5)  # above 0 in the dark lines between gyri
    too_thick = 2.2 * (channels["from_white"] - thickness) + 2.5 * trace
    log["csf"] = np.logaddexp(log["csf"], log["grey"] + np.clip(too_thick, -8, 1.5) + np.log(cortex + 1e-4))
    log["white"] = log["white"] + cortex * np.clip(0.9 * channels["detail"], -0.8, 0.8)  # and crowns their core


def _carve_folia(log: dict[str, np.ndarray], points_mm: np.ndarray, cerebellum: np.ndarray, ripple: np.ndarray) -> None:
    """Leaf-like ripples around the cerebellum's middle, with a thin white core in each."""
    offset = points_mm - np.float32([0, -52, -28])
    radius = np.sqrt((0.75 * offset[:, 0]) ** 2 + (1.0 * offset[:, 1]) ** 2 + (1.5 * offset[:, 2]) ** 2)
    wave = np.sin(2 * np.pi * radius / 6.0 + 0.9 * ripple[1])
    log["csf"] = np.logaddexp(log["csf"], log["grey"] + 1.6 * (wave - 1.1) + np.log(cerebellum + 1e-4))
    log["white"] = np.logaddexp(log["white"], log["grey"] + 2.0 * (-wave - 0.75) + np.log(cerebellum + 1e-4))


def _place_nuclei(fractions: dict[str, np.ndarray], points_mm: np.ndarray, wobble: np.ndarray) -> None:
    """Turn brain tissue within each nucleus into it; caudate and putamen keep the shape of the grey map."""
    for name, parts in _NUCLEI.items():
        weight = _blob(points_mm, parts, wobble)
        donors = ("grey",) if name in ("caudate", "putamen") else ("grey", "white")
        fractions[name] = np.zeros_like(weight)
        for donor in donors:
            taken = weight * fractions[donor]
            fractions[donor] = fractions[donor] - taken
            fractions[name] += taken
    taken = _blob(points_mm, _CHOROID, 3 * wobble) * fractions["csf"] * (wobble > -0.3)
    fractions["csf"] = fractions["csf"] - taken
    fractions["choroid"] = taken
