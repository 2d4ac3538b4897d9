"""Hostile and broken arrays, pictures and tables: refused from what they promise, before anything is unpacked."""

import io
import os
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from medk2n.cli.main import main
from medk2n.config.schema import load_config
from medk2n.data.discover import discover
from medk2n.errors import ConfigError, DatasetError, GeometryError, Medk2nError, VolumeReadError
from medk2n.geometry.grid import Grid
from medk2n.geometry.limits import SETTING
from medk2n.geometry.resample import resample, working_grid
from medk2n.io.door import door
from medk2n.io.npy import read_npy
from medk2n.training.reading import read_data

GOOD = np.random.default_rng(0).integers(0, 255, (3, 24, 22)).astype(np.uint8)


def npy(array=GOOD, **header):
    """An .npy file of an array whose header may lie."""
    described = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape} | header
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, described)
    return file.getvalue() + array.tobytes()


def npz(path, method=zipfile.ZIP_DEFLATED, **members):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, raw in members.items():
            archive.writestr(f"{name}.npy", raw)
    return path


def patched(path, old, new):
    raw = path.read_bytes()
    assert old in raw
    path.write_bytes(raw.replace(old, new))


def flipped(path):
    raw = bytearray(npz(path, t1n=npy()).read_bytes())
    raw[200:260] = bytes(255 - b for b in raw[200:260])
    path.write_bytes(raw)


