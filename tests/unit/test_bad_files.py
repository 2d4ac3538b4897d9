"""The table of bad inputs: each file -> its error class and what the one line says."""

import gzip
import hashlib
import json
import os
import subprocess
import sys
import tracemalloc
import zlib

import nibabel as nib
import numpy as np
import pytest

from medk2n.cli.main import main
from medk2n.errors import GeometryError, Medk2nError, VolumeReadError
from medk2n.io import nifti
from medk2n.io.nifti import read_header, read_labels, read_volume

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


def gz_with_header(path, *, voxels=b"", zeros=0, **fields):
    """A .nii.gz with any header, some bytes of voxels, and zeros (in MB) that are not made in memory."""
    deflate = zlib.compressobj(wbits=31)
    parts = [deflate.compress(with_header(path.with_suffix(".tmp.nii"), **fields).read_bytes()[:352] + voxels)]
    parts += [deflate.compress(bytes(1_000_000)) for _ in range(zeros)]
    path.write_bytes(b"".join([*parts, deflate.flush()]))
    return path


def a_gzip_bomb_behind_the_voxels(folder):
    return gz_with_header(folder / "tail.nii.gz", voxels=good().to_bytes()[352:], zeros=100)


def a_gzip_bomb_before_the_voxels(folder):
    return gz_with_header(folder / "ahead.nii.gz", zeros=100, vox_offset=99_000_000)


def a_gzip_bomb_of_voxels(folder):
    return gz_with_header(folder / "zeros.nii.gz", zeros=74, dim=[3, 600, 600, 200, 1, 1, 1, 1], datatype=2, bitpix=8)


def beyond_the_limit(folder):
    noise = np.random.default_rng(0).bytes(3_000_000)
    size = {"dim": [3, 640, 640, 640, 1, 1, 1, 1], "datatype": 64, "bitpix": 64}
    return gz_with_header(folder / "limit.nii.gz", voxels=noise, **size)


def a_pair_that_promises_more(folder):
    nib.save(nib.Nifti1Pair(np.ones((4, 4, 4), np.int16), np.eye(4)), folder / "pair.hdr")
    header = bytearray((folder / "pair.hdr").read_bytes())
    header[42:48] = np.array([1024] * 3, "<i2").tobytes()
    (folder / "pair.hdr").write_bytes(header)
    return folder / "pair.hdr"


def half_a_pair(folder):
    nib.save(nib.Nifti1Pair(np.ones((4, 4, 4), np.int16), np.eye(4)), folder / "pair.hdr")
    (folder / "pair.img").unlink()
    return folder / "pair.hdr"


def far_longer_than_promised(folder):
    path = saved(good(), folder / "long.nii")
    with path.open("ab") as file:
        file.truncate(40_000_000_000)  # a hole: it takes no room
    return path


def a_hole_behind_the_gzip(folder):
    path = saved(good(), folder / "hole.nii.gz")
    with path.open("ab") as file:
        file.truncate(40_000_000_000)
    return path


def a_pipe(folder):
    os.mkfifo(folder / "pipe.nii")
    return folder / "pipe.nii"


def a_device(folder):
    (folder / "zero.nii").symlink_to("/dev/zero")
    return folder / "zero.nii"


def voxels_that_begin_nowhere(folder):
    return with_header(folder / "offset.nii", vox_offset=np.inf)


def voxels_that_begin_far_away(folder):
    return with_header(folder / "offset.nii", vox_offset=1e12)


def voxels_inside_the_header(folder):
    return with_header(folder / "offset.nii", vox_offset=0)


def infinite_slope(folder):
    return with_header(folder / "slope.nii", scl_slope=-np.inf)


def other_header_size(folder):
    return with_header(folder / "size.nii", sizeof_hdr=1543)


def giant_voxels(folder):
    return saved(nib.Nifti1Image(good().get_fdata(), np.diag([100.0, 100, 100, 1])), folder / "giant.nii")


def gigantic_voxels(folder):
    return with_header(folder / "giant.nii", sform_code=0, qform_code=0, pixdim=[1, 1e30, 1e30, 1e30, 1, 1, 1, 1])


def a_name_without_end(folder):
    return folder / ("x" * 300 + ".nii")


