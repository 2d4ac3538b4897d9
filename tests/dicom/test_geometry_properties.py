"""DICOM geometry: whatever is written is read back in its place, for any orientation, spacing and origin."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from scipy.spatial.transform import Rotation

from medk2n.dicom import Maker, write_series
from medk2n.dicom.geometry import Planes
from medk2n.dicom.regular import regular
from medk2n.dicom.scale import rescale

from .here import folder, read_here
from .sources import CONTRASTS, Patient, classic, enhanced

spacings = st.floats(0.2, 8.0)
origins = st.floats(-900, 900)
angles = st.floats(-180, 180)


@st.composite
def affines(draw) -> np.ndarray:
    """Any right-angled affine, left-handed ones too."""
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", [draw(angles) for _ in range(3)], degrees=True).as_matrix()
    flip = np.diag([1.0, 1.0, draw(st.sampled_from([-1.0, 1.0]))])
    affine[:3, :3] = turn @ flip * [draw(spacings) for _ in range(3)]
    affine[:3, 3] = [draw(origins) for _ in range(3)]
    return affine


shapes = st.tuples(st.integers(3, 6), st.integers(3, 7), st.integers(5, 8))


@settings(deadline=None, max_examples=40)
@given(
    affine=affines(),
    shape=shapes,
    kind=st.sampled_from(["classic", "enhanced"]),
    modality=st.sampled_from(["t1n", "ct"]),
)
def test_voxels_keep_their_place_through_reading_and_writing(affine, shape, kind, modality):
    stored = np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape).astype(np.int16)
    what = "CT" if modality == "ct" else "MR"
    with folder() as place:
        if kind == "classic":
            classic(place / "in", stored, affine, Patient(), kind=what, **CONTRASTS[modality])
        else:
            order = np.random.default_rng(1).permutation(shape[2])
            enhanced(place / "in" / "x", stored, affine, Patient(), kind=what, order=order, **CONTRASTS[modality])
        study = read_here(place / "in")
        volume = study.volumes[modality]
        _same_places(stored, affine, volume.array, volume.grid.affine)
        maker = Maker("test", "ab" * 32, "1.0")
        files = write_series(
            volume, study, place.joinpath, reference=modality, sources=[modality], maker=maker, burnt=False
        )
        made = [dcmread(path) for path in files]
    values = np.stack([d.pixel_array * float(d.RescaleSlope) + float(d.RescaleIntercept) for d in made], axis=-1)
    values = values.transpose(1, 0, 2)
    lps = np.eye(4)
    row, column = np.array(made[0].ImageOrientationPatient, float).reshape(2, 3)
    first, last = (np.array(d.ImagePositionPatient, float) for d in (made[0], made[-1]))
    lps[:3, 0], lps[:3, 1] = row * float(made[0].PixelSpacing[1]), column * float(made[0].PixelSpacing[0])
    lps[:3, 2], lps[:3, 3] = (last - first) / (len(made) - 1), first
    step = float(made[0].RescaleSlope)
    _same_places(stored, affine, values, np.diag([-1.0, -1, 1, 1]) @ lps, tolerance=step)


def _same_places(a: np.ndarray, a_affine: np.ndarray, b: np.ndarray, b_affine: np.ndarray, *, tolerance=0.0) -> None:
    """Every voxel of `a` lies on one of `b`, within 1e-4 mm, and has its value."""
    index = np.indices(a.shape).reshape(3, -1)
    places = a_affine[:3, :3] @ index + a_affine[:3, 3:]
    back = np.linalg.inv(b_affine) @ np.vstack([places, np.ones(index.shape[1])])
    nearest = np.rint(back[:3]).astype(int)
    assert np.abs(b_affine[:3, :3] @ nearest + b_affine[:3, 3:] - places).max() < 1e-4
    np.testing.assert_allclose(b[tuple(nearest)], a.reshape(-1), atol=tolerance * 0.501 + 1e-3)


@settings(deadline=None, max_examples=40)
@given(
    slides=st.tuples(st.floats(-0.9, 0.9), st.floats(-0.9, 0.9)),
    steps=st.lists(st.floats(1.6, 2.4), min_size=6, max_size=12),
    turn=st.tuples(angles, angles, angles),
)
def test_a_ramp_survives_any_tilt_and_spacing(slides, steps, turn):
    """A field that is linear in space is not changed by linear interpolation, wherever the slices lie."""
    row, column, normal = Rotation.from_euler("xyz", turn, degrees=True).as_matrix().T
    heights = np.r_[0.0, np.cumsum(steps)]
    positions = np.outer(heights, normal + slides[0] * row / 8 + slides[1] * column / 8) + [3.0, 4.0, 5.0]
    planes = Planes(positions, row, column, (1.1, 0.9), (16, 15))
    gradient = np.array([1.0, -2.0, 0.5])

    def field(planes: Planes) -> np.ndarray:
        rows, columns = planes.shape
        along = np.arange(columns)[:, None] * planes.spacing_mm[1] * planes.row
        down = np.arange(rows)[:, None, None] * planes.spacing_mm[0] * planes.column
        return (planes.positions[:, None, None] + down + along) @ gradient

    array, upright = regular(field(planes).astype(np.float32), planes)
    assert upright.even
    assert upright.straight
    expected = field(upright)
    low, high = np.floor(planes.slides.min(0)).astype(int), np.ceil(planes.slides.max(0)).astype(int)
    wide, tall = (high - low)[0] + 1, (high - low)[1] + 1
    inner = (slice(None), slice(tall, -tall or None), slice(wide, -wide or None))
    assert expected[inner].size
    np.testing.assert_allclose(array[inner], expected[inner], atol=1e-2)


@settings(deadline=None)
@given(low=st.floats(-1e5, 1e5), width=st.floats(1e-3, 1e5), zero=st.booleans())
def test_rescaling_is_within_half_a_step(low, width, zero):
    array = np.linspace(0 if zero else low, (0 if zero else low) + width, 60, dtype=np.float32).reshape(3, 4, 5)
    scale = rescale(array, hounsfield=False)
    assert all(len(text) <= 16 for text in vars(scale).values())
    back = scale.store(array).astype(float) * scale.slope + float(scale.intercept_text)
    assert np.abs(back - array).max() <= 0.5001 * scale.slope + 1e-6 * np.abs(array).max()
    spread = float(array.max()) - float(array.min())
    assert scale.slope <= 1.001 * spread / 32766 or spread == 0
