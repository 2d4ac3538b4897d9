"""NIfTI headers and files as the field has them: units, quaternions, two placements at odds, other formats."""

import gzip
import io

import nibabel as nib
import numpy as np
import pytest

from medk2n.errors import VolumeReadError
from medk2n.geometry.grid import Grid
from medk2n.io.nifti import from_nibabel, read_header, read_labels, read_volume, write_volume
from medk2n.io.volume import Volume

SHAPE = (5, 6, 7)
ARRAY = np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16)
OBLIQUE = np.array([[-1.2, 0.1, 0, 40], [0.1, 1.2, 0, -30], [0, 0, 3, 7], [0, 0, 0, 1.0]])


def put(path, *, kind=nib.Nifti1Image, affine=OBLIQUE, **fields):
    """A good file whose header is altered in place, as no writer of NIfTI would."""
    raw = bytearray(kind(ARRAY, affine).to_bytes())
    size = kind.header_class.sizeof_hdr
    header = kind.header_class(bytes(raw[:size]), check=False)
    for field, value in fields.items():
        header[field] = value
    raw[:size] = header.binaryblock
    path.write_bytes(gzip.compress(bytes(raw)) if path.suffix == ".gz" else bytes(raw))
    return path


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize(
    ("code", "mm", "note"), [(1, 1e-3, "states metres"), (2, 1, None), (3, 1e3, "microns"), (0, 1, None)]
)
@pytest.mark.parametrize("stated", [{}, {"sform_code": 0, "qform_code": 1}, {"sform_code": 0, "qform_code": 0}])
def test_the_unit_of_length_is_honoured(tmp_path, kind, code, mm, note, stated):
    scale = np.diag([mm, mm, mm, 1.0])
    straight = np.diag([1.2, 1.3, 3, 1.0])
    path = put(tmp_path / "a.nii", kind=kind, affine=scale @ straight, xyzt_units=code | 8, **stated)
    expected = read_volume(put(tmp_path / "b.nii", affine=straight, xyzt_units=2, **stated), "t1n")
    for grid in (read_volume(path, "t1n").grid, read_header(path).grid, read_labels(path).grid):
        np.testing.assert_allclose(grid.affine, expected.grid.affine, rtol=1e-6, atol=1e-5)
    image = nib.load(path)
    np.testing.assert_allclose(from_nibabel(image, "t1n").grid.affine, expected.grid.affine, rtol=1e-6, atol=1e-5)
    assert (note or "") in read_volume(path, "t1n").provenance.get("note", "")
    write_volume(read_volume(path, "t1n"), tmp_path / "o.nii.gz")
    assert nib.load(tmp_path / "o.nii.gz").header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(nib.load(tmp_path / "o.nii.gz").header.get_zooms(), [1.2, 1.3, 3], rtol=1e-6)


def test_a_unit_that_nobody_knows_is_told(tmp_path):
    assert (
        "unknown unit of length (code 6)"
        in read_volume(put(tmp_path / "a.nii", xyzt_units=6), "t1n").provenance["note"]
    )


@pytest.mark.parametrize("excess", [3e-7, 7e-7, 1e-5, 2e-4])
def test_a_quaternion_that_rounding_made_too_long_is_normalised(tmp_path, excess):
    turned = np.diag([-1.0, 1, -1, 1])  # by 180 degrees: all of the quaternion is in b, c, d
    quaternion = {"quatern_b": 0, "quatern_c": 1 + excess, "quatern_d": 0}
    path = put(tmp_path / "a.nii.gz", affine=turned, sform_code=0, qform_code=1, **quaternion)
    np.testing.assert_allclose(read_volume(path, "t1n").grid.affine, turned, atol=1e-6)


def test_a_small_turn_stays_as_small_as_it_is(tmp_path):
    angle = 0.02
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(np.pi - angle), -np.sin(np.pi - angle)], [np.sin(np.pi - angle), np.cos(np.pi - angle)]]
    path = put(tmp_path / "a.nii", affine=turn, sform_code=0, qform_code=1)
    np.testing.assert_allclose(read_volume(path, "t1n").grid.affine, turn, atol=1e-4)


def test_two_placements_at_odds_are_told(tmp_path):
    apart = put(tmp_path / "a.nii", sform_code=1, qform_code=1, qoffset_x=70.0)
    volume = read_volume(apart, "t1n")
    np.testing.assert_allclose(volume.grid.affine, OBLIQUE, atol=1e-5)
    assert volume.provenance["note"] == "qform and sform place the image up to 30 mm apart; the sform was taken"
    scaled = np.diag([1e-3, 1e-3, 1e-3, 1]) @ OBLIQUE
    metres = put(tmp_path / "m.nii", affine=scaled, sform_code=1, qform_code=1, qoffset_x=0.07, xyzt_units=1)
    assert "up to 30 mm apart" in read_volume(metres, "t1n").provenance["note"]
    damaged = put(tmp_path / "d.nii", sform_code=1, qform_code=1, quatern_b=3.0)
    assert read_volume(damaged, "t1n").provenance["note"] == "qform is damaged; the sform was taken"
    assert "note" not in read_volume(put(tmp_path / "b.nii", sform_code=1, qform_code=1), "t1n").provenance
    nearly = put(tmp_path / "s.nii", sform_code=1, qform_code=1, srow_x=OBLIQUE[0] + [0, 1e-4, 0, 0.5])
    assert "note" not in read_volume(nearly, "t1n").provenance