TABLE = [
    (a_gzip_bomb_behind_the_voxels, VolumeReadError, r"more than 1048576 bytes follow the voxels"),
    (a_gzip_bomb_before_the_voxels, VolumeReadError, r"voxels begin at byte 99000000; it is damaged"),
    (a_gzip_bomb_of_voxels, GeometryError, r"would be unpacked to 72000000; no scan can be shrunk so far"),
    (beyond_the_limit, GeometryError, r"640 x 640 x 640 voxels take 1\.95 GiB, the limit is 1; .*MEDK2N_MAX_IMAGE_GIB"),
    (a_pair_that_promises_more, VolumeReadError, r"more than the file \(128 bytes\) can hold"),
    (half_a_pair, VolumeReadError, r"lies alone; expected pair\.img beside it"),
    (far_longer_than_promised, VolumeReadError, r"the file \(40000000000 bytes\) is far longer"),
    (a_hole_behind_the_gzip, VolumeReadError, r"the file \(40000000000 bytes\) is far longer"),
    (a_pipe, VolumeReadError, r"is no regular file \(a pipe or device\)"),
    (a_device, VolumeReadError, r"is no regular file \(a pipe or device\)"),
    (voxels_that_begin_nowhere, VolumeReadError, r"cannot be read as NIfTI \("),
    (voxels_that_begin_far_away, VolumeReadError, r"voxels begin at byte 99999\d+; it is damaged"),
    (voxels_inside_the_header, VolumeReadError, r"voxels begin at byte 0, inside the header"),
    (infinite_slope, VolumeReadError, r"multiplies the voxels by -inf"),
    (other_header_size, VolumeReadError, r"first bytes say nothing known"),
    (giant_voxels, GeometryError, r"voxels of 100 x 100 x 100 mm; expected edges from 0\.01 to 50 mm"),
    (gigantic_voxels, GeometryError, r"expected edges from 0\.01 to 50 mm"),
    (a_name_without_end, VolumeReadError, r"File name too long"),
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
    (not_finite, VolumeReadError, r"2 voxels are NaN, infinite or beyond 1e\+15; expected finite"),
    (constant, VolumeReadError, r"every voxel is 4; a constant volume"),
    (too_large_for_float32, VolumeReadError, r"NaN, infinite or beyond"),
    (singular, GeometryError, r"affine is singular"),
    (non_finite_affine, GeometryError, r"not a finite 4 x 4"),
    (impossible_quaternion, VolumeReadError, r"cannot be read as NIfTI"),
    (billions_of_voxels, VolumeReadError, r"more than the file .* can hold"),
    (more_than_the_file_holds, VolumeReadError, r"more than the file .* can hold"),
    (more_than_the_gzip_can_hold, VolumeReadError, r"more than the file .* can hold"),
    (negative_size, VolumeReadError, r"the header is damaged"),
    (complex_voxels, VolumeReadError, r"complex64 \(colour or complex\)"),
    (colour_voxels, VolumeReadError, r"colour or complex"),
    (unknown_dtype, VolumeReadError, r"cannot be read as NIfTI"),
]


@pytest.mark.parametrize(("make", "error", "message"), TABLE, ids=lambda value: getattr(value, "__name__", ""))
def test_a_bad_file_is_refused_in_one_line(tmp_path, capfd, caplog, make, error, message):
    path = make(tmp_path)
    tracemalloc.start()
    with pytest.raises(error, match=message) as caught:
        read_volume(path, "t1n")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
    assert not caplog.records  # where nobody listens, Python prints them
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


def test_labels_that_are_none_are_refused(tmp_path):
    image = nib.Nifti1Image(np.linspace(0, 1e12, 210, dtype=np.float32).reshape(SHAPE), np.eye(4))
    with pytest.raises(VolumeReadError, match="values that are no labels"):
        read_labels(saved(image, tmp_path / "seg.nii"))


def test_a_mask_may_be_shrunk_to_nothing_and_takes_no_memory_where_it_is_empty(tmp_path):
    size = {"dim": [3, 600, 600, 200, 1, 1, 1, 1], "datatype": 2, "bitpix": 8}
    path = gz_with_header(tmp_path / "mask.nii.gz", zeros=72, **size)
    assert not read_labels(path).array.any()


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("tail", [0, 700])
def test_the_hash_is_that_of_the_file_and_of_the_bytes_that_were_read(tmp_path, monkeypatch, name, tail):
    path = saved(good(), tmp_path / name)
    path.write_bytes(path.read_bytes() + bytes(tail))
    before = path.read_bytes()
    voxels = read_volume(path, "t1n").array
    whole = nifti._values

    def swapped_meanwhile(image, source):
        saved(nib.Nifti1Image(-good().get_fdata(), np.eye(4)), tmp_path / f"other-{name}").replace(path)
        return whole(image, source)

    monkeypatch.setattr(nifti, "_values", swapped_meanwhile)
    volume = read_volume(path, "t1n")
    assert volume.provenance["sha256"] == hashlib.sha256(before).hexdigest()
    np.testing.assert_array_equal(volume.array, voxels)
    assert path.read_bytes() != before


