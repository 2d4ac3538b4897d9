"""What was chosen, taken on trust or left out is told: on the terminal, in the sidecar, in the inventory."""

import json

import nibabel as nib
import numpy as np

from medk2n.cli.main import main

from .conftest import AFFINE, SHAPE, scan


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
