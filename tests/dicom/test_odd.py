"""Studies that are odd without being damaged: read for what they are, left out with the reason, or refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from medk2n.errors import DicomError

from .conftest import AFFINE, scan
from .here import read_here
from .sources import CONTRASTS, T1, T2, Patient, classic, enhanced, put

SHAPE = (12, 14, 8)
Change = Callable[[Dataset], object]


def series(folder: Path, change: Change, **attributes: object) -> Path:
    """A series (of `kind` CT or MR) with every slice changed."""
    classic(folder, scan(0, SHAPE), AFFINE, Patient(), **{**T1, **attributes})
    for path in folder.iterdir():
        data = dcmread(path)
        change(data)
        data.save_as(path)
    return folder


def multiframe(folder: Path, groups: list[dict], change: Change = lambda data: None) -> Path:
    """An enhanced MR of several volumes in one object; what each of its frames says of itself."""
    enhanced(folder / "x.dcm", scan(0, SHAPE), AFFINE, Patient(), **T2)
    data = dcmread(folder / "x.dcm")
    frames, stored = list(data.PerFrameFunctionalGroupsSequence), data.pixel_array
    data.PerFrameFunctionalGroupsSequence = []
    for macros in groups:
        for frame in frames:
            new = Dataset()
            new.PlanePositionSequence = frame.PlanePositionSequence
            new.FrameContentSequence = frame.FrameContentSequence
            for macro, values in macros.items():
                put(new, macro, **values)
            data.PerFrameFunctionalGroupsSequence.append(new)
    data.NumberOfFrames = len(groups) * len(frames)
    data.PixelData = np.concatenate([stored + 10 * number for number in range(len(groups))]).tobytes()
    data.SeriesDescription = "unnamed"
    change(data)
    data.save_as(folder / "x.dcm")
    return folder


def with_values(**values: object) -> Change:
    def change(data: Dataset) -> None:
        for name, value in values.items():
            setattr(data, name, value)

    return change


def two_pictures(data: Dataset) -> None:
    data.NumberOfFrames, data.PixelData = 2, data.PixelData * 2


def without_scale(data: Dataset) -> None:
    del data.RescaleSlope
    del data.RescaleIntercept


def moved_up(data: Dataset) -> None:
    stored = data.pixel_array.astype(np.uint16) << 4
    data.BitsStored, data.HighBit, data.PixelRepresentation, data.PixelData = 12, 15, 0, stored.tobytes()


LEFT_OUT = {
    "greys upside down": ("MR", with_values(PhotometricInterpretation="MONOCHROME1"), "MONOCHROME1"),
    "a palette": ("MR", with_values(PhotometricInterpretation="PALETTE COLOR"), "colour picture"),
    "two pictures in a classic image": ("MR", two_pictures, "several pictures, and the place of one"),
    "values above the lowest bit": ("MR", moved_up, "values that do not begin at the lowest bit"),
    "a CT without its scale": ("CT", without_scale, "CT that states no scale"),
    "a CT of effective atomic numbers": ("CT", with_values(RescaleType="Z_EFF"), "CT in another unit than HU"),
}


@pytest.mark.parametrize(("kind", "change", "reason"), LEFT_OUT.values(), ids=LEFT_OUT)
def test_left_out_with_the_reason(tmp_path, kind, change, reason):
    with pytest.raises(DicomError, match="no scan to start from") as told:
        read_here(series(tmp_path, change, kind=kind))
    assert reason in str(told.value)


def test_an_enhanced_ct_in_another_unit_is_left_out(tmp_path):
    enhanced(tmp_path / "x.dcm", scan(0, SHAPE), AFFINE, Patient(), kind="CT", **CONTRASTS["ct"])
    data = dcmread(tmp_path / "x.dcm")
    (scale,) = data.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence
    scale.RescaleType = "US"
    data.save_as(tmp_path / "x.dcm")
    with pytest.raises(DicomError, match="CT in another unit than HU"):
        read_here(tmp_path)


def signed_twelve_bits(data: Dataset) -> None:
    stored = (data.pixel_array.astype(np.int16) - 100).view(np.uint16) & 0x0FFF
    data.BitsStored, data.HighBit, data.PixelRepresentation, data.PixelData = 12, 11, 1, stored.tobytes()


def overlay_in_the_high_bits(data: Dataset) -> None:
    stored = data.pixel_array.astype(np.uint16) | 0xF000
    data.BitsStored, data.HighBit, data.PixelRepresentation, data.PixelData = 12, 11, 0, stored.tobytes()


@pytest.mark.parametrize(("change", "shift"), [(signed_twelve_bits, -100), (overlay_in_the_high_bits, 0)])
def test_values_are_those_of_the_bits_that_count(tmp_path, change, shift):
    found = read_here(series(tmp_path, change)).volumes["t1n"].array
    np.testing.assert_array_equal(found, scan(0, SHAPE) + shift)


def test_two_echoes_of_an_enhanced_object_are_two_contrasts(tmp_path):
    echoes = [{"MREchoSequence": {"EffectiveEchoTime": echo}} for echo in (15.0, 98.0)]
    found = read_here(multiframe(tmp_path, echoes, with_values(EchoPulseSequence="SPIN")))
    assert set(found.series) == {"pd", "t2w"}
    np.testing.assert_array_equal(found.volumes["pd"].array + 10, found.volumes["t2w"].array)


def test_an_image_without_diffusion_is_no_diffusion_image(tmp_path):
    b_values = [{"MRDiffusionSequence": {"DiffusionBValue": b}} for b in (0.0, 1000.0)]
    found = read_here(multiframe(tmp_path, b_values, with_values(EchoPlanarPulseSequence="YES")))
    np.testing.assert_array_equal(found.volumes["dwi"].array, scan(0, SHAPE) + 10)
    assert [(row.images, row.reason) for row in found.left_out] == [(SHAPE[2], "contrast not recognised")]


def test_directions_of_diffusion_are_named_but_not_all_of_them(tmp_path):
    patient, uid = Patient(), "1.2.3.4"
    for number in range(7):
        classic(
            tmp_path, scan(number, SHAPE), AFFINE, patient, series=uid, names=lambda k, n=number: f"{n}-{k}",
            SeriesDescription="ep2d", ScanningSequence="EP", DiffusionBValue=1000.0, AcquisitionNumber=number,
        )  # fmt: skip
    with pytest.raises(DicomError, match=r"7 series are dwi: .*1\.2\.3\.4#2 .* and 3 more; choose one with --series"):
        read_here(tmp_path)


def test_slices_beside_each_other_are_put_where_they_lie(tmp_path):
    def slide(data: Dataset) -> None:
        if data.InstanceNumber == 4:
            data.ImagePositionPatient[0] += 7

    found = read_here(series(tmp_path, slide))
    assert "made of slices that lie beside each other" in found.notes[0]
    assert found.volumes["t1n"].array.shape[0] > SHAPE[0]


def test_rows_and_columns_of_no_direction(tmp_path):
    with pytest.raises(DicomError, match="not at right angles"):
        read_here(series(tmp_path, with_values(ImageOrientationPatient=[0, 0, 0, 0, 0, 0])))


def test_a_series_of_endless_directions_is_refused_soon(tmp_path):
    rng = np.random.default_rng(0)
    classic(tmp_path, np.zeros((2, 2, 300), np.int16), AFFINE, Patient(), **T1)
    for path in tmp_path.iterdir():
        data = dcmread(path)
        row, column = np.linalg.qr(rng.normal(size=(3, 2)))[0].T
        data.ImageOrientationPatient = [f"{number:.6f}" for number in (*row, *column)]
        data.save_as(path)
    with pytest.raises(DicomError, match="more than 200 directions"):
        read_here(tmp_path)
