"""Small MR objects, and a worker that answers with as many derived ones: what a node needs to be looked at."""

from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

MR = "1.2.840.10008.5.1.4.1.1.4"


def mr(study: str, series: str, number: int, *, side: int = 16, **attributes: object) -> Dataset:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = MR
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID, data.InstanceNumber = study, series, number
    data.PatientID, data.PatientName, data.Modality, data.SeriesNumber = "ANON-1", "TEST^ANON", "MR", 1
    data.StudyDate, data.StudyTime, data.AccessionNumber, data.StudyID = "20200102", "101112", "", "1"
    data.PatientBirthDate, data.PatientSex, data.ReferringPhysicianName = "", "", ""
    data.Rows = data.Columns = side
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation, data.SamplesPerPixel = 15, 0, 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.PixelData = np.full((side, side), number, np.uint16).tobytes()
    for name, value in attributes.items():
        setattr(data, name, value)
    return data


def study_of(count: int, **attributes: object) -> list[Dataset]:
    study, series = generate_uid(), generate_uid()
    attributes = {"ImagesInAcquisition": count} | attributes  # so that a node on a busy machine knows what to wait for
    return [mr(study, series, number + 1, **attributes) for number in range(count)]


class Derive:
    """Answers each image with a derived one, under UIDs that are made of what it was made of; counts its calls."""

    def __init__(self) -> None:
        self.studies: list[int] = []

    def __call__(self, source: Path, out: Path) -> dict[str, list[str]]:
        files = sorted(source.iterdir())
        self.studies.append(len(files))
        images = [dcmread(file) for file in files]
        entropy = [image.SOPInstanceUID for image in images]
        (out / "t2f_dicom").mkdir(parents=True)
        series = generate_uid(entropy_srcs=["series", *entropy])
        for number, image in enumerate(images, 1):
            image.SeriesInstanceUID = series
            image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid(
                entropy_srcs=[str(number), *entropy]
            )
            image.SyntheticData, image.InstanceNumber = "YES", number
            image.save_as(out / "t2f_dicom" / f"{number:04d}.dcm", enforce_file_format=True)
        return {"warnings": []}
