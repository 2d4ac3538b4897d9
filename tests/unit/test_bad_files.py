"""The table of bad inputs: each file -> its error class and what the one line says."""

import gzip

import nibabel as nib
import numpy as np
import pytest

from medk2n.errors import GeometryError, Medk2nError, VolumeReadError
from medk2n.io.nifti import read_labels, read_volume

SHAPE = (5, 6, 7)


def good(**header_fields):
    image = nib.Nifti1Image(np.random.default_rng(0).normal(size=SHAPE).astype(np.float32), np.eye(4))
    for field, value in header_fields.items():
        image.header[field] = value
    return image


def saved(image, path):
    nib.save(image, path)
    return path


def with_header(path, **fields):
    """Save a good file, then damage its header in place (nibabel would not write such a one)."""
    data = bytearray(good().to_bytes())
    header = nib.Nifti1Header(bytes(data[:348]), check=False)
    for field, value in fields.items():
        header[field] = value
    data[:348] = header.binaryblock
    path.write_bytes(data)
    return path


def missing(folder):
    return folder / "gone.nii.gz"


def empty(folder):
    (folder / "empty.nii.gz").touch()
    return folder / "empty.nii.gz"


def a_folder(folder):
    (folder / "study.nii").mkdir()
    return folder / "study.nii"


