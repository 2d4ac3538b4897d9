"""Acquired series for the tests, written without a line of the product's writer.

Arrays and affines are NIfTI's: (x, y, z) and RAS. Slices run along the last axis.
"""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CLASSES = {
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "enhanced MR": "1.2.840.10008.5.1.4.1.1.4.1",
    "enhanced CT": "1.2.840.10008.5.1.4.1.1.2.1",
}
T1 = {"SeriesDescription": "AX T1", "EchoTime": 12, "RepetitionTime": 550, "ScanningSequence": "SE"}
T1C = T1 | {"SeriesDescription": "AX T1 POST", "ContrastBolusAgent": "GADOLINIUM"}
T2 = {"SeriesDescription": "AX T2", "EchoTime": 98, "RepetitionTime": 4200, "ScanningSequence": "SE"}
FLAIR = {
    "SeriesDescription": "AX FLAIR", "EchoTime": 110, "RepetitionTime": 9000, "InversionTime": 2500,
    "ScanningSequence": ["SE", "IR"],
}  # fmt: skip
CT = {"SeriesDescription": "HEAD"}
CONTRASTS = {"t1n": T1, "t1c": T1C, "t2w": T2, "t2f": FLAIR, "ct": CT}


class Patient:
    """What all series of a study share."""

    def __init__(self, name: str = "TEST^ANON", number: str = "ANON-1") -> None:
        self.study, self.frame_of_reference = generate_uid(), generate_uid()
        self.attributes = {
            "PatientName": name, "PatientID": number, "PatientBirthDate": "19700101", "PatientSex": "O",
            "StudyInstanceUID": self.study, "StudyDate": "20200102", "StudyTime": "101112", "StudyID": "1",
            "AccessionNumber": "A1", "ReferringPhysicianName": "", "FrameOfReferenceUID": self.frame_of_reference,
        }  # fmt: skip


def lps(affine: np.ndarray) -> np.ndarray:
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def classic(
    folder: Path, array: np.ndarray, affine: np.ndarray, patient: Patient, *, kind: str = "MR", number: int = 1,
    series: str | None = None, slope: float = 1.0, intercept: float = 0.0, names=None, **attributes: object,
) -> str:  # fmt: skip
    """One file a slice, in no order and under names that tell nothing; returns the SeriesInstanceUID."""
    folder.mkdir(parents=True, exist_ok=True)
    series = series or generate_uid()
    for k in np.random.default_rng(number).permutation(array.shape[2]):
        data = slice_of(array[:, :, k], affine, k, patient, kind, number, series, slope, intercept)
        for name, value in attributes.items():
            setattr(data, name, value)
        save(data, folder / (names(k) if names else f"I{number}{k * 37 % 1009:05d}"))
    return series


def slice_of(plane, affine, k, patient, kind, number, series, slope, intercept) -> FileDataset:
    data = new(CLASSES[kind], patient)
    data.SeriesInstanceUID, data.SeriesNumber, data.InstanceNumber = series, number, int(k) + 1
    data.Modality = kind
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if kind == "CT" else "M"]
    data.Manufacturer, data.Laterality = "Test", ""
    data.AcquisitionNumber = 1
    data.PositionReferenceIndicator = ""
    data.PatientPosition = "HFS"
    if kind == "CT":
        data.KVP = 120
        data.RescaleType = "HU"
    else:
        data.SequenceVariant, data.ScanOptions, data.MRAcquisitionType = "NONE", "", "2D"
        data.EchoTrainLength = 1
    matrix = lps(affine)
    data.ImagePositionPatient = ds(matrix[:3, 3] + k * matrix[:3, 2])
    data.ImageOrientationPatient = ds(np.concatenate([unit(matrix[:3, 0]), unit(matrix[:3, 1])]))
    data.PixelSpacing = ds([np.linalg.norm(matrix[:3, 1]), np.linalg.norm(matrix[:3, 0])])
    data.SliceThickness = ds([np.linalg.norm(matrix[:3, 2])])[0]
    if (slope, intercept) != (1.0, 0.0) or kind == "CT":
        data.RescaleSlope, data.RescaleIntercept = slope, intercept
    pixels(data, plane.T)
    return data


