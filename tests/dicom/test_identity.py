"""What a study says of its patient goes where the list of kept attributes lets it, and nowhere else."""

import gzip
from pathlib import Path

import pytest
from pydicom import dcmread

from medk2n.dicom.attributes import KEPT

from .conftest import AFFINE, scan
from .planted import OF_A_SERIES, OF_THE_PATIENT, found, plant_study
from .sources import T1, Patient, classic


@pytest.fixture
def planted(tmp_path) -> tuple[Path, dict[str, str]]:
    return tmp_path / "study", plant_study(tmp_path / "study")


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.filterwarnings("ignore:The value length")
def test_no_word_of_the_patient_comes_out(synth, tmp_path, planted, capsys):
    folder, words = planted
    assert len(set(words.values())) >= 60
    assert len(words) >= 200
    assert synth(folder, "-t", "t2f", "--format", "both", "--manifest", tmp_path / "run.json") == 0
    assert synth(folder, "-t", "t2f") == 2  # outputs are there
    assert synth(folder, "-t", "t2f", "--series", "t1n=1.2.3", out=tmp_path / "x") == 2
    told = capsys.readouterr()
    assert found(told.out + told.err, words) == set()
    assert found((tmp_path / "run.json").read_bytes(), words) == set()
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".gz", ".json", ".html", ".dcm"}
    kept = set()
    for path in files:
        assert found(str(path.relative_to(tmp_path)), words) == set()
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if path.suffix == ".dcm":
            kept |= found(content, words)
        else:
            assert found(content, words) == set(), path
    assert "PatientName" in kept
    assert kept <= set(KEPT)
    tags = {element.keyword for path in files if path.suffix == ".dcm" for element in dcmread(path)}
    assert not tags & (set(OF_THE_PATIENT + OF_A_SERIES) - set(KEPT)) - {
        "SeriesDescription", "ImageComments", "DerivationDescription", "ManufacturerModelName", "SoftwareVersions",
    }  # fmt: skip  # those are ours


def test_the_search_can_fail(planted):
    folder, words = planted
    raw = b"".join(path.read_bytes() for path in folder.rglob("I*"))
    assert found(raw, words) == set(words.values())


@pytest.mark.parametrize(
    ("charset", "name"), [("ISO_IR 100", "Müller^Jörg"), ("ISO_IR 192", "山田^太郎"), (None, "Mueller^Joerg")]
)
def test_a_name_keeps_its_alphabet(tmp_path, charset, name):
    from medk2n.dicom import Maker, write_series

    from .here import read_here

    patient = Patient()
    patient.attributes = {"SpecificCharacterSet": charset, **patient.attributes, "PatientName": name}
    if charset is None:
        del patient.attributes["SpecificCharacterSet"]
    classic(tmp_path / "in", scan(), AFFINE, patient, **T1)
    study = read_here(tmp_path / "in")
    maker = Maker("test", "ab" * 32, "1.0")
    files = write_series(study.volumes["t1n"], study, tmp_path.joinpath, reference="t1n", sources=["t1n"], maker=maker)
    assert str(dcmread(files[0]).PatientName) == name