def truncated_gzip(folder):
    whole = gzip.compress(good().to_bytes())
    (folder / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    return folder / "cut.nii.gz"


def truncated_gzip_header(folder):
    (folder / "cut.nii.gz").write_bytes(gzip.compress(good().to_bytes())[:30])
    return folder / "cut.nii.gz"


def truncated_plain(folder):
    (folder / "cut.nii").write_bytes(good().to_bytes()[:500])
    return folder / "cut.nii"


def corrupt_gzip(folder):
    data = bytearray(gzip.compress(good().to_bytes()))
    data[len(data) // 2 : len(data) // 2 + 20] = b"\xff" * 20
    (folder / "corrupt.nii.gz").write_bytes(data)
    return folder / "corrupt.nii.gz"


def text(folder):
    (folder / "notes.nii").write_text("these are notes" * 50)
    return folder / "notes.nii"


def gz_that_is_no_gzip(folder):
    (folder / "plain.nii.gz").write_bytes(good().to_bytes())
    return folder / "plain.nii.gz"


def gzip_without_gz(folder):
    (folder / "packed.nii").write_bytes(gzip.compress(good().to_bytes()))
    return folder / "packed.nii"


def other_format(folder):
    return saved(nib.MGHImage(np.ones(SHAPE, np.float32), np.eye(4)), folder / "t1.mgz")


def four_dimensional(folder):
    return saved(nib.Nifti1Image(np.zeros((5, 6, 7, 3), np.int16), np.eye(4)), folder / "series.nii.gz")


def two_dimensional(folder):
    return saved(nib.Nifti1Image(np.zeros((5, 6), np.int16), np.eye(4)), folder / "picture.nii.gz")


def not_finite(folder):
    array = np.ones(SHAPE, np.float32)
    array[1, 2, 3], array[0, 0, 0] = np.nan, np.inf
    return saved(nib.Nifti1Image(array, np.eye(4)), folder / "nan.nii.gz")


def constant(folder):
    return saved(nib.Nifti1Image(np.full(SHAPE, 4, np.int16), np.eye(4)), folder / "constant.nii.gz")


def too_large_for_float32(folder):
    return saved(nib.Nifti1Image(np.linspace(0, 1e300, 210).reshape(SHAPE), np.eye(4)), folder / "huge.nii.gz")


def singular(folder):
    return with_header(folder / "flat.nii", sform_code=1, srow_z=[0, 0, 0, 5])


def non_finite_affine(folder):
    return with_header(folder / "nan_affine.nii", sform_code=1, srow_x=[np.nan, 0, 0, 0])


def impossible_quaternion(folder):
    return with_header(folder / "quatern.nii", sform_code=0, qform_code=1, quatern_b=3.0)


def billions_of_voxels(folder):
    return with_header(folder / "billions.nii", dim=[3, 30000, 30000, 30000, 1, 1, 1, 1])


def more_than_the_file_holds(folder):
    return with_header(folder / "promise.nii", dim=[3, 900, 900, 900, 1, 1, 1, 1])


def more_than_the_gzip_can_hold(folder):
    path = with_header(folder / "bomb.nii", dim=[3, 900, 900, 900, 1, 1, 1, 1])
    (folder / "bomb.nii.gz").write_bytes(gzip.compress(path.read_bytes()))
    return folder / "bomb.nii.gz"


def negative_size(folder):
    return with_header(folder / "negative.nii", dim=[3, 5, -6, 7, 1, 1, 1, 1])


def complex_voxels(folder):
    return saved(nib.Nifti1Image(np.ones(SHAPE, np.complex64), np.eye(4)), folder / "complex.nii.gz")


def colour_voxels(folder):
    colours = np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    return saved(nib.Nifti1Image(colours, np.eye(4)), folder / "rgb.nii.gz")


def unknown_dtype(folder):
    return with_header(folder / "dtype.nii", datatype=9999)


TABLE = [
    (missing, VolumeReadError, r"no such file; expected a NIfTI image"),
    (empty, VolumeReadError, r"the file is empty"),
    (a_folder, VolumeReadError, r"is a folder; expected one NIfTI file"),
    (truncated_gzip, VolumeReadError, r"cannot be read as NIfTI|more than the file"),
    (truncated_gzip_header, VolumeReadError, r"cannot be read as NIfTI"),
    (truncated_plain, VolumeReadError, r"promises 840 bytes of voxels, more than the file \(500 bytes\) can hold"),
    (corrupt_gzip, VolumeReadError, r"cannot be read as NIfTI"),
    (text, VolumeReadError, r"is no NIfTI but text; copy or download it again"),
    (gz_that_is_no_gzip, VolumeReadError, r"not gzip-compressed although its name says otherwise"),
    (gzip_without_gz, VolumeReadError, r"gzip-compressed although its name says otherwise; add \.gz"),
    (other_format, VolumeReadError, r"is no \.nii, \.nii\.gz or \.hdr/\.img file; convert it to \.nii\.gz"),
    (four_dimensional, VolumeReadError, r"\(5, 6, 7, 3\) \(4-D\), expected one 3-D volume; split"),
    (two_dimensional, VolumeReadError, r"\(5, 6\) \(2-D\), expected one 3-D volume"),
    (not_finite, VolumeReadError, r"2 voxels are NaN or infinite; expected finite"),
    (constant, VolumeReadError, r"every voxel is 4; a constant volume"),
    (too_large_for_float32, VolumeReadError, r"NaN or infinite"),
    (singular, GeometryError, r"affine is singular"),
    (non_finite_affine, GeometryError, r"not a finite 4 x 4"),
    (impossible_quaternion, VolumeReadError, r"cannot be read as NIfTI"),
    (billions_of_voxels, VolumeReadError, r"more than 1073741824 voxels"),
    (more_than_the_file_holds, VolumeReadError, r"more than the file .* can hold"),
    (more_than_the_gzip_can_hold, VolumeReadError, r"more than the file .* can hold"),
    (negative_size, VolumeReadError, r"the header is damaged"),
    (complex_voxels, VolumeReadError, r"complex64 \(colour or complex\)"),
    (colour_voxels, VolumeReadError, r"colour or complex"),
    (unknown_dtype, VolumeReadError, r"cannot be read as NIfTI"),
]


@pytest.mark.parametrize(("make", "error", "message"), TABLE, ids=lambda value: getattr(value, "__name__", ""))
def test_a_bad_file_is_refused_in_one_line(tmp_path, capfd, make, error, message):
    path = make(tmp_path)
    with pytest.raises(error, match=message) as caught:
        read_volume(path, "t1n")
    line = str(caught.value)
    assert isinstance(caught.value, Medk2nError)
    assert caught.value.exit_code == 2
    assert str(path) in line
    assert "\n" not in line
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("make", [empty, truncated_gzip, four_dimensional, not_finite])
def test_masks_are_checked_as_images_are(tmp_path, make):
    with pytest.raises(VolumeReadError):
        read_labels(make(tmp_path))