def enhanced(
    path: Path, array: np.ndarray, affine: np.ndarray, patient: Patient, *, kind: str = "MR", number: int = 1,
    slope: float = 1.0, intercept: float = 0.0, order=None, **attributes: object,
) -> str:  # fmt: skip
    """One file with all slices; `order` is the frames' order in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = new(CLASSES[f"enhanced {kind}"], patient)
    data.SeriesInstanceUID, data.SeriesNumber, data.InstanceNumber = generate_uid(), number, 1
    data.Modality = kind
    data.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    data.Manufacturer, data.Laterality = "Test", ""
    data.AcquisitionContrast = attributes.pop("AcquisitionContrast", "UNKNOWN")
    echo, repetition = attributes.pop("EchoTime", None), attributes.pop("RepetitionTime", None)
    inversion = attributes.pop("InversionTime", None)
    attributes.pop("ScanningSequence", None)
    for name, value in attributes.items():
        setattr(data, name, value)
    matrix, frames = lps(affine), list(range(array.shape[2]) if order is None else order)
    shared = Dataset()
    put(shared, "PlaneOrientationSequence",
        ImageOrientationPatient=ds(np.concatenate([unit(matrix[:3, 0]), unit(matrix[:3, 1])])))  # fmt: skip
    put(shared, "PixelMeasuresSequence",
        PixelSpacing=ds([np.linalg.norm(matrix[:3, 1]), np.linalg.norm(matrix[:3, 0])]),
        SliceThickness=ds([np.linalg.norm(matrix[:3, 2])])[0])  # fmt: skip
    put(
        shared,
        "PixelValueTransformationSequence",
        RescaleSlope=slope,
        RescaleIntercept=intercept,
        RescaleType="HU" if kind == "CT" else "US",
    )
    if echo:
        put(shared, "MREchoSequence", EffectiveEchoTime=float(echo))
    if repetition:
        put(shared, "MRTimingAndRelatedParametersSequence", RepetitionTime=repetition)
    if inversion:
        put(shared, "MRModifierSequence", InversionTimes=[float(inversion)])
    data.SharedFunctionalGroupsSequence = [shared]
    data.PerFrameFunctionalGroupsSequence = []
    for k in frames:
        frame = Dataset()
        put(frame, "PlanePositionSequence", ImagePositionPatient=ds(matrix[:3, 3] + k * matrix[:3, 2]))
        put(frame, "FrameContentSequence", FrameAcquisitionNumber=1)
        data.PerFrameFunctionalGroupsSequence.append(frame)
    pixels(data, np.stack([array[:, :, k].T for k in frames]))
    data.NumberOfFrames = len(frames)
    save(data, path)
    return data.SeriesInstanceUID


def new(sop_class: str, patient: Patient) -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    for name, value in patient.attributes.items():
        setattr(data, name, value)
    data.SOPClassUID = meta.MediaStorageSOPClassUID = sop_class
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = generate_uid()
    return data


def pixels(data: Dataset, stored: np.ndarray) -> None:
    """(rows, columns) or (frames, rows, columns) of 16-bit integers."""
    data.Rows, data.Columns = stored.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, int(stored.dtype.kind == "i")
    data.PixelData = np.ascontiguousarray(stored).tobytes()


def save(data: FileDataset, path: Path) -> None:
    data.save_as(path, enforce_file_format=True)


def put(groups: Dataset, macro: str, **values: object) -> None:
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    setattr(groups, macro, [item])


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def ds(numbers) -> list[str]:
    from pydicom.valuerep import format_number_as_ds

    return [format_number_as_ds(float(n)) for n in numbers]