def test_of_a_pair_both_files_are_hashed(tmp_path):
    nib.save(nib.Nifti1Pair(good().get_fdata(), np.eye(4)), tmp_path / "a.hdr")
    both = (tmp_path / "a.hdr").read_bytes() + (tmp_path / "a.img").read_bytes()
    for name in ("a.hdr", "a.img"):
        assert read_volume(tmp_path / name, "t1n").provenance["sha256"] == hashlib.sha256(both).hexdigest()


def test_many_chunks_are_joined_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr("medk2n.io.source._CHUNK", 64)
    array = np.random.default_rng(0).integers(-9, 9, SHAPE).astype(np.int16)
    array[:, :, 2:4] = 0
    image = nib.Nifti1Image(array, np.eye(4))
    image.header.set_slope_inter(0.5, 7.0)
    expected = nib.load(saved(image, tmp_path / "a.nii.gz")).get_fdata(dtype=np.float32)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz", "t1n").array, expected)


@pytest.mark.parametrize("extension", [0, 16, 5000])
def test_extensions_are_passed_over(tmp_path, extension):
    image = good()
    if extension:
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * (extension - 8)))
    path = saved(image, tmp_path / "a.nii")
    np.testing.assert_array_equal(read_volume(path, "t1n").array, good().get_fdata(dtype=np.float32))


def test_a_header_is_read_without_the_voxels(tmp_path):
    path = gz_with_header(tmp_path / "zeros.nii.gz", zeros=1, dim=[3, 100, 100, 100, 1, 1, 1, 1], datatype=2, bitpix=8)
    path.write_bytes(path.read_bytes()[:1000])  # cut off
    assert read_header(path).grid.shape == (100, 100, 100)


def test_a_limit_can_be_set(tmp_path, monkeypatch):
    path = saved(good(), tmp_path / "a.nii")
    monkeypatch.setenv("MEDK2N_MAX_IMAGE_GIB", "1e-7")
    with pytest.raises(GeometryError, match="5 x 6 x 7 voxels take"):
        read_volume(path, "t1n")


def voxels_that_would_become_many(folder):
    array = np.random.default_rng(0).normal(size=(40, 40, 40)).astype(np.float32)
    return saved(nib.Nifti1Image(array, np.diag([49.0, 49, 49, 1])), folder / "many.nii")


@pytest.mark.parametrize(
    "make", [voxels_that_would_become_many, missing, giant_voxels, a_pipe, other_header_size, a_gzip_bomb_of_voxels]
)
def test_the_command_says_one_line_before_a_model_is_loaded(tmp_path, capfd, monkeypatch, make):
    monkeypatch.setattr("medk2n.cli.common.resolve_device", lambda name: pytest.fail("torch was loaded"))
    assert main(["synth", "-i", f"t1n={make(tmp_path)}", "-t", "t2w", "-o", str(tmp_path / "out")]) == 2
    out, err = capfd.readouterr()
    assert not out
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_data_set_of_which_nothing_can_be_read_is_told_in_full(tmp_path, capfd):
    folder = tmp_path / "数据" / "p1"
    folder.mkdir(parents=True)
    (folder / "t1n.nii.gz").write_bytes(b"")
    assert main(["index", str(folder.parent), "-o", str(tmp_path / "out")]) == 3
    out, err = capfd.readouterr()
    assert "unreadable: p1 t1n" in out
    assert not err


def test_the_program_prints_no_warning_of_a_library(tmp_path):
    """In a process of its own: pytest listens to what would be printed elsewhere."""
    path = other_header_size(tmp_path)
    program = "import warnings; from medk2n.cli import main as m; m.main = lambda a: warnings.warn('loud'); m.run()"
    for command in (["-c", program], ["-m", "medk2n", "synth", "-i", f"t1n={path}", "-o", str(tmp_path / "out")]):
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
        assert len(done.stderr.splitlines()) == (1 if "-m" in command else 0), done.stderr


def test_a_manifest_tells_the_hash_of_what_was_read(tmp_path):
    from medk2n.cli.common import run_manifest

    path, other = saved(good(), tmp_path / "a.nii"), saved(good(), tmp_path / "b.nii")
    with run_manifest(tmp_path / "run.json", "synth", {}) as run:
        run.inputs += [path, other]
        run.read[path] = "as read"
    told = {row["path"]: row["sha256"] for row in json.loads((tmp_path / "run.json").read_text())["inputs"]}
    assert told == {str(path): "as read", str(other): hashlib.sha256(other.read_bytes()).hexdigest()}
