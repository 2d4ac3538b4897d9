"""NIfTI round trips and atomic writes."""

import errno
import json
import os
import stat
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medk2n.errors import OutputExistsError, OutputPermissionError, SystemLimitError, VolumeReadError
from medk2n.geometry.grid import Grid
from medk2n.io import atomic
from medk2n.io.nifti import from_nibabel, read_labels, read_volume, to_nibabel, write_labels, write_volume
from medk2n.io.volume import LabelMap, Volume

SHAPE = (5, 6, 7)
AXIS, ANGLE = np.array([0.2, -0.7, 0.4]), 0.37


@pytest.fixture
def values():
    return np.random.default_rng(0).integers(-50, 400, size=SHAPE)


def oblique():
    axis = AXIS / np.linalg.norm(AXIS)
    k = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    rotation = np.eye(3) + np.sin(ANGLE) * k + (1 - np.cos(ANGLE)) * k @ k
    affine = np.eye(4)
    affine[:3, :3] = rotation * [0.9375, 0.47, 5.123456789]
    affine[:3, 3] = [-91.123456, 12.7, 1 / 3]
    return affine


def header_kinds(affine):
    """The three places where NIfTI keeps an affine."""
    sform = nib.Nifti1Image(np.zeros(SHAPE, np.int16), affine)
    qform = nib.Nifti1Image(np.zeros(SHAPE, np.int16), None)
    qform.header.set_qform(affine, code=1)
    qform.header.set_sform(None, code=0)
    neither = nib.Nifti1Image(np.zeros(SHAPE, np.int16), None)
    neither.header.set_zooms((0.9375, 0.47, 5.123456789))
    return {"sform": sform.header, "qform": qform.header, "neither": neither.header}


@pytest.mark.parametrize("kind", ["sform", "qform", "neither"])
def test_a_grid_read_from_any_header_is_written_back_bit_for_bit(tmp_path, values, kind):
    source = tmp_path / "in.nii.gz"
    nib.save(nib.Nifti1Image(values.astype(np.int16), None, header_kinds(oblique())[kind]), source)
    volume = read_volume(source, "t1n")
    write_volume(volume, tmp_path / "out.nii.gz")
    before, after = nib.load(source), nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(after.affine, before.affine)
    assert after.shape == before.shape
    assert after.get_data_dtype() == np.float32
    assert nib.aff2axcodes(after.affine) == nib.aff2axcodes(before.affine)
    np.testing.assert_array_equal(after.get_fdata(), values)
    np.testing.assert_allclose(after.header.get_zooms(), before.header.get_zooms(), rtol=1e-5)
    assert ("note" in volume.provenance) == (kind == "neither")


def test_every_quaternion_survives_bit_for_bit():
    rng = np.random.default_rng(1)
    array = np.zeros(SHAPE, np.float32)
    for _ in range(200):
        quaternion = rng.normal(size=4) * rng.choice([0, 1], size=4, p=[0.3, 0.7]) + [1e-9, 0, 0, 0]
        quaternion *= np.sign(quaternion[0]) / np.linalg.norm(quaternion)
        header = nib.Nifti1Header()
        header["pixdim"][:4] = [rng.choice([-1, 1]), *rng.uniform(0.3, 6, 3)]
        header["quatern_b"], header["quatern_c"], header["quatern_d"] = quaternion[1:]
        header["qoffset_x"], header["qform_code"] = rng.normal() * 50, 1
        affine = header.get_best_affine()
        np.testing.assert_array_equal(to_nibabel(Volume(array, Grid(SHAPE, affine), "t1n")).affine, affine)


def test_a_sheared_affine_is_kept_and_claims_no_quaternion(tmp_path, values):
    affine = np.diag([1.0, 2, 3, 1])
    affine[0, 1] = 0.5
    write_volume(Volume(values.astype(np.float32), Grid(SHAPE, affine), "t2w"), tmp_path / "a.nii")
    image = nib.load(tmp_path / "a.nii")
    np.testing.assert_array_equal(image.affine, affine)
    assert image.header["qform_code"] == 0


@pytest.mark.parametrize("dtype", ["<i2", ">i2", ">f4", "<f8", "<u1", "<i4", "<u2"])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_every_real_dtype_and_byte_order_is_read(tmp_path, values, dtype, name):
    stored = (values + 50) // 2 if np.dtype(dtype).kind == "u" else values
    header = nib.Nifti1Header(endianness=">" if dtype.startswith(">") else "<")
    nib.save(nib.Nifti1Image(stored.astype(dtype), oblique(), header), tmp_path / name)
    volume = read_volume(tmp_path / name, "t1n")
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, stored)


def test_slope_and_intercept_are_applied_and_trailing_ones_squeezed(tmp_path, values):
    image = nib.Nifti1Image(values.astype(np.int16)[..., None, None], np.eye(4))
    image.header.set_slope_inter(0.25, -3)
    nib.save(image, tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz", "t1n")
    assert volume.array.shape == SHAPE
    stored = nib.load(tmp_path / "a.nii.gz").get_fdata().reshape(SHAPE)
    np.testing.assert_allclose(volume.array, stored, rtol=1e-6)
    assert volume.provenance["sha256"] == atomic.sha256_file(tmp_path / "a.nii.gz")
    assert volume.provenance["dtype"] == "int16"


def test_labels_are_integers_and_may_be_empty(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), np.eye(4)), tmp_path / "seg.nii.gz")
    labels = read_labels(tmp_path / "seg.nii.gz")
    assert labels.array.dtype == np.int32
    assert not labels.array.any()