@pytest.mark.parametrize(
    "fields", [{"pixdim": [1, -6, 6, 6, 1, 1, 1, 1]}, {"pixdim": [0, 6, 6, 6, 1, 1, 1, 1]}, {"intent_code": 12345}]
)
def test_what_nibabel_mends_makes_no_noise(tmp_path, capfd, fields):
    path = put(tmp_path / "a.nii", sform_code=1, **fields)
    np.testing.assert_array_equal(read_volume(path, "t1n").array, ARRAY)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vox_offset": 0}, r"voxels begin at byte 0, inside the header"),
        ({"vox_offset": 100}, r"vox offset 100 too low"),
        ({"vox_offset": np.nan}, r"voxels begin at byte nan"),
        ({"scl_slope": np.inf, "scl_inter": 0}, r"multiplies the voxels by inf and adds 0"),
        ({"scl_slope": -np.inf, "scl_inter": 0}, r"by -inf"),
        ({"scl_slope": 2, "scl_inter": np.inf}, r"by 2 and adds inf"),
        ({"scl_slope": 2, "scl_inter": np.nan}, r"by 2 and adds nan"),
    ],
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_header_that_would_make_other_voxels_is_refused(tmp_path, name, fields, message):
    path = put(tmp_path / name, **fields)
    with pytest.raises(VolumeReadError, match=rf"{name}: cannot be read as NIfTI \(.*{message}"):
        read_volume(path, "t1n")


@pytest.mark.parametrize("fields", [{"scl_slope": 0, "scl_inter": 500}, {"scl_slope": np.nan, "scl_inter": np.inf}])
def test_no_slope_leaves_the_voxels_as_they_are(tmp_path, fields):
    np.testing.assert_array_equal(read_volume(put(tmp_path / "a.nii", **fields), "t1n").array, ARRAY)


def mgh() -> bytes:
    return nib.MGHImage(ARRAY, OBLIQUE).to_bytes()


def analyze() -> bytes:
    header = nib.AnalyzeHeader()
    header.set_data_shape(SHAPE)
    return header.binaryblock + bytes(900)


def numpy_array() -> bytes:
    file = io.BytesIO()
    np.save(file, ARRAY)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", r"a Git LFS pointer.*; git lfs pull"),
        (b"../../.git/annex/objects/xx/MD5E-s1.nii.gz\n", "text; copy or download it again"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (bytes(128) + b"DICM" + bytes(300), "a DICOM file; convert its series with dcm2niix"),
        (b"NRRD0004\ntype: short\n", "NRRD; convert it to"),
        (b"ObjectType = Image\n", "a MetaImage header"),
        (mgh(), "MGH; convert it with mri_convert"),
        (analyze(), "Analyze 7.5, which says neither left nor right"),
        (numpy_array(), "a NumPy array"),
        (b"\0\5\26\7" + bytes(200), "an AppleDouble file"),
        (b"PK\3\4" + bytes(200), "a zip archive; unpack it"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "a PNG picture"),
        (bytes(4096), "nothing but zero bytes"),
        (gzip.compress(gzip.compress(b"x" * 999)), "gzip-compressed twice"),
    ],
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("packed", [False, True])
def test_another_kind_of_file_is_called_what_it_is(tmp_path, name, packed, content, message):
    """Whatever its name, and whether it is compressed or not."""
    (tmp_path / name).write_bytes(gzip.compress(content) if packed and content[:2] != b"\x1f\x8b" else content)
    with pytest.raises(VolumeReadError, match=rf"{name}: is no NIfTI but .*{message}"):
        read_volume(tmp_path / name, "t1n")


def test_noise_called_nifti_is_no_nifti(tmp_path):
    (tmp_path / "a.nii").write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(VolumeReadError, match="is no NIfTI: its first bytes say nothing known"):
        read_volume(tmp_path / "a.nii", "t1n")


def test_a_pair_and_the_second_version_are_read(tmp_path):
    grid = Grid(SHAPE, OBLIQUE)
    for kind, name in ((nib.Nifti1Pair, "p.hdr"), (nib.Nifti2Image, "2.nii"), (nib.Nifti2Pair, "q.hdr")):
        nib.save(kind(ARRAY, OBLIQUE), tmp_path / name)
        volume = read_volume(tmp_path / name, "t1n")
        assert isinstance(volume, Volume)
        assert volume.grid.same_as(grid)
        np.testing.assert_array_equal(volume.array, ARRAY)
    assert read_volume(tmp_path / "p.img", "t1n").grid.same_as(grid)


def test_a_slope_that_is_no_number_is_told(tmp_path):
    assert (
        "by no number; taken as they are stored"
        in read_volume(put(tmp_path / "a.nii", scl_slope=np.nan), "t1n").provenance["note"]
    )
