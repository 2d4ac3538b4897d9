"""Reading a study: sorted, split, resampled or refused, never silently stacked."""

import shutil

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless, generate_uid

from medk2n.dicom import Maker, holds_dicom, write_series
from medk2n.errors import DicomError, UnknownNameError, UsageError
from medk2n.geometry.grid import Grid
from medk2n.geometry.resample import resample

from .conftest import AFFINE, SHAPE, scan
from .here import read_here
from .sources import CONTRASTS, FLAIR, T1, T1C, T2, classic, ds, enhanced

TURNS = {
    "axial": np.diag([-1.0, -1.0, 1.0]),
    "sagittal": np.array([[0, 0, 1.0], [-1, 0, 0], [0, -1, 0]]),
    "coronal": np.array([[-1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
}


def world(volume) -> tuple[np.ndarray, np.ndarray]:
    """Sorted (x, y, z) of the voxels and their values: equal for two volumes of the same anatomy in any axes."""
    index = np.indices(volume.array.shape).reshape(3, -1)
    places = (volume.grid.affine[:3, :3] @ index + volume.grid.affine[:3, 3:]).T.round(3)
    order = np.lexsort(places.T)
    return places[order], volume.array.reshape(-1)[order]


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("kind", ["classic", "enhanced"])
@pytest.mark.parametrize("modality", ["t1n", "ct"])
def test_voxels_lie_where_they_were_acquired(tmp_path, patient, turn, kind, modality):
    affine = np.eye(4)
    affine[:3, :3] = TURNS[turn] * [0.9, 1.1, 3.0]
    affine[:3, 3] = [5, -7, 11]
    what = "CT" if modality == "ct" else "MR"
    stored, scale = scan() + 24, {"slope": 2.0, "intercept": -1024.0 if modality == "ct" else 0.0}
    if kind == "classic":
        classic(tmp_path, stored, affine, patient, kind=what, **scale, **CONTRASTS[modality])
    else:
        order = np.random.default_rng(0).permutation(SHAPE[2])
        enhanced(tmp_path / "one", stored, affine, patient, kind=what, order=order, **scale, **CONTRASTS[modality])
    volume = read_here(tmp_path).volumes[modality]
    from medk2n.io.volume import Volume

    source = Volume(stored * scale["slope"] + scale["intercept"], Grid(SHAPE, affine), modality)
    places, values = world(volume)
    expected_places, expected = world(source)
    np.testing.assert_allclose(places, expected_places, atol=2e-3)
    np.testing.assert_array_equal(values, expected)


def test_one_multiframe_file_is_a_study(tmp_path, patient):
    enhanced(tmp_path / "one", scan(), AFFINE, patient, **T2)
    assert holds_dicom(tmp_path / "one")
    assert read_here(tmp_path / "one").volumes["t2w"].array.shape == SHAPE
    (tmp_path / "scan.nii").write_bytes(bytes(400))
    assert not holds_dicom(tmp_path / "scan.nii")


def test_padding_of_ct_is_air(tmp_path, patient):
    stored = scan()
    stored[0, 0, :] = -2000
    classic(tmp_path, stored, AFFINE, patient, kind="CT", PixelPaddingValue=-2000)
    volume = read_here(tmp_path).volumes["ct"]
    assert volume.array.min() == -1000


@pytest.mark.parametrize(
    ("syntax", "plugin"),
    [
        (RLELossless, None),
        (JPEG2000Lossless, "pylibjpeg"),
        (JPEGLSLossless, "pyjpegls"),
    ],
    ids=["RLE", "JPEG 2000", "JPEG-LS"],
)
def test_compressed_pixels_are_read(tmp_path, patient, syntax, plugin):
    stored = np.tile(np.abs(scan()).astype(np.uint16), (3, 3, 1))  # JPEG 2000 wants a picture of some size
    classic(tmp_path / "plain", stored, AFFINE, patient, **T1)
    shutil.copytree(tmp_path / "plain", tmp_path / "packed")
    for path in (tmp_path / "packed").iterdir():
        data = dcmread(path)
        data.compress(syntax, generate_instance_uid=False, **({"encoding_plugin": plugin} if plugin else {}))
        data.save_as(path)
    plain, packed = (read_here(tmp_path / name).volumes["t1n"] for name in ("plain", "packed"))
    np.testing.assert_array_equal(plain.array, packed.array)


def test_deflated_and_big_files_are_read(tmp_path, patient):
    classic(tmp_path, scan(), AFFINE, patient, **T1)
    plain = read_here(tmp_path).volumes["t1n"].array
    for path in tmp_path.iterdir():
        data = dcmread(path)
        data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
        data.save_as(path)
    np.testing.assert_array_equal(read_here(tmp_path).volumes["t1n"].array, plain)


def test_jpeg_is_among_the_decoders():
    """Nothing here writes lossless JPEG; that it is read is the plug-ins' promise."""
    from pydicom.pixels import get_decoder

    assert get_decoder(JPEGLosslessSV1).is_available


def test_echoes_contrast_and_b_values_of_one_series_are_parted(tmp_path, patient):
    uid = generate_uid()
    for number, attributes in enumerate((T1, T1C, T2)):
        classic(tmp_path / str(number), scan(number), AFFINE, patient, series=uid, **attributes)
    study = read_here(tmp_path)
    assert {name: series.uid.partition("#")[0] for name, series in study.series.items()} == dict.fromkeys(
        ("t1n", "t1c", "t2w"), uid
    )
    assert len({series.uid for series in study.series.values()}) == 3
    for number, name in enumerate(("t1n", "t1c", "t2w")):
        assert read_here(tmp_path, series={name: study.series[name].uid}).series[name].uid == study.series[name].uid
        np.testing.assert_array_equal(np.sort(study.volumes[name].array, None), np.sort(scan(number), None))


def test_a_localiser_and_what_is_derived_are_left_out_and_said(tmp_path, patient):
    classic(tmp_path / "a", scan(), AFFINE, patient, **T1)
    classic(tmp_path / "b", scan(), AFFINE, patient, number=2, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], **T2)
    made = classic(tmp_path / "c", scan(), AFFINE, patient, number=3, ImageType=["DERIVED", "SECONDARY", "MPR"], **T2)
    classic(tmp_path / "d", scan(), AFFINE, patient, number=4, ImageType=["ORIGINAL", "PRIMARY", "P"], **T2)
    classic(tmp_path / "e", scan()[:, :, :3], AFFINE, patient, number=5, **T2)
    classic(tmp_path / "f", scan(), AFFINE, patient, number=6, SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    classic(tmp_path / "g", scan(), AFFINE, patient, number=7, SyntheticData="YES", **T2)
    classic(tmp_path / "h", scan(), AFFINE, patient, number=8, EchoTime=50, RepetitionTime=1500)
    mosaic = ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]
    classic(tmp_path / "i", scan(), AFFINE, patient, number=9, ImageType=mosaic, **T2)
    (tmp_path / "README").write_text("hello")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    study = read_here(tmp_path)
    assert list(study.series) == ["t1n"]
    reasons = " | ".join(row.reason for row in study.left_out)
    for word in (
        "localiser",
        "derived",
        "phase",
        "3 slices",
        "Secondary Capture",
        "synthetic",
        "not recognised",
        "mosaic",
    ):
        assert word in reasons
    assert study.notes == ("1 files that are no DICOM were left out", "1 links were not followed")
    assert list(read_here(tmp_path, series={"T2w": made}).series) == ["t2w", "t1n"]


def test_modalities_that_nobody_wants_are_left_out(tmp_path, patient):
    classic(tmp_path / "a", scan(), AFFINE, patient, **T1)
    classic(tmp_path / "b", scan(), AFFINE, patient, number=2, SeriesDescription="TOF", ScanOptions="TOF")
    study = read_here(tmp_path, known=["t1n", "t2w"])
    assert [row.reason for row in study.left_out] == ["mra, which the model does not know"]


def test_two_series_of_one_contrast_are_named_and_chosen(tmp_path, patient):
    uids = [classic(tmp_path / name, scan(), AFFINE, patient, number=n, **T2) for n, name in enumerate("ab", 1)]
    with pytest.raises(DicomError, match=r"2 series are t2w: .* and .*; choose one with --series t2w=") as told:
        read_here(tmp_path)
    assert all(uid in str(told.value) for uid in uids)
    study = read_here(tmp_path, series={"t2w": uids[1]})
    assert study.series["t2w"].uid == uids[1]
    assert study.left_out[0].reason == "t2w, for which --series names another"


def test_a_doubt_is_named_and_decided(tmp_path, patient):
    uid = classic(tmp_path, scan(), AFFINE, patient, **T2 | {"SeriesDescription": "AX T1"})
    with pytest.raises(DicomError, match=rf"{uid} may be t1n \(.*\) or t2w \(TE 98 ms, TR 4200 ms\); say which: "):
        read_here(tmp_path)
    assert list(read_here(tmp_path, series={"t1n": uid}).series) == ["t1n"]


def test_a_wish_for_what_is_not_there_is_refused(tmp_path, patient):
    uid = classic(tmp_path, scan(), AFFINE, patient, **T2)
    with pytest.raises(UsageError, match=f"--series t1n=1.2.3: no such series of images; there are: {uid}"):
        read_here(tmp_path, series={"t1n": "1.2.3"})
    with pytest.raises(UnknownNameError, match="unknown modality"):
        read_here(tmp_path, series={"t9": uid})


def test_the_same_files_twice_are_taken_once(tmp_path, patient):
    classic(tmp_path / "a", scan(), AFFINE, patient, **T1)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    study = read_here(tmp_path)
    assert study.volumes["t1n"].array.shape == SHAPE
    assert study.notes == (f"{SHAPE[2]} copies of images that are there twice were left out",)
    first = next((tmp_path / "b").iterdir())
    data = dcmread(first)
    data.ImagePositionPatient = [1, 2, 3]
    data.save_as(first)
    with pytest.raises(DicomError, match="two different images have one SOPInstanceUID"):
        read_here(tmp_path)


def test_several_slices_in_one_place_are_refused(tmp_path, patient):
    uid = classic(tmp_path / "a", scan(), AFFINE, patient, **T1)
    classic(tmp_path / "b", scan(1), AFFINE, patient, series=uid, **T1)
    with pytest.raises(DicomError, match=f"{SHAPE[2]} slices lie where another lies"):
        read_here(tmp_path)


def test_repetitions_in_time_are_parted(tmp_path, patient):
    uid = classic(tmp_path / "a", scan(), AFFINE, patient, TemporalPositionIdentifier=1, **T1)
    classic(tmp_path / "b", scan(1), AFFINE, patient, series=uid, TemporalPositionIdentifier=2, **T1)
    with pytest.raises(DicomError, match=rf"2 series are t1n: {uid} .* and {uid}#2"):
        read_here(tmp_path)


def without(folder, *numbers: int) -> None:
    for path in folder.iterdir():
        if dcmread(path, stop_before_pixels=True).InstanceNumber in numbers:
            path.unlink()


def test_a_missing_slice_is_refused(tmp_path, patient):
    classic(tmp_path, scan(), AFFINE, patient, **T1)
    without(tmp_path, 7)
    with pytest.raises(DicomError, match=r"after slice 6 of 15 the next lies 5.* expected 2.5.* slices are missing"):
        read_here(tmp_path)


def test_an_image_without_a_place_spoils_its_series_alone(tmp_path, patient):
    classic(tmp_path / "a", scan(), AFFINE, patient, **T1)
    classic(tmp_path / "b", scan(), AFFINE, patient, number=2, **T2)
    last = max((tmp_path / "b").iterdir(), key=lambda path: dcmread(path).InstanceNumber)
    data = dcmread(last)
    del data.ImagePositionPatient
    data.save_as(last)
    with pytest.raises(DicomError, match=r"\(t2w\): an image of it cannot be used \(does not say where it lies\)"):
        read_here(tmp_path)
    assert list(read_here(tmp_path, known=["t1n"]).series) == ["t1n"]


def moved(folder, move) -> None:
    """Let `move` change the position (LPS) of every slice, given its number from 0."""
    for path in folder.iterdir():
        data = dcmread(path)
        position = np.array(data.ImagePositionPatient, float)
        data.ImagePositionPatient = ds(move(position, data.InstanceNumber - 1))
        data.save_as(path)


UPRIGHT = np.diag([-1.0, -1.0, 2.0, 1.0])


def waves(shape=(40, 44, 20)) -> np.ndarray:
    """Smooth, so that interpolating it changes little; int16."""
    x, y, z = np.indices(shape)
    return (400 + 100 * np.sin(x / 7) + 100 * np.cos(y / 8) + 100 * np.sin(z / 6)).astype(np.int16)


def test_a_tilted_gantry_is_made_upright(tmp_path, patient):
    """Each slice slides 0.4 mm to posterior: the anatomy must stay where it is in the room."""
    stored = waves()
    shear = UPRIGHT.copy()
    shear[1, 2] = -0.4
    tilted = resample(stored, Grid(stored.shape, UPRIGHT), Grid(stored.shape, shear)).astype(np.int16)
    classic(tmp_path, tilted, UPRIGHT, patient, kind="CT")
    moved(tmp_path, lambda position, k: position + [0, 0.4 * k, 0])
    study = read_here(tmp_path)
    volume = study.volumes["ct"]
    assert "tilted gantry" in study.notes[0]
    assert volume.grid.affine[1, 2] == pytest.approx(0)
    assert volume.array.shape == (40, 44 + 8, 20)
    maker = Maker("test", "ab" * 32, "1.0")
    files = write_series(volume, study, tmp_path.joinpath, reference="ct", sources=["ct"], maker=maker)
    made = [np.array(dcmread(path).ImagePositionPatient, float) for path in files]
    np.testing.assert_allclose(np.diff(made, axis=0), np.tile([0, 0, 2.0], (19, 1)), atol=1e-4)
    back = resample(volume.array, volume.grid, Grid(stored.shape, UPRIGHT))
    inner = (slice(2, -2), slice(9, -9), slice(1, -1))
    assert np.abs(back - stored)[inner].max() < 12  # of a range of 600, and 100 without the cure
    assert np.abs(tilted.astype(float) - stored)[inner].max() > 60


def test_uneven_spacing_is_made_even(tmp_path, patient):
    heights = np.cumsum(np.r_[0, np.tile([1.8, 2.0, 2.3], 7)[:19]])
    stored = waves()
    z = heights / 2.0
    uneven = np.stack(
        [
            (1 - f) * stored[:, :, int(i)] + f * stored[:, :, min(int(i) + 1, 19)]
            for i, f in zip(z // 1, z % 1, strict=True)
        ],
        axis=2,
    ).astype(np.int16)
    classic(tmp_path, uneven, UPRIGHT, patient, **T1)
    moved(tmp_path, lambda position, k: [*position[:2], heights[k]])
    study = read_here(tmp_path)
    volume = study.volumes["t1n"]
    assert study.notes == ("t1n is unevenly spaced; it was resampled to an upright stack of 2 mm steps",)
    assert volume.grid.spacing_mm[2] == pytest.approx(2.0)
    count = volume.array.shape[2]
    assert np.abs(volume.array - stored[:, :, :count])[:, :, : count - 1].max() < 12


def test_two_frames_of_reference_are_said(tmp_path, patient):
    classic(tmp_path / "a", scan(), AFFINE, patient, **T1)
    classic(tmp_path / "b", scan(), AFFINE, patient, number=2, FrameOfReferenceUID=generate_uid(), **FLAIR)
    assert "several frames of reference" in read_here(tmp_path).notes[0]
