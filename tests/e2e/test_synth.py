"""`medk2n synth`: what it writes, and what it says when the input is bad."""

import errno
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medk2n.cli.main import main

from .conftest import AFFINE, SHAPE, save, scan


def left_behind(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*")] if folder.is_dir() else []


def test_named_inputs_and_targets(synth, study, tmp_path, capsys):
    code = synth(
        "-i", f"t1n={study / 't1n.nii.gz'}", "-i", f"t2w={study / 't2w.nii.gz'}", "-t", "t1ce", "-t", "ct,t2f",
        "--manifest", tmp_path / "run.json",
    )  # fmt: skip
    assert code == 0
    out = tmp_path / "out"
    names = {"ce-gadolinium_desc-synth_T1w", "desc-synth_ct", "desc-synth_FLAIR"}
    images = {p.name.removesuffix(".nii.gz").removeprefix("patient-7_") for p in out.glob("*desc-synth_*.nii.gz")}
    assert images == names
    assert len(list(out.glob("*desc-synthstd_*.nii.gz"))) == 3
    reference = nib.load(study / "t1n.nii.gz")
    image = nib.load(out / "patient-7_desc-synth_FLAIR.nii.gz")
    assert image.get_data_dtype() == np.float32
    assert image.shape == SHAPE
    np.testing.assert_array_equal(image.affine, reference.affine)
    background = np.asarray(reference.dataobj) == 0
    assert not np.asarray(image.dataobj)[background].any()
    sidecar = json.loads((out / "patient-7_desc-synth_FLAIR.json").read_text())
    assert sidecar["Synthetic"] is True
    assert sidecar["SkullStripped"] is True
    assert set(sidecar["Contribution"]["db"]) == {"t1n", "t2w"}
    assert {len(source["sha256"]) for source in sidecar["SourceDetails"]} == {64}
    assert (sidecar["Scaling"]["low"], sidecar["Scaling"]["high"]) == (0.0, 800.0)
    assert json.loads((out / "dataset_description.json").read_text())["DatasetType"] == "derivative"
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["exit_code"] == 0
    assert run["elapsed_s"] > 0
    assert run["peak_memory_mb"] > 0
    assert len(run["outputs"]) == 13
    assert "report.html" in capsys.readouterr().out
    assert not [name for name in left_behind(out) if "tmp" in name]


def test_a_folder_gets_all_that_it_lacks(synth, study, tmp_path):
    assert synth(study) == 0
    suffixes = {p.name.split("_desc-synth_")[1] for p in (tmp_path / "out").glob("*desc-synth_*.nii.gz")}
    assert suffixes == {"T1w.nii.gz", "ct.nii.gz", "FLAIR.nii.gz"}


def test_the_first_input_gives_the_grid_and_reference_changes_it(synth, study, tmp_path):
    other = save(study / "coarse" / "t2w.nii.gz", scan(1, (11, 13, 9)), AFFINE @ np.diag([2, 2, 2, 1.0]))
    inputs = ("-i", f"t2w={other}", "-i", f"t1n={study / 't1n.nii.gz'}", "-t", "t2f")
    assert synth(*inputs, out=tmp_path / "a") == 0
    assert synth(*inputs, "--reference", "t1n", out=tmp_path / "b") == 0
    shapes = [nib.load(next((tmp_path / name).glob("*synth_FLAIR.nii.gz"))).shape for name in "ab"]
    assert shapes == [(11, 13, 9), SHAPE]


def test_a_target_that_is_also_an_input_is_remade(synth, study, tmp_path):
    assert synth(study, "-t", "t1n") == 0
    assert "RE-MADE" in (tmp_path / "out" / "report.html").read_text()


def test_one_bad_study_does_not_stop_the_others(synth, tmp_path, capsys):
    for name in "abc":
        save(tmp_path / "cohort" / name / "t1n.nii.gz", scan())
    (tmp_path / "cohort" / "b" / "t1n.nii.gz").write_bytes(b"")
    assert synth(tmp_path / "cohort", "-t", "t2w", "--manifest", tmp_path / "run.json") == 3
    said = capsys.readouterr()
    assert [line for line in said.err.splitlines() if "b failed" in line and "empty" in line]
    assert [(tmp_path / "out" / name / "report.html").exists() for name in "abc"] == [True, False, True]
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["exit_code"] == 3
    assert "error" in run["studies"]["b"]


def test_existing_output_is_refused_before_any_work(synth, study, tmp_path, monkeypatch, capsys):
    assert synth(study, "-t", "t2f") == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    monkeypatch.setattr("medk2n.inference.synthesizer.Synthesizer.from_pretrained", None)  # it must not get here
    assert synth(study, "-t", "t2f") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    monkeypatch.undo()
    assert synth(study, "-t", "t2f", "--overwrite") == 0


def nonfinite() -> np.ndarray:
    array = scan().astype(np.float32)
    array[3, 4, 5] = np.nan
    return array


def singular(path: Path) -> Path:
    image = nib.Nifti1Image(scan(), AFFINE)
    save(path, scan())
    raw = bytearray(nib.Nifti1Image(image.dataobj, AFFINE).to_bytes())
    raw[280:328] = bytes(48)  # srow_x, srow_y, srow_z
    raw[252:254] = bytes(2)  # qform_code
    path = path.with_suffix("").with_suffix(".nii")
    path.write_bytes(raw)
    return path


def write(content: bytes):
    def maker(path: Path) -> Path:
        path.write_bytes(content)
        return path

    return maker


def truncated(path: Path) -> Path:
    whole = save(path, scan()).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


BAD_FILES = {
    "missing": (lambda path: path, "no such file"),
    "empty": (write(b""), "empty"),
    "not nifti": (write(b"hello" * 100), "is no NIfTI but text"),
    "truncated": (truncated, "cannot be read"),
    "4-D": (lambda path: save(path, np.stack([scan(), scan()], axis=-1)), "4-D"),
    "non-finite": (lambda path: save(path, nonfinite()), "NaN, infinite or beyond"),
    "constant": (lambda path: save(path, np.full(SHAPE, 5, np.int16)), "constant"),
    "singular": (singular, "singular"),
    "elsewhere": (lambda path: save(path, scan(), AFFINE + np.outer([1, 0, 0, 0], [0, 0, 0, 9000])), "overlap"),
    "a folder": (lambda path: path.mkdir() or path, "is a folder"),
}


@pytest.mark.parametrize(("make", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_file(synth, study, tmp_path, capsys, make, message):
    bad = make(tmp_path / "bad.nii.gz")
    assert synth("-i", f"t1n={study / 't1n.nii.gz'}", "-i", f"t2w={bad}", "-t", "t2f") == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("medk2n: error: ")
    assert complaint.count("\n") == 1
    assert message in complaint
    assert bad.name in complaint
    assert not (tmp_path / "out").exists()


def test_a_scan_without_contrast_is_named(synth, study, tmp_path, capsys):
    flat = np.zeros(SHAPE, np.int16)
    flat[4:-4, 4:-4, 2:-2] = 7
    flat[5, 5, 3] = 8
    save(tmp_path / "flat.nii.gz", flat)
    assert synth("-i", f"t1n={tmp_path / 'flat.nii.gz'}", "-t", "t2f") == 2
    assert f"{tmp_path / 'flat.nii.gz'}: t1n volume: no contrast inside the foreground" in capsys.readouterr().err


def test_a_study_of_strangers_says_what_the_model_knows(synth, tmp_path, capsys):
    (tmp_path / "study").mkdir()
    save(tmp_path / "study" / "pet.nii.gz", scan())
    assert synth(tmp_path / "study", "-t", "t1c") == 2
    assert "the study has pet alone; the model knows ct, t1c" in capsys.readouterr().err


BAD_USAGE = {
    "unknown input": (["-i", "t1q=T1"], "did you mean"),
    "doubled input": (["-i", "t1n=T1", "-i", "t1w=T2"], "twice"),
    "doubled by name": (["-i", "T1", "-i", "t1n=T2"], "twice"),
    "unknown target": (["-i", "t1n=T1", "-t", "t9"], "unknown modality"),
    "doubled target": (["-i", "t1n=T1", "-t", "t1c", "-t", "t1ce"], "twice"),
    "target the model lacks": (["-i", "t1n=T1", "-t", "pet"], "it knows ct, t1c, t1n, t2f, t2w"),
    "input the model lacks": (["-i", "pet=T1", "-t", "t1n"], "it knows ct, t1c, t1n, t2f, t2w"),
    "no input": (["-t", "t1c"], "STUDY folder or -i"),
    "both": (["STUDY", "-i", "t1n=T1"], "STUDY folder or -i"),
    "name tells nothing": (["-i", "README"], "MODALITY="),
    "empty value": (["-i", "t1n="], "expected MODALITY=FILE"),
    "no folder": (["STUDY/nowhere"], "no such folder"),
    "nothing in it": (["EMPTY"], "no scans found"),
    "reference not given": (["STUDY", "--reference", "ct"], "not among the inputs"),
    "device": (["STUDY", "--device", "tpu"], "expected auto, cpu"),
    "absent device": (["STUDY", "--device", "cuda:99"], "CUDA devices"),
    "model": (["STUDY", "--model", "none"], "no model 'none'"),
    "option": (["STUDY", "--fast"], "--help"),
    "negative seed": (["STUDY", "--seed", "-1"], "--seed"),
    "out is a file": (["STUDY", "--out", "T1"], "not a folder"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_USAGE.values(), ids=BAD_USAGE)
def test_bad_usage(model, study, tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    places = {"STUDY": study, "EMPTY": tmp_path / "empty", "T1": study / "t1n.nii.gz", "T2": study / "t2w.nii.gz"}
    for key, place in places.items():
        arguments = [argument.replace(key, str(place)) for argument in arguments]
    out = tmp_path / "out"
    assert main(["synth", "-o", str(out), "--model", str(model), "--device", "cpu", *arguments]) == 2
    complaint = capsys.readouterr().err.strip()
    assert complaint.count("\n") == 0
    assert message in complaint
    assert left_behind(out) == []


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 1, "disk full"),
        (PermissionError(errno.EACCES, "Permission denied"), 2, "permission"),
        (MemoryError(), 1, "out of memory"),
        (RuntimeError("a bug"), 1, "--debug"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=["disk full", "no permission", "out of memory", "a bug", "Ctrl-C"],
)
def test_nothing_half_written(synth, study, tmp_path, monkeypatch, capsys, failure, code, message):
    saved = nib.save

    def fail_at_the_second(image, path):
        if "FLAIR" in Path(path).name:
            raise failure
        saved(image, path)

    monkeypatch.setattr("nibabel.save", fail_at_the_second)
    assert synth(study, "-t", "t1c", "-t", "t2f") == code
    complaint = capsys.readouterr().err.strip()
    assert message in complaint
    assert "Traceback" not in complaint
    assert left_behind(tmp_path / "out") == []


def test_a_manifest_never_replaces_a_scan(synth, study, capsys):
    scan = study / "t1n.nii.gz"
    before = scan.read_bytes()
    assert synth("-i", f"t1n={scan}", "-t", "t2w", "--manifest", scan, "--overwrite") == 2
    assert "expected the name of a .json file" in capsys.readouterr().err
    assert scan.read_bytes() == before


def test_outputs_are_called_as_their_study_is_in_its_file_names(synth, tmp_path):
    """Whether the files are given one by one, or by the folder of the subject, the session or the images."""
    folder = tmp_path / "bids" / "sub-01" / "ses-A" / "anat"
    folder.mkdir(parents=True)
    save(folder / "sub-01_ses-A_T1w.nii.gz", scan())
    made = tmp_path / "out" / "sub-01_ses-A_desc-synth_T2w.nii.gz"
    for place in (folder, folder.parent, folder.parent.parent):
        assert synth(place, "-t", "t2w") == 0
        made.unlink()
        shutil.rmtree(made.parent)


def test_help_shows_its_examples_whole(capsys):
    assert main(["synth", "--help"]) == 0
    assert "leave_out=[t1c]" in capsys.readouterr().out


def test_debug_shows_the_traceback_wherever_it_stands(synth, tmp_path, capsys):
    assert synth(tmp_path / "nowhere", "--debug") == 2
    assert "Traceback" in capsys.readouterr().err
