"""What a study says of its patient goes where the list of kept attributes lets it, and nowhere else."""

import gzip
from pathlib import Path

import pytest
from pydicom import config, dcmread
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from medk2n.dicom.attributes import KEPT

from .conftest import AFFINE, scan
from .sources import T1, T2, Patient, classic

OF_THE_PATIENT = [
    "PatientName", "PatientID", "IssuerOfPatientID", "OtherPatientNames", "PatientBirthName",
    "PatientMotherBirthName", "PatientAddress", "PatientTelephoneNumbers", "PatientComments", "Occupation",
    "EthnicGroup", "CountryOfResidence", "RegionOfResidence", "PatientReligiousPreference", "MilitaryRank",
    "BranchOfService", "MedicalAlerts", "Allergies", "AdditionalPatientHistory",
    "PatientInsurancePlanCodeSequence", "ResponsiblePerson", "ResponsibleOrganization", "StudyDescription",
    "StudyID", "AccessionNumber", "ReferringPhysicianName", "PhysiciansOfRecord", "NameOfPhysiciansReadingStudy",
    "AdmittingDiagnosesDescription", "DeidentificationMethod",
]  # fmt: skip
OF_A_SERIES = [
    "SeriesDescription", "ProtocolName", "InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName",
    "StationName", "OperatorsName", "PerformingPhysicianName", "RequestingPhysician",
    "RequestedProcedureDescription", "RequestedProcedureID", "RequestedProcedureComments",
    "PerformedProcedureStepDescription", "PerformedProcedureStepID", "ScheduledProcedureStepID",
    "ScheduledProcedureStepDescription", "CommentsOnThePerformedProcedureStep", "ReasonForStudy",
    "RequestingService", "CurrentPatientLocation", "PatientInstitutionResidence", "ImageComments",
    "FrameComments", "DerivationDescription", "AcquisitionComments", "ContrastBolusRoute", "DeviceSerialNumber",
    "ManufacturerModelName", "SoftwareVersions", "BodyPartExamined", "ImageID",
    "AcquisitionDeviceProcessingDescription", "TextComments", "IdentifyingComments",
    "LossyImageCompressionMethod", "SequenceName", "ReceiveCoilName", "TransmitCoilName", "AdmissionID",
    "IssuerOfAdmissionID", "InterpretationAuthor", "VisitComments",
    "ConfidentialityConstraintOnPatientDataDescription", "FillerOrderNumberImagingServiceRequest",
    "PlacerOrderNumberImagingServiceRequest", "OrderEnteredBy", "OrderCallbackPhoneNumber",
    "TimezoneOffsetFromUTC",
]  # fmt: skip
SEVERAL = ("CS", "LO", "PN", "SH")


class Planter:
    """Puts a new word into each attribute (two where it may have two values), and remembers which."""

    def __init__(self) -> None:
        self.planted: dict[str, str] = {}

    def plant(self, data: Dataset, names: list[str]) -> Dataset:
        for name in names:
            tag, vr = tag_for_keyword(name), dictionary_VR(name)
            if vr == "SQ":
                item = Dataset()
                item.CodeMeaning = self._word(name)
                data.add(DataElement(tag, "SQ", [item]))
                continue
            words = [self._word(name) for _ in range(2 if vr in SEVERAL and name not in KEPT else 1)]
            value = words if len(words) > 1 else words[0]
            data.add(DataElement(tag, vr, value, validation_mode=config.IGNORE))
        block = data.private_block(0x0099, "TEST", create=True)
        block.add_new(1, "LO", self._word("private"))
        return data

    def _word(self, name: str) -> str:
        word = f"QX{len(self.planted):03d}ZW"
        self.planted[word] = name
        return word


@pytest.fixture
def planted(tmp_path) -> tuple[Path, dict[str, str]]:
    """A study of two series, full of words that must not come out."""
    folder, planter = tmp_path / "study", Planter()
    classic(folder / "a", scan(0), AFFINE, Patient(), number=1, **T1)
    patient = dcmread(next((folder / "a").iterdir())).StudyInstanceUID
    common = planter.plant(Dataset(), OF_THE_PATIENT)
    classic(folder / "b", scan(1), AFFINE, Patient(), number=2, **T2)
    frame = None
    for series in ("a", "b"):
        own = planter.plant(Dataset(), OF_A_SERIES)
        own["SeriesDescription"].value = f"AX {(series == 'a' and 'T1') or 'T2'} {own['SeriesDescription'].value[0]}"
        for path in (folder / series).iterdir():
            data = dcmread(path)
            frame = frame or data.FrameOfReferenceUID
            data.update(common)
            data.update(own)
            data.StudyInstanceUID, data.FrameOfReferenceUID = patient, frame
            data.preamble = b"QX998ZW".ljust(128, b"\0")
            data.save_as(path)
    return folder, planter.planted | {"QX998ZW": "the preamble"}


def found(text: str | bytes, words: dict[str, str]) -> set[str]:
    """Which words are in a text, by the attributes that they were planted in."""
    raw = text if isinstance(text, bytes) else text.encode()
    return {name for word, name in words.items() if word.encode() in raw}


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
