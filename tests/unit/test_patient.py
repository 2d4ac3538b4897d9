"""Where the patient is, does not depend on what surrounds the scan: padding, a smaller field of view, storage order."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest

from medk2n.data.patient import air_level, background, is_stripped, patient
from medk2n.data.working import align, scaled, scaled_on
from medk2n.geometry.grid import Grid
from medk2n.geometry.orient import to_canonical
from medk2n.io.volume import Volume

SHAPE = (32, 38, 20)
AFFINE = np.array([[5, 0.3, 0, -80], [-0.3, 5, 0, -90], [0, 0, 6, -60], [0, 0, 0, 1.0]])
X, Y, Z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
HEAD = X**2 + (0.85 * Y) ** 2 + 0.4 * Z**2 < 0.45
SKULL = HEAD & (X**2 + (0.85 * Y) ** 2 + 0.4 * Z**2 > 0.36)
CIRCLE = X**2 + Y**2 < 1
CORNERS = X**2 + Y**2 > 1.6
RNG = np.random.default_rng(0)
CT = np.where(SKULL, 900, np.where(HEAD, 35, -1000)) + RNG.normal(0, 12, SHAPE)
MR = np.abs(np.where(SKULL, 90, np.where(HEAD, 400 + 80 * X, 0)) + RNG.normal(0, 9, SHAPE))


def volume(array: np.ndarray, modality: str, affine: np.ndarray = AFFINE) -> Volume:
    return Volume(np.asarray(array, np.float32), Grid(array.shape, affine), modality)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def framed(array: np.ndarray, value: float) -> np.ndarray:
    out = np.full(SHAPE, value)
    out[3:-3, 3:-3] = array[3:-3, 3:-3]
    return out


PADDED = {
    "circle": lambda a, pad: np.where(CIRCLE, a, pad),
    "corners": lambda a, pad: np.where(CORNERS, pad, a),
    "end slices": lambda a, pad: np.where(abs(Z) > 0.85, pad, a),
    "one side": lambda a, pad: np.where(X > 0.75, pad, a),
    "frame": framed,
    "frame around a circle": lambda a, pad: framed(np.where(CIRCLE, a, pad), pad - 77),
}


@pytest.mark.parametrize("name", PADDED)
@pytest.mark.parametrize(("array", "modality", "pad"), [
    (CT, "ct", -3024), (CT, "ct", -2000), (CT, "ct", -1024), (CT, "ct", 0), (CT, "ct", 3071),
    (CT + 1024, "ct", -2000), (MR, "t1n", -500), (MR, "t1n", -1), (MR, "t1n", 0), (MR + 1e4, "t2w", 0),
    (MR, "t2f", 4095),
])  # fmt: skip
def test_padding_is_no_background(name, array, modality, pad):
    plain, padded = volume(array, modality), volume(PADDED[name](array, pad), modality)
    assert not is_stripped(plain)
    assert not is_stripped(padded)
    kept = ~np.isin(padded.array, [pad, pad - 77])
    assert dice(patient(padded) & kept, patient(plain) & kept) > 0.98
    assert patient(padded)[~kept & ~HEAD].mean() < 1e-3
    (a, _, first), (b, _, second) = scaled(plain, modality), scaled(padded, modality)
    assert first.kind == second.kind
    assert np.abs(a - b)[kept & HEAD].mean() < 0.01


@pytest.mark.parametrize("value", [0.0, -1000.0, -1024.0, -3024.0, 37.0])
def test_a_stripped_image_stays_one(value):
    brain = HEAD & ~SKULL
    for array, modality in ((CT, "ct"), (MR, "t1n")):
        stripped = volume(np.where(brain, array, value), modality)
        assert is_stripped(stripped)
        assert dice(patient(stripped), brain) > 0.98
    twice = volume(np.where(CIRCLE, np.where(brain, MR, 0), -500), "t1n")
    assert dice(patient(twice), brain) > 0.98


def test_a_head_cut_out_of_its_air_stays_whole():
    """Its skin is as dark as anything in it, but not as even as air."""
    skin = HEAD & (X**2 + (0.85 * Y) ** 2 + 0.4 * Z**2 > 0.4)
    faint = np.where(skin, np.abs(RNG.normal(60, 40, SHAPE)), MR)
    cut = volume(np.where(HEAD, faint, 0), "t2f")
    assert is_stripped(cut)
    assert dice(patient(cut), HEAD) > 0.98


@pytest.mark.parametrize(("array", "modality"), [(CT, "ct"), (MR, "t1n"), (MR - 100, "t2w")])
@pytest.mark.parametrize("odd", [None, -30000.0, -5000.0])
def test_a_scan_of_a_smaller_field_of_view_is_judged_by_what_it_shows(array, modality, odd):
    """What it is filled up with on a larger grid is no patient, nor is it taken for a stripped image."""
    array = array.copy()
    if odd is not None:
        array[1, 1, 1] = odd
    small = volume(array[4:-4, 4:-4, 6:-6], modality, AFFINE @ nib.affines.from_matvec(np.eye(3), [4, 4, 6]))
    large = Grid(SHAPE, AFFINE)
    values, inside, scaling = scaled_on(small, large, "t1n")
    alone, mask, own = scaled(small, modality)
    assert scaling == own
    np.testing.assert_array_equal(inside[4:-4, 4:-4, 6:-6], mask)
    np.testing.assert_allclose(values[4:-4, 4:-4, 6:-6], alone, atol=1e-5)
    assert not inside[:4].any()
    assert not values[:, :, :6].any()
    filled = align({"t1n": volume(MR, "t1n"), modality: small}, large, "t1n")[modality]
    assert abs(filled.array[0, 0, 0] - np.median(array[:3, :3])) < 60
    assert not is_stripped(filled)


def test_air_is_the_background_or_the_darkest_or_that_of_the_unit():
    assert air_level(volume(np.where(HEAD, MR, -7), "t1n")) == -7
    assert air_level(volume(CT, "ct")) == -1000
    assert air_level(volume(MR, "t1n")) == pytest.approx(0, abs=1)
    assert air_level(volume(CT + 1024, "ct")) == pytest.approx(0, abs=20)
    assert background(volume(MR, "t1n")) is None


def orientations() -> list[np.ndarray]:
    """All 48 ways to store three axes."""
    return [
        np.array(list(zip(order, flips, strict=True)))
        for order in permutations(range(3))
        for flips in product((1, -1), repeat=3)
    ]


@pytest.mark.parametrize(("array", "modality"), [(CT, "ct"), (np.where(CIRCLE, CT, -2000), "ct"), (MR, "t1n")])
def test_the_patient_is_the_same_in_all_48_storage_orders(array, modality):
    shaped = np.where(HEAD & (abs(X - 0.1) < 0.1) & (Z < 0.3), array.min(), array)  # a cavity open to one side
    image = nib.Nifti1Image(shaped.astype(np.float32), AFFINE)
    expected = scaled(volume(shaped, modality), modality)
    assert len(orientations()) == 48
    for way in orientations():
        turned = image.as_reoriented(way)
        values, inside, scaling = scaled(volume(np.asarray(turned.dataobj), modality, turned.affine), modality)
        assert scaling == expected[2]
        np.testing.assert_array_equal(to_canonical(values, Grid(values.shape, turned.affine))[0], expected[0])
        np.testing.assert_array_equal(to_canonical(inside, Grid(values.shape, turned.affine))[0], expected[1])
