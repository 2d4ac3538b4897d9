"""Words planted into every attribute that may speak of a patient, so that a test can look for them afterwards."""

from pathlib import Path

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


def plant_study(folder: Path) -> dict[str, str]:
    """Write a study of two series full of words that must not come out; word -> the attribute that it is in."""
    planter = Planter()
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
    return planter.planted | {"QX998ZW": "the preamble"}


def found(text: str | bytes, words: dict[str, str]) -> set[str]:
    """Which words are in a text, by the attributes that they were planted in."""
    raw = text if isinstance(text, bytes) else text.encode()
    return {name for word, name in words.items() if word.encode() in raw}
