"""A folder of DICOM studies: told apart by what they hold, completed with one load of the model, resumable."""

import json
import re
import shutil
import zipfile
from pathlib import Path

import pytest
from pydicom import dcmread

from medk2n.dicom import studies_in
from medk2n.errors import DicomError

from .conftest import AFFINE, scan
from .here import ask_here
from .sources import CONTRASTS, Patient, classic, enhanced

SHAPE = (12, 14, 8)


def study_at(folder: Path, *contrasts: str, patient: Patient | None = None, seed: int = 0) -> str:
    """A study of several series, a folder each; returns its UID."""
    patient = patient or Patient()
    for number, name in enumerate(contrasts, 1):
        array, place = scan(seed + number, SHAPE), folder / f"series{number}"
        classic(place, array, AFFINE, patient, number=number, **CONTRASTS[name])
    return patient.study


def packed(folder: Path) -> Path:
    """The same as a .zip in its place."""
    archive = folder.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("readme.txt", "hello")
        for path in sorted(folder.rglob("*")):
            out.write(path, path.relative_to(folder))
    shutil.rmtree(folder)
    return archive


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Three studies as archives hand them out: a folder of series, a patient's folder around it, a .zip."""
    root = tmp_path_factory.mktemp("made") / "cohort"
    study_at(root / "DOE^JOHN" / "series", "t1n", "t2w")
    study_at(root / "ROE^JANE" / "2020-01-02", "t1n", "t2w", seed=5)
    study_at(root / "third", "t1n", seed=9)
    packed(root / "third")
    (root / "list.csv").write_text("name\n")
    return root


@pytest.fixture
def cohort(made, tmp_path) -> Path:
    shutil.copytree(made, tmp_path / "cohort")
    return tmp_path / "cohort"


@pytest.fixture
def in_process(monkeypatch) -> None:
    """Every study is read in this process, which is as good here and takes a tenth of the time."""
    monkeypatch.setattr("medk2n.dicom.study._ask", ask_here)


def names(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in studies_in(root)]


def test_studies_are_told_apart_by_what_they_hold(cohort):
    assert names(cohort) == ["DOE^JOHN", "ROE^JANE", "third.zip"]
    study_at(cohort / "ROE^JANE" / "2021-03-04", "t1n")  # a second study of one patient
    assert names(cohort) == ["DOE^JOHN", "ROE^JANE/2020-01-02", "ROE^JANE/2021-03-04", "third.zip"]
    assert studies_in(cohort / "DOE^JOHN") == [cohort / "DOE^JOHN"]


@pytest.mark.usefixtures("in_process")
def test_one_study_stays_one_whatever_lies_beside_it(tmp_path):
    study_at(tmp_path / "a", "t1n", "t2w")
    assert studies_in(tmp_path) == [tmp_path]
    with zipfile.ZipFile(tmp_path / "notes.zip", "w") as archive:
        archive.writestr("notes.txt", "hello")
    assert studies_in(tmp_path) == [tmp_path]
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    packed(tmp_path / "b")  # its own copy
    assert studies_in(tmp_path) == [tmp_path]


@pytest.mark.usefixtures("in_process")
def test_an_archive_alone_in_a_folder_is_the_study(tmp_path):
    study_at(tmp_path / "a", "t1n")
    assert studies_in(tmp_path) == [tmp_path]
    packed(tmp_path / "a")
    assert studies_in(tmp_path) == [tmp_path / "a.zip"]


@pytest.mark.usefixtures("in_process")
def test_a_study_spread_among_others_is_refused(tmp_path):
    patient = Patient()
    study_at(tmp_path / "a", "t1n", patient=patient)
    study_at(tmp_path / "b", "t2w", patient=patient)
    study_at(tmp_path / "c", "t2f")
    with pytest.raises(DicomError, match=r"holds 2 studies, and one of them lies in several folders \(a, b\)"):
        studies_in(tmp_path)


@pytest.mark.usefixtures("in_process")
def test_studies_in_one_folder_cannot_be_parted(synth, tmp_path, capsys):
    for number, seed in enumerate((0, 1)):
        enhanced(tmp_path / "in" / f"{number}.dcm", scan(seed, SHAPE), AFFINE, Patient(), **CONTRASTS["t1n"])
    assert synth(tmp_path / "in", "-t", "t2f") == 2
    assert "holds 2 studies" in capsys.readouterr().err