def test_an_image_in_memory_is_checked_too(values):
    volume = from_nibabel(nib.Nifti1Image(values.astype(np.float32), oblique()), "t2f")
    np.testing.assert_array_equal(to_nibabel(volume).get_fdata(), values)
    with pytest.raises(VolumeReadError, match="image in memory: every voxel is 2"):
        from_nibabel(nib.Nifti1Image(np.full(SHAPE, 2.0), np.eye(4)), "t2f")


def test_written_files_say_synthetic_unless_told_otherwise(tmp_path, values):
    volume = Volume(values.astype(np.float32), Grid(SHAPE, np.eye(4)), "t1n")
    write_volume(volume, tmp_path / "a.nii.gz")
    assert b"SYNTHETIC" in nib.load(tmp_path / "a.nii.gz").header["descrip"].item()
    write_volume(volume, tmp_path / "b.nii.gz", description="acquired" * 30)
    assert nib.load(tmp_path / "b.nii.gz").header["descrip"].item().startswith(b"acquired")


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(temporary):
        assert temporary.name.startswith(".tmp-")
        assert temporary.name.endswith("-a.txt")
        temporary.write_text("half")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        atomic.atomic_write(path, fail)
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"


def test_bytes_are_on_the_disk_before_they_are_renamed(tmp_path, monkeypatch):
    """A power cut after the rename would leave an empty file: no test can pull the plug, but it can watch."""
    done = []
    true_sync, true_replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: done.append(os.fstat(handle).st_ino) or true_sync(handle))
    monkeypatch.setattr(
        Path, "replace", lambda self, to: done.append(f"renamed {self.stat().st_ino}") or true_replace(self, to)
    )
    atomic.write_text(tmp_path / "a.txt", "whole")
    there = (tmp_path / "a.txt").stat().st_ino
    assert done == [there, f"renamed {there}"]


def test_a_full_disk_and_a_refusal_are_told_apart(tmp_path):
    def full(temporary):
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    def refused(temporary):
        raise PermissionError(errno.EACCES, "Permission denied")

    with pytest.raises(SystemLimitError, match=r"disk full while writing .*a\.txt") as caught:
        atomic.atomic_write(tmp_path / "a.txt", full)
    assert caught.value.exit_code == 1
    with pytest.raises(OutputPermissionError, match=r"no permission to write .*a\.txt") as caught:
        atomic.atomic_write(tmp_path / "a.txt", refused)
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_json_text_and_hashes(tmp_path):
    atomic.write_json(tmp_path / "a.json", {"z": 1, "a": "µ"})
    assert list(json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))) == ["z", "a"]
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic.write_json(tmp_path / "b.json", {"x": float("nan")})
    atomic.write_text(tmp_path / "t", "abc")
    assert atomic.sha256_file(tmp_path / "t").startswith("ba7816bf")
    array = np.arange(6.0).reshape(2, 3)
    assert atomic.sha256_array(array) == atomic.sha256_array(np.asfortranarray(array))
    assert atomic.sha256_array(array) != atomic.sha256_array(array.reshape(3, 2))


def test_existing_outputs_are_refused_with_the_remedy(tmp_path):
    (tmp_path / "b").touch()
    with pytest.raises(OutputExistsError, match=r"b exists already: add --overwrite"):
        atomic.refuse_existing([tmp_path / "a", tmp_path / "b"], overwrite=False)
    atomic.refuse_existing([tmp_path / "b"], overwrite=True)


def test_an_output_folder_is_made_or_refused(tmp_path):
    assert atomic.check_writable(tmp_path / "x" / "y") == tmp_path / "x" / "y"
    assert not list(tmp_path.iterdir()), "asked, not made"
    (tmp_path / "there").mkdir()
    assert atomic.check_writable(tmp_path / "there").is_dir()
    (tmp_path / "there").rmdir()
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputPermissionError, match="not a folder but a file"):
            atomic.check_writable(folder)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(OutputPermissionError, match="no permission to write"):
            atomic.check_writable(tmp_path)
    finally:
        tmp_path.chmod(stat.S_IRWXU)


@pytest.mark.parametrize("affine", [oblique(), np.array([[0, -2, 0, 11], [1.5, 0, 0, -7], [0, 0, 3, 5], [0, 0, 0, 1]])])
def test_a_mask_is_written_where_it_was_in_millimetres(tmp_path, affine):
    labels = LabelMap(np.arange(np.prod(SHAPE)).reshape(SHAPE), Grid(SHAPE, affine))
    write_labels(labels, tmp_path / "mask.nii.gz")
    again = read_labels(tmp_path / "mask.nii.gz")
    assert again.grid.same_as(labels.grid)
    np.testing.assert_array_equal(again.array, labels.array)
    assert nib.load(tmp_path / "mask.nii.gz").header.get_xyzt_units()[0] == "mm"
    image = to_nibabel(Volume(np.zeros(SHAPE, np.float32), labels.grid, "t1n"))
    assert image.header.get_xyzt_units()[0] == "mm"
