"""What was chosen, taken on trust or left out is told: on the terminal, in the sidecar, in the inventory."""

import json
import os
import subprocess
import sys

import nibabel as nib
import numpy as np

from medk2n.cli.main import main

from .conftest import AFFINE, SHAPE, save, scan


def at_odds(path):
    image = nib.Nifti1Image(scan(), AFFINE)
    image.set_qform(AFFINE + np.array([[0, 0, 0, 30.0]] + [[0] * 4] * 3), code=1)
    nib.save(image, path)


def test_two_placements_at_odds_are_told_by_synth_and_index(synth, study, tmp_path, capsys):
    at_odds(study / "t1n.nii.gz")
    told = "qform and sform place the image up to 30 mm apart; the sform was taken"
    assert synth(study, "-t", "t2f") == 0
    assert capsys.readouterr().err == f"medk2n: warning: patient-7: t1n: {told}\n"
    sidecar = json.loads((tmp_path / "out" / "patient-7_desc-synth_FLAIR.json").read_text())
    assert sidecar["Run"]["warnings"] == [f"t1n: {told}"]
    assert main(["index", str(study), "-o", str(tmp_path / "index")]) == 0
    assert f"header: patient-7 t1n: {told}" in capsys.readouterr().out


def test_a_scan_in_microns_gives_the_images_of_one_in_mm(synth, study, tmp_path):
    assert synth(study, "-t", "t2f", out=tmp_path / "mm") == 0
    scale = np.diag([1000.0, 1000, 1000, 1])
    for path in study.iterdir():
        image = nib.Nifti1Image(np.asarray(nib.load(path).dataobj), scale @ AFFINE)
        image.header.set_xyzt_units("micron")
        nib.save(image, path)
    assert synth(study, "-t", "t2f", out=tmp_path / "micron") == 0
    (a,), (b,) = ((tmp_path / unit).glob("*desc-synth_FLAIR.nii.gz") for unit in ("mm", "micron"))
    first, second = nib.load(a), nib.load(b)
    assert first.shape == SHAPE
    np.testing.assert_allclose(first.affine, second.affine, atol=1e-4)
    np.testing.assert_allclose(first.get_fdata(), second.get_fdata(), atol=1e-2)


def test_what_lies_beside_the_inputs_is_told_where_it_is_synthesised_beside(synth, study, tmp_path, capsys):
    (study / "flair.nii.gz").symlink_to(".git/annex/objects/xx/MD5E-s1.nii.gz")
    save(study / "CT1.nii.gz", scan(3))
    assert synth(study) == 0
    told = capsys.readouterr().err
    assert "patient-7: left out: flair.nii.gz (a link to a file that is not there; fetch it first" in told
    assert "patient-7: left out: CT1.nii.gz (its name tells no modality)" in told
    sidecar = json.loads((tmp_path / "out" / "patient-7_desc-synth_FLAIR.json").read_text())
    assert len(sidecar["Run"]["warnings"]) == 2
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("left out: ") >= 2
    assert "What each input is expected to contribute" in page
    assert sidecar["Contribution"]["meaning"] == "expected: shares of PredictedQuality, not measured"


def test_of_two_runs_one_is_chosen_or_none_is_taken(synth, study, tmp_path, capsys):
    (study / "t2w.nii.gz").rename(study / "t2w_run-1.nii.gz")
    save(study / "t2w_run-2.nii.gz", scan(4))
    assert synth(study, "-t", "t2f") == 2
    assert "are t2w, expected one file a modality; choose with --prefer" in capsys.readouterr().err
    assert synth(study, "-t", "t2f", "--prefer", "run-2") == 0
    sidecar = json.loads((tmp_path / "out" / "patient-7_desc-synth_FLAIR.json").read_text())
    assert any("t2w_run-2" in source for source in sidecar["Sources"])


def test_ct_that_cannot_be_in_hu_is_told_and_not_called_so(synth, study, tmp_path, capsys):
    for name, offset in (("hu", 0), ("raw", 1024)):
        head = scan() > 0
        ct = np.where(head, scan() // 10, -1000) + np.random.default_rng(0).normal(0, 9, SHAPE) + offset
        save(tmp_path / name / "ct.nii.gz", ct.astype(np.int16))
        assert synth(tmp_path / name, "-t", "t2f,ct", out=tmp_path / "out" / name) == 0
    assert capsys.readouterr().err.count("values cannot be HU") == 1
    units = [json.loads(next((tmp_path / "out" / name).glob("*desc-synth_ct.json")).read_text())["Units"]
             for name in ("hu", "raw")]  # fmt: skip
    assert units == ["HU", "arbitrary"]
    assert main(["index", str(tmp_path / "raw"), "-o", str(tmp_path / "index")]) == 0
    assert "unit: raw ct: its values cannot be HU" in capsys.readouterr().out


def test_a_smaller_scan_gives_what_it_gives_alone_where_it_was_acquired(synth, study, tmp_path):
    """One odd voxel must not decide what a scan is filled up with, nor whether it is stripped."""
    head = np.where(scan() > 0, scan(), 0) + np.abs(np.random.default_rng(1).normal(0, 8, SHAPE))
    part = head[3:-3, 3:-3, 2:-2].copy()
    place = AFFINE @ nib.affines.from_matvec(np.eye(3), [3, 3, 2])
    for name, odd in (("plain", None), ("odd", -500.0)):
        save(tmp_path / name / "t1n.nii.gz", head.astype(np.float32))
        image = part.copy()
        if odd is not None:
            image[0, 0, 0] = odd
        save(tmp_path / name / "t2w.nii.gz", image.astype(np.float32), place)
        assert synth(tmp_path / name, "-t", "t2f", out=tmp_path / "out" / name) == 0
    (a,), (b,) = ((tmp_path / "out" / name).glob("*desc-synth_FLAIR.nii.gz") for name in ("plain", "odd"))
    apart = np.abs(nib.load(a).get_fdata() - nib.load(b).get_fdata())
    assert np.mean(apart > 2) < 1e-3
    assert not json.loads(next((tmp_path / "out" / "odd").glob("*desc-synth_FLAIR.json")).read_text())["SkullStripped"]


def test_letters_that_are_none_end_nothing(model, study, tmp_path):
    """A folder from an old disk, its name in Latin-1."""
    folder = os.fsencode(tmp_path) + b"/pati\xe9nt"
    os.rename(os.fsencode(study), folder)  # noqa: PTH104
    run = [sys.executable, "-m", "medk2n"]
    for options in (["synth", folder, "-t", "t2f", "--model", model, "-o"], ["index", folder, "-o"]):
        done = subprocess.run([*run, *options, tmp_path / options[0]], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
    sidecar = json.loads(next((tmp_path / "synth").glob("*desc-synth_FLAIR.json")).read_text(encoding="utf-8"))
    assert os.fsencode(sidecar["SourceDetails"][0]["path"]).startswith(folder)
    for page in ("synth/report.html", "index/index.md", "index/index.csv"):
        assert "udce9nt" in (tmp_path / page).read_text(encoding="utf-8")