@pytest.mark.usefixtures("in_process")
def test_a_cohort_is_completed_with_one_load_and_goes_on_where_it_was(synth, cohort, tmp_path, loads, capsys):
    out = tmp_path / "out"
    assert synth(cohort, "-t", "t2f", "--manifest", tmp_path / "run.json") == 0
    assert len(loads) == 1
    told = capsys.readouterr().out
    ids = re.findall(r"(study-\w{8}): \S*cohort/", told)
    assert len(ids) == 3
    assert "1 of 3, about " in told
    assert "group.html" in told
    run = json.loads((tmp_path / "run.json").read_text())
    assert set(run["studies"]) == set(ids)
    assert run["studies_per_hour"] > 1
    assert {Path(one["source"]).name for one in run["studies"].values()} == {"DOE^JOHN", "ROE^JANE", "third.zip"}
    for name in ids:
        series = sorted((out / name / f"{name}_desc-synth_FLAIR_dicom").iterdir())
        study = run["studies"][name]["dicom"]["study"]
        assert {dcmread(path).StudyInstanceUID for path in series} == {study}
    page = (out / "group.html").read_text()
    assert all(name in page for name in ids)
    files = [path for path in out.rglob("*") if path.is_file()]
    assert not [path for path in files if "DOE^JOHN" in str(path.relative_to(out)) or path.suffix == ".gz"]
    assert not [path for path in files if path.suffix in (".json", ".html") and b"DOE^JOHN" in path.read_bytes()]

    before = {path: path.stat().st_mtime_ns for path in files if path.suffix == ".dcm"}
    victim = out / ids[1] / f"{ids[1]}_desc-synth_FLAIR_dicom" / "0003.dcm"
    made = dcmread(victim).SOPInstanceUID
    victim.unlink()
    (cohort / "DOE^JOHN").rename(cohort / "renamed")  # where a study lies does not matter
    loads.clear()
    assert synth(cohort, "-t", "t2f") == 0
    assert "2 of 3 studies are complete already" in capsys.readouterr().out
    assert len(loads) == 1
    assert dcmread(victim).SOPInstanceUID == made
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*.dcm")}
    assert set(after) == set(before)
    assert all(after[path] == before[path] for path in before if ids[1] not in path.parts)
    loads.clear()
    assert synth(cohort, "-t", "t2f") == 0
    assert loads == []
    capsys.readouterr()
    for change, said in (
        (["--format", "both"], "made with other dicom"),
        (["--no-burn-in"], "made with other dicom"),
        (["--seed", "3"], "made with other seed"),
    ):
        assert synth(cohort, "-t", "t2f", *change) == 2
        assert said in capsys.readouterr().err
    content = victim.read_bytes()
    victim.write_bytes(b"mine")
    assert synth(cohort, "-t", "t2f") == 2
    assert "0003.dcm" in capsys.readouterr().err
    victim.write_bytes(content)
    (victim.parent / "9999.dcm").write_bytes(b"mine")
    assert synth(cohort, "-t", "t2f") == 2
    assert "9999.dcm" in capsys.readouterr().err
    assert loads == []


def test_images_of_a_cohort_come_in_both_forms(synth, cohort, tmp_path):
    shutil.rmtree(cohort / "ROE^JANE")
    assert synth(cohort, "-t", "t2f", "--format", "both") == 0
    assert len(list((tmp_path / "out").rglob("*desc-synth_FLAIR.nii.gz"))) == 2
    assert len(list((tmp_path / "out").rglob("*desc-synth_FLAIR_dicom/0001.dcm"))) == 2


@pytest.mark.usefixtures("in_process")
def test_a_study_that_fails_stops_nobody_and_is_named_last(synth, cohort, tmp_path, capsys):
    series = cohort / "ROE^JANE" / "2020-01-02" / "series1"
    for path in sorted(series.iterdir()):
        if dcmread(path).InstanceNumber in (5, 6):
            path.unlink()
    (cohort / "broken.zip").write_bytes((cohort / "third.zip").read_bytes()[:-900])
    study_at(cohort / "full", "t1n", "t2w", "t2f", seed=3)  # lacks nothing of what is asked
    assert synth(cohort, "-t", "t2f", "--manifest", tmp_path / "run.json") == 3
    complaints = capsys.readouterr().err.splitlines()[-2:]
    assert all(re.match(r"medk2n: folder-\w{8} failed: ", line) for line in complaints)
    assert any("slices are missing" in line for line in complaints)
    assert any("broken.zip" in line for line in complaints)
    assert len([path for path in (tmp_path / "out").glob("study-*") if path.is_dir()]) == 3
    page = (tmp_path / "out" / "group.html").read_text()
    assert page.split("Without a result")[1].split("</section>")[0].count("folder-") == 2
    assert "ROE^JANE" not in page


@pytest.mark.usefixtures("in_process")
def test_a_study_that_fails_when_its_turn_has_come(synth, cohort, tmp_path, capsys):
    file = next((cohort / "DOE^JOHN").rglob("I*"))
    file.write_bytes(file.read_bytes()[:-100])  # pixels too short, which its header does not tell
    shutil.rmtree(cohort / "ROE^JANE")
    assert synth(cohort, "-t", "t2f") == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"study-\w{8} failed: .*its pixels cannot be read", last)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--series", "t1n=1.2"], "--series names a series of one study"),
        (["--set", "fusion.ct.key=t1n"], "no study wants ct"),
    ],
)
def test_bad_requests_of_a_cohort(synth, cohort, capsys, arguments, message):
    assert synth(cohort, "-t", "t2f", *arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("in_process")
def test_a_cohort_of_which_nothing_can_be_used(synth, cohort, capsys):
    for place in ("DOE^JOHN", "ROE^JANE"):
        for path in list((cohort / place).rglob("I*"))[::2]:
            path.unlink()
    (cohort / "third.zip").unlink()
    assert synth(cohort, "-t", "t2f") == 2
    assert "all 2 studies are faulty; the first: " in capsys.readouterr().err
