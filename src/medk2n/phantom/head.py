"""What is around the brain: CSF, dura, skull, scalp, face, neck and eyes, as shells of a distance."""

import numpy as np

from medk2n.phantom.anatomy import ellipsoid_level, sigmoid

# Shells over the brain's surface, mm: tissue, mean thickness, deviation.
_SHELLS = (
    ("csf", 0.9, 0.8),
    ("dura", 0.9, 0.1),
    ("bone", 1.7, 0.25),
    ("diploe", 3.0, 0.9),
    ("bone", 1.6, 0.25),
    ("muscle", 0.6, 0.2),
    ("fat", 4.2, 1.2),
    ("skin", 1.8, 0.2),
)
_FACE = (((0.0, 62.0, -58.0), (56.0, 42.0, 52.0)), ((0.0, -18.0, -95.0), (60.0, 62.0, 60.0)))
_EYE = ((33.0, 64.0, -36.0), (11.5, 11.5, 11.5))
_AIR = (
    ((0.0, 74.0, -44.0), (9.0, 16.0, 18.0)),
    ((26.0, 58.0, -62.0), (11.0, 13.0, 12.0)),
    ((0.0, 30.0, -68.0), (11.0, 18.0, 12.0)),
)


def head_distance(outside_mm: np.ndarray, points_mm: np.ndarray, total_mm: float) -> np.ndarray:
    """Signed distance (n,) to the skin, negative inside: shells over the brain joined with face and neck."""
    distance = outside_mm - np.float32(total_mm)
    for centre, axes in _FACE:
        ellipsoid = (ellipsoid_level(points_mm, centre, axes) - 1) * min(axes)
        # A smooth union (log-sum-exp over 8 mm) leaves no crease between skull and face.
        distance = -np.logaddexp(-distance / 4, -ellipsoid / 4) * 4
    return distance.astype(np.float32)


def mean_thickness() -> float:
    """Millimetres from brain to air over the vault."""
    return sum(row[1] for row in _SHELLS)


def head_fractions(
    outside_mm: np.ndarray, skin_mm: np.ndarray, points_mm: np.ndarray, wobble: np.ndarray, width_mm: float
) -> dict[str, np.ndarray]:
    """Fractions of every non-brain tissue at points; with the brain's own share (`1 - sum`) and air they sum to 1.

    Args:
        outside_mm: (n,) signed distance to the brain.
        skin_mm: (n,) signed distance to the skin, negative inside.
        points_mm: (n, 3) MNI millimetres.
        wobble: (2, n) smooth fields of unit deviation that vary the thicknesses.
        width_mm: width of the soft border between shells (partial volume).
    """
    soft = np.float32(4.0 / max(width_mm, 0.5))
    inside = sigmoid(-soft * skin_mm)
    out: dict[str, np.ndarray] = {}
    edge = np.float32(0.6) * np.ones_like(outside_mm)
    reached = sigmoid(soft * (outside_mm - edge))  # 1 beyond the shell's inner edge
    for i, (name, thickness, deviation) in enumerate(_SHELLS[:5]):
        edge = edge + np.maximum(thickness + deviation * wobble[i % 2], 0.3)
        beyond = sigmoid(soft * (outside_mm - edge))
        out[name] = out.get(name, 0) + (reached - beyond) * inside
        reached = beyond
    _open_foramen(out, points_mm)
    soft_tissue = reached * inside
    depth = -skin_mm
    skin = sigmoid(soft * (1.9 - depth))
    fat = sigmoid(soft * (1.9 + np.maximum(3.6 + 1.3 * wobble[0], 0.8) - depth)) - skin
    out["skin"] = soft_tissue * skin
    out["fat"] = soft_tissue * np.maximum(fat, 0)
    out["muscle"] = soft_tissue - out["skin"] - out["fat"]
    _hollow(out, points_mm, wobble)
    return out


def _open_foramen(out: dict[str, np.ndarray], points_mm: np.ndarray) -> None:
    """The skull is open where the spinal cord leaves: bone becomes CSF there."""
    hole = sigmoid(6 * (1 - ellipsoid_level(points_mm, (0, -40, -74), (15, 15, 26))))
    for name in ("bone", "diploe", "dura"):
        out["csf"] = out["csf"] + hole * out[name]
        out[name] = out[name] * (1 - hole)


def _hollow(out: dict[str, np.ndarray], points_mm: np.ndarray, wobble: np.ndarray) -> None:
    """Orbits (eyes in fat), facial bone, and the air of nose and sinuses, cut out of face muscle."""
    orbit = sigmoid(8 * (1 - ellipsoid_level(points_mm, (31, 56, -36), (17, 22, 16))))
    eye = sigmoid(12 * (1 - ellipsoid_level(points_mm, *_EYE)))
    out["fat"] = out["fat"] + orbit * (1 - eye) * out["muscle"]
    out["eye"] = orbit * eye * out["muscle"]
    out["muscle"] = out["muscle"] * (1 - orbit)
    for centre, axes in _AIR:
        level = ellipsoid_level(points_mm, centre, axes) + 0.08 * wobble[1]
        wall, air = sigmoid(8 * (1.15 - level)), sigmoid(8 * (1 - level))
        out["bone"] = out["bone"] + 0.7 * (wall - air) * out["muscle"]
        out["muscle"] = out["muscle"] * (1 - air - 0.7 * (wall - air))
    # Fat between the muscles of face and neck, and bone of base and jaw: blobs of the slow fields.
    face = sigmoid(0.4 * (-38 - points_mm[:, 2]))
    streak = face * sigmoid(5 * (wobble[1] - 0.7))
    lump = face * sigmoid(6 * (wobble[0] - 1.0))
    out["fat"] = out["fat"] + streak * (1 - lump) * out["muscle"]
    out["diploe"] = out["diploe"] + lump * out["muscle"]
    out["muscle"] = out["muscle"] * (1 - streak) * (1 - lump)