def encrypted(path):
    npz(path, t1n=npy())
    patched(path, b"PK\x03\x04\x14\x00\x00\x00", b"PK\x03\x04\x14\x00\x01\x00")
    patched(path, b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00")


def unknown_method(path):
    npz(path, t1n=npy())
    patched(path, b"PK\x01\x02\x14\x03\x14\x00\x00\x00\x08\x00", b"PK\x01\x02\x14\x03\x14\x00\x00\x00\x63\x00")


def packed_by_lzma(path):
    npz(path, zipfile.ZIP_LZMA, t1n=npy())


def lies_about_its_shape(path):
    npz(path, t1n=npy(shape=(40, 900, 900)))


def promises_the_machine(path):
    npz(path, t1n=npy(shape=(10**6, 10**6, 10**6)))


def a_bomb(path):
    npz(path, t1n=npy(np.zeros((200, 600, 600), np.uint8)))


def forged_size(path):
    npz(path, t1n=npy())
    raw = path.read_bytes()
    size = struct.pack("<I", zipfile.ZipFile(path).getinfo("t1n.npy").file_size)
    path.write_bytes(raw.replace(size, struct.pack("<I", 900_000_000)))


def objects(path):
    npz(path, t1n=npy(descr="|O"))


def code_in_the_header(path):
    header = b"{'descr': __import__('os').abort(), 'fortran_order': False, 'shape': (3,)}".ljust(117) + b"\n"
    npz(path, t1n=b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + header)


def no_zip(path):
    path.write_bytes(b"PK\x03\x04 and no more")


def a_pipe(path):
    os.mkfifo(path)


def too_far_apart(path):
    np.savez(path, t1n=GOOD, spacing=[1e5, 1e5, 5.0])


def two_spacings(path):
    np.savez(path, t1n=GOOD, spacing=[1.0, 1.0])


def overflowing(path):
    np.savez(path, t1n=GOOD * 1e300)


def not_finite(path):
    np.savez(path, t1n=np.where(GOOD > 9, GOOD, np.nan))


def constant(path):
    np.savez(path, t1n=np.ones((3, 24, 22)))


def empty(path):
    np.savez(path, t1n=np.ones((0, 24, 22)))


def flat(path):
    np.savez(path, t1n=GOOD[0])


def complex_numbers(path):
    np.savez(path, t1n=GOOD + 1j)


BAD_NPZ = {
    flipped: r"cannot be read as \.npz \(",
    encrypted: r"cannot be read as \.npz \(.*encrypted",
    unknown_method: "packed by method 99",
    packed_by_lzma: "packed by method 14",
    lies_about_its_shape: r"promises \(40, 900, 900\) of uint8, which is not what it holds",
    promises_the_machine: r"array t1n: 1000000 x 1000000 x 1000000 voxels take 3\.73e\+09 GiB, the limit is 1",
    a_bomb: "no scan can be shrunk so far",
    forged_size: r"claims 900000000 bytes",
    objects: r"cannot be read as \.npz \(it holds objects",
    code_in_the_header: "malformed node or string",
    no_zip: r"cannot be read as \.npz \(File is not a zip file",
    a_pipe: "it is no regular file",
    too_far_apart: r"bad\.npz: voxels of 1e\+05 x 1e\+05 x 5 mm; expected edges from 0\.01 to 50 mm",
    two_spacings: r"`spacing` is \[1\.0, 1\.0\]; expected x, y and z in mm",
    overflowing: r"array t1n: \d+ voxels are NaN, infinite or beyond 1e\+15; expected finite values",
    not_finite: "voxels are NaN, infinite or beyond",
    constant: "array t1n: every voxel is 1; a constant volume",
    empty: r"is empty \(shape \(0, 24, 22\)\)",
    flat: r"has shape \(24, 22\), expected \(slice, row, column\)",
    complex_numbers: "is complex128, expected real numbers",
}


def read_all(folder):
    faults = {}
    for subject in discover(folder, faulty=faults.__setitem__):
        subject.readers["t1n"]()
    raise faults["bad"]


@pytest.mark.parametrize("make", BAD_NPZ, ids=lambda make: make.__name__)
def test_a_bad_npz_is_refused_in_one_line_and_takes_no_memory(tmp_path, make):
    make(tmp_path / "bad.npz")
    np.savez(tmp_path / "good.npz", t1n=GOOD)
    tracemalloc.start()
    with pytest.raises(Medk2nError, match=BAD_NPZ[make]) as caught:
        read_all(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith(f"{tmp_path / 'bad.npz'}")
    assert "\n" not in str(caught.value)
    assert peak < 50e6


@pytest.mark.parametrize("make", [flipped, encrypted, no_zip, a_pipe, promises_the_machine])
def test_one_bad_subject_ends_no_data_set(tmp_path, make, capsys):
    data = tmp_path / "data"
    data.mkdir()
    make(data / "bad.npz")
    np.savez(data / "good.npz", t1n=GOOD)
    assert main(["prepare", str(data), "-o", str(tmp_path / "out"), "-j", "1"]) == 3
    out, err = capsys.readouterr()
    assert "1 subjects prepared, 1 failed" in out
    assert err.splitlines()[-1].startswith("medk2n: bad failed: ")
    assert len(err.splitlines()) == 1
    assert (tmp_path / "out" / "good" / "study.json").is_file()
    assert main(["index", str(data), "-o", str(tmp_path / "index")]) == 3
    assert "unreadable: bad" in capsys.readouterr().out
    assert "1 subjects, 1 images" in (tmp_path / "index" / "index.md").read_text()


def test_a_bug_in_one_subject_ends_no_data_set_either(tmp_path, capsys, monkeypatch):
    from medk2n.preparation import study

    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", t1n=GOOD)
    whole = study._through_steps

    def broken(subject, plan, *more: object):
        return whole(subject, plan) if subject.id == "b" else 1 / 0

    monkeypatch.setattr(study, "_through_steps", broken)
    assert main(["prepare", str(tmp_path), "-o", str(tmp_path / "out"), "-j", "1"]) == 3
    assert "medk2n: a failed: internal error (ZeroDivisionError: division by zero)" in capsys.readouterr().err


def test_where_every_subject_is_faulty_the_data_set_is_refused(tmp_path, capsys):
    no_zip(tmp_path / "a.npz")
    no_zip(tmp_path / "b.npz")
    assert main(["index", str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    assert "all 2 subjects are faulty; the first: " in capsys.readouterr().err
    with pytest.raises(VolumeReadError, match=r"a\.npz: cannot be read as \.npz"):
        discover(tmp_path)


def print_nothing(*told):
    pass


@pytest.mark.parametrize("make", [no_zip, constant])
def test_a_training_names_the_subject_that_it_cannot_use(tmp_path, capsys, make):
    data = tmp_path / "data"
    data.mkdir()
    make(data / "bad.npz")
    for k in range(2):
        np.savez(data / f"good{k}.npz", t1n=np.roll(GOOD, k, 1), t2f=GOOD)
    settings = ["--set", "modalities=[t1n, t2f]", "--set", "budget={steps: 1}"]
    assert main(["train", "--data", str(data), "-o", str(tmp_path / "out"), *settings]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "bad.npz" in line
    assert "of bad: mend it, or leave it out (exclude)" in line
    without = read_data(
        load_config("tiny", [*settings[1::2], "spacing_mm=1.5", f"data=['{data}']", "exclude=[bad]"]), print_nothing
    )
    assert without.subjects == {str(data): ["good0", "good1"]}


def table(folder, *rows, files=("a.png",)):
    for name in files:
        Image.fromarray(GOOD[0]).save(folder / name)
    (folder / "slices.csv").write_text("\n".join(["subject,modality,file", *rows]) + "\n")
    return folder


def test_nothing_but_png_is_decoded_and_no_program_is_started(tmp_path, monkeypatch):
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 24\n%%EndComments\nshowpage\n%%EOF\n"
    )
    Image.fromarray(GOOD[0]).save(tmp_path / "b.png", format="TIFF")
    a, b = discover(table(tmp_path, "a,t1n,a.png", "b,t1n,b.png", files=()))
    for subject in (a, b):
        with pytest.raises(VolumeReadError, match=r"\.png: cannot be read \(.*\); expected a PNG or \.npy image"):
            subject.readers["t1n"]()
    assert not (tmp_path / "started").exists()


def grey_png(width, height, declared=None):
    """A picture of zeros that is not made in memory."""
    deflate = zlib.compressobj(9)
    raw = b"".join(deflate.compress(bytes(width + 1)) for _ in range(height)) + deflate.flush()

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", *(declared or (width, height)), 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", raw) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("bomb.png", grey_png(9000, 9000), "no scan can be shrunk so far"),
        ("huge.png", grey_png(9, 9, declared=(60000, 60000)), "could be decompression bomb"),
        ("empty.png", b"", "cannot be read"),
        ("cut.png", grey_png(90, 90)[:60], "cannot be read"),
        ("lie.npy", npy(shape=(10**6, 10**6)), "the limit is 1"),
        ("other.npy", npy(GOOD[0], shape=(24, 21)), "which is not what it holds"),
        ("negative.npy", npy(GOOD[0], shape=(-24, -22)), r"states the shape \(-24, -22\)"),
        ("cut.npy", npy(GOOD[0])[:40], r"cannot be read as \.npy"),
        ("stack.npy", npy(), r"is coloured|an array of"),
    ],
)
def test_a_bad_slice_is_refused_and_takes_no_memory(tmp_path, name, raw, message):
    (tmp_path / name).write_bytes(raw)
    (subject,) = discover(table(tmp_path, f"a,t1n,{name}", files=()))
    tracemalloc.start()
    with pytest.raises(Medk2nError, match=message) as caught:
        subject.readers["t1n"]()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(tmp_path / name) in str(caught.value)
    assert peak < 50e6


@pytest.mark.parametrize("name", ["../a.png", "{folder}/a.png", "b/../../a.png", "x" * 300 + ".png", "gone.png"])
def test_a_table_names_files_below_it_alone(tmp_path, name):
    Image.fromarray(GOOD[0]).save(tmp_path / "a.png")
    (tmp_path / "data").mkdir()
    data = table(tmp_path / "data", f"a,t1n,{name.format(folder=tmp_path)}", "b,t1n,a.png")
    faults = {}
    assert [subject.id for subject in discover(data, faulty=faults.__setitem__)] == ["b"]
    assert "outside the data set" in str(faults["a"]) or "expected paths relative to the table" in str(faults["a"])


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"subject,modality,file\na,t1n," + b"x" * 200_000, "field larger than field limit"),
        (b"subject,modality,file\n\xff\xfe", "codec can't decode"),
        (b"subject,modality,file\n" + b"a,t1n,a.png\n" * 3_000_000, "larger than 32 MiB"),
        (b"subject,modality,file\na,t1n,\0.png\n", "null byte|line contains NUL|embedded|no such file"),
    ],
    ids=["long field", "not UTF-8", "long table", "NUL"],
)
def test_a_table_that_is_none_is_refused_in_one_line(tmp_path, raw, message):
    (tmp_path / "slices.csv").write_bytes(raw)
    with pytest.raises(DatasetError, match=message) as caught:
        discover(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("edge", [0.001, 100.0, 1e20, 1e30, 1e200])
def test_a_voxel_that_cannot_be_is_refused(edge):
    with pytest.raises(GeometryError, match=r"expected edges from 0\.01 to 50 mm|singular"):
        Grid((24, 26, 22), np.diag([edge, edge, edge, 1]))


def test_a_place_that_cannot_be_is_refused():
    affine = np.eye(4)
    affine[0, 3] = -1e9
    with pytest.raises(GeometryError, match=r"1e\+09 mm from the scanner's centre; expected at most 100000"):
        Grid((24, 26, 22), affine)


@pytest.mark.parametrize("spacing_mm", [0.001, 1e-300, 5e-324])
def test_a_working_grid_is_bounded_before_it_is_made(spacing_mm, monkeypatch):
    grid = Grid((240, 240, 155), np.eye(4))
    with pytest.raises(GeometryError, match=r"240 x 240 x 155 voxels would become .* set MEDK2N_MAX_IMAGE_GIB higher"):
        working_grid(grid, spacing_mm)
    with pytest.raises(GeometryError, match="would become 2400 x 2400 x 155, more than the limit of 3"):
        working_grid(grid, 0.1)
    monkeypatch.setenv(SETTING, "40")
    assert working_grid(grid, 0.1).grid.shape == (2400, 2400, 155)


def test_a_working_grid_no_larger_than_its_image_is_always_allowed():
    grid = Grid((512, 512, 700), np.eye(4))
    assert working_grid(grid, 1.0).grid.shape == (512, 512, 700)


@pytest.mark.parametrize("stated", ["much", "0", "-1", "nan", "inf", ""])
def test_the_limit_is_a_number(tmp_path, monkeypatch, stated):
    monkeypatch.setenv(SETTING, stated)
    with pytest.raises(ConfigError, match=f"{SETTING}={stated}: expected a number of GiB above 0"):
        working_grid(Grid((24, 26, 22), np.eye(4)), 1.5)


def test_the_limit_can_be_raised(tmp_path, monkeypatch):
    (tmp_path / "a.npy").write_bytes(npy(GOOD[0]))
    monkeypatch.setenv(SETTING, "1e-6")
    with pytest.raises(GeometryError, match=r"24 x 22 voxels take .* GiB, the limit is 1e-06"):
        read_npy(tmp_path / "a.npy")
    monkeypatch.setenv(SETTING, "0.001")
    np.testing.assert_array_equal(read_npy(tmp_path / "a.npy"), GOOD[0])


def test_a_blur_is_never_wider_than_the_image_allows():
    small = Grid((20, 20, 20), np.diag([0.01, 0.01, 0.01, 1]))
    large = Grid((4, 4, 4), np.diag([50.0, 50, 50, 1]))
    array = np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32)
    assert np.isfinite(resample(array, small, large)).all()


class TestTheDoor:
    def test_it_wraps_what_is_unknown_in_one_line(self):
        refused = pytest.raises(DatasetError, match=r"^x: cannot be read \(a b\); copy it$")
        with refused as caught, door(DatasetError, "x: cannot be read", "copy it"):
            raise RecursionError("a\n  b")
        assert isinstance(caught.value.__cause__, RecursionError)

    def test_it_lets_our_own_refusals_and_an_interrupt_pass(self):
        for error in (VolumeReadError("known"), KeyboardInterrupt()):
            with pytest.raises(type(error)) as caught, door(DatasetError, "x", "y"):
                raise error
            assert caught.value is error

    def test_it_names_an_error_that_says_nothing(self):
        with pytest.raises(DatasetError, match=r"^x \(NotImplementedError\); y$"), door(DatasetError, "x", "y"):
            raise NotImplementedError

    def test_no_name_in_an_error_breaks_its_line(self):
        assert str(VolumeReadError("a\nb\u2028c.nii  is none")) == "a b c.nii  is none"

    def test_warnings_stay_inside(self, capfd):
        import warnings

        with door(DatasetError, "x", "y"):
            warnings.warn("odd extension", UserWarning, stacklevel=1)
        assert capfd.readouterr() == ("", "")
