"""A synthetic volume as a derived DICOM series that lies on the patient and says that it is synthetic."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medk2n.dicom.attributes import put_back
from medk2n.dicom.burn import burn_in
from medk2n.dicom.geometry import Planes
from medk2n.dicom.scale import Scale, rescale
from medk2n.dicom.study import DicomStudy, Series
from medk2n.errors import GeometryError
from medk2n.io.volume import Volume
from medk2n.vocabulary import MODALITIES

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_CLASS = {"MR": "1.2.840.10008.5.1.4.1.1.4", "CT": "1.2.840.10008.5.1.4.1.1.2"}
_ERROR_SERIES = 50  # added to the series number of what the error belongs to
_ITEM = b"\xfe\xff\x00\xe0"
_FIRST_SERIES = 9001  # far above what scanners count to


@dataclass(frozen=True)
class Maker:
    """Who made a series: written into ContributingEquipmentSequence, and part of every new UID.

    Attributes:
        model: its name.
        model_sha256: of its weights (hex).
        version: of this package.
        settings: whatever else decides about the voxels (seed, rules), as text.
    """

    model: str
    model_sha256: str
    version: str
    settings: str = ""


def write_series(
    volume: Volume,
    study: DicomStudy,
    place: Callable[[str], Path],
    *,
    reference: str,
    sources: Sequence[str],
    maker: Maker,
    error: bool = False,
    burnt: bool = True,
    made_at: datetime | None = None,
) -> list[Path]:
    """Write one file a slice: 0001.dcm, 0002.dcm, ...

    The same volume of the same study by the same maker gets the same UIDs, so that a repetition doubles nothing.

    Args:
        place: where a file of this name belongs; its folder must be there.
        volume: on the grid of `study.series[reference]`; CT in HU.
        sources: modalities of the study that it was made from.
        error: whether `volume` is the predicted error of a synthetic one.
        burnt: whether the word SYNTHETIC goes into the pixels.
        made_at: now, unless told otherwise.

    Raises:
        GeometryError: the volume lies on another grid.
    """
    template = study.series[reference]
    if not volume.grid.same_as(template.volume.grid):
        raise GeometryError(f"{volume.modality}: lies on another grid than {reference}; a derived series has its grid")
    array = volume.array.transpose(2, 1, 0)
    kind = "CT" if volume.modality == "ct" else "MR"
    scale = rescale(array, hounsfield=kind == "CT" and not error)
    stored = scale.store(burn_in(array, scale.window_high) if burnt else array)
    named = _Named.of(volume.modality, study, sources, maker, error=error, burnt=burnt)
    common = _common(volume, study, template, maker, named, scale, kind, burnt, made_at or datetime.now())
    origin = _SourcesBySlice(study, sources, template.planes)
    files = []
    for k in range(len(stored)):
        data = _slice(common, template.planes, k, stored[k], named)
        origin.refer(data, k)
        path = place(f"{k + 1:04d}.dcm")
        data.save_as(path, enforce_file_format=True)
        files.append(path)
    return files


@dataclass(frozen=True)
class _Named:
    """What a series and its slices are called: UIDs made of what they were made of."""

    series: str
    entropy: str
    description: str
    number: int

    @classmethod
    def of(
        cls, modality: str, study: DicomStudy, sources: Sequence[str], maker: Maker, *, error: bool, burnt: bool
    ) -> "_Named":
        images = [instance.sop_uid for name in sources for instance in study.series[name].instances]
        entropy = "|".join(
            [study.uid, modality, str(error), str(burnt), maker.model_sha256, maker.version, maker.settings, *images]
        )
        number = _FIRST_SERIES + list(MODALITIES).index(modality) + (_ERROR_SERIES if error else 0)
        return cls(_uid(entropy, "series"), entropy, description(modality, error=error), number)


def description(modality: str, *, error: bool) -> str:
    """SeriesDescription of a synthetic image or its predicted error; at most 64 characters."""
    label = MODALITIES[modality].label
    return f"SYNTHETIC {label}: predicted error" if error else f"SYNTHETIC {label}, not for diagnosis"


def _uid(*parts: str) -> str:
    """A UID under the root for UUIDs, the same for the same parts."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, '|'.join(parts)).int}"


def _common(
    volume: Volume,
    study: DicomStudy,
    template: Series,
    maker: Maker,
    named: _Named,
    scale: Scale,
    kind: str,
    burnt: bool,
    made_at: datetime,
) -> "Dataset":
    """Everything that all slices of a series share."""
    from pydicom.dataset import Dataset

    data = Dataset()
    put_back(data, dict(study.values), dict(study.codes))
    for name in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
                 "AccessionNumber", "ReferringPhysicianName"):  # fmt: skip
        if name not in data:
            setattr(data, name, None)
    data.StudyInstanceUID = study.uid
    date, time = made_at.strftime("%Y%m%d"), made_at.strftime("%H%M%S")
    data.SOPClassUID = _CLASS[kind]
    data.Modality = kind
    data.SeriesInstanceUID = named.series
    data.SeriesNumber = named.number
    data.SeriesDescription = named.description
    data.SeriesDate = data.ContentDate = data.InstanceCreationDate = date
    data.SeriesTime = data.ContentTime = data.InstanceCreationTime = time
    data.FrameOfReferenceUID = template.frame_of_reference or _uid(study.uid, template.uid, "frame of reference")
    data.PositionReferenceIndicator = data.PatientPosition = data.Laterality = data.AcquisitionNumber = None
    data.Manufacturer = "medk2n"
    data.ManufacturerModelName = maker.model[:64]
    data.SoftwareVersions = maker.version
    data.SyntheticData = "YES"
    data.ImageType = ["DERIVED", "SECONDARY", "AXIAL" if kind == "CT" else "OTHER", "SYNTHETIC"]
    data.ContentQualification = "RESEARCH"
    data.BurnedInAnnotation = "YES" if burnt else "NO"
    data.ImageComments = "SYNTHETIC image made by software, not acquired. Research use only, not for diagnosis."
    data.DerivationDescription = f"Predicted by medk2n {maker.version}, model {maker.model[:40]}, from other series"
    data.DerivationCodeSequence = [_code("SYNTHESIS", "99MEDK2N", "Synthesis of an image by a trained model")]
    data.ContributingEquipmentSequence = [_equipment(maker, made_at)]
    data.LossyImageCompression = "00"
    _kind_attributes(data, kind)
    _pixel_attributes(data, template.planes, scale, MODALITIES[volume.modality].unit)
    return _encoded(data)


def _encoded(data: "Dataset") -> "Dataset":
    """The same with its elements as bytes, so that what all slices share is encoded once."""
    from pydicom import dcmread, dcmwrite

    buffer = BytesIO()
    dcmwrite(buffer, data, implicit_vr=False, little_endian=True)
    buffer.seek(0)
    return dcmread(buffer, force=True)


def _equipment(maker: Maker, made_at: datetime) -> Any:
    from highdicom import ContributingEquipment
    from pydicom.sr.codedict import codes

    equipment = ContributingEquipment(
        manufacturer="medk2n",
        purpose_of_reference=codes.DCM.SynthesizingEquipment,
        manufacturer_model_name=maker.model[:64],
        software_versions=maker.version,
        device_serial_number=maker.model_sha256[:64],
        contribution_datetime=made_at,
        contribution_description="Synthesis by a model; its serial number is the SHA-256 of the weights",
    )
    equipment.DeviceUID = _uid("model", maker.model_sha256)  # another one for other weights
    return equipment


def _code(value: str, scheme: str, meaning: str) -> "Dataset":
    from pydicom.dataset import Dataset

    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def _kind_attributes(data: "Dataset", kind: str) -> None:
    """What the MR or CT module wants: nothing was acquired, so what would tell how stays empty."""
    if kind == "CT":
        data.KVP = None
        return
    data.ScanningSequence = "RM"
    data.SequenceVariant = "NONE"
    data.ScanOptions = data.MRAcquisitionType = None
    data.EchoTime = data.RepetitionTime = data.EchoTrainLength = None


def _pixel_attributes(data: "Dataset", planes: Planes, scale: Scale, unit: str) -> None:
    data.Rows, data.Columns = planes.shape
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit = 15
    data.PixelRepresentation = 1
    data.RescaleSlope, data.RescaleIntercept = scale.slope_text, scale.intercept_text
    data.RescaleType = "HU" if unit == "HU" else "US"
    data.WindowCenter, data.WindowWidth = scale.window_center_text, scale.window_width_text
    if float(scale.window_width_text) < 1:  # which the plain window may not be
        data.VOILUTFunction = "LINEAR_EXACT"
    data.PixelSpacing = [_ds(n) for n in planes.spacing_mm]
    data.ImageOrientationPatient = [_ds(n) for n in (*planes.row, *planes.column)]
    data.SliceThickness = _ds(planes.thickness_mm or planes.step_mm)
    data.SpacingBetweenSlices = _ds(planes.step_mm)


def _slice(common: "Dataset", planes: Planes, k: int, stored: np.ndarray, named: _Named) -> "Dataset":
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    data = Dataset(common)
    data.SOPInstanceUID = _uid(named.entropy, "slice", str(k))
    data.InstanceNumber = k + 1
    data.ImagePositionPatient = [_ds(n) for n in planes.positions[k]]
    data.SliceLocation = _ds(planes.heights[k])
    data.PixelData = stored.astype("<i2").tobytes()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    return data


class _SourcesBySlice:
    """SourceImageSequence of a slice: of every source series the images that lie at it or beside it.

    Over a whole series that is every source image within its field of view.
    """

    def __init__(self, study: DicomStudy, sources: Sequence[str], planes: Planes) -> None:
        self._series = [study.series[name] for name in sources]
        self._reach = [_reach(series.acquired, planes.normal) for series in self._series]
        self._heights, self._near = planes.heights, planes.step_mm
        self._items: dict[tuple[str, str, tuple[int, ...]], bytes] = {}

    def refer(self, data: "Dataset", k: int) -> None:
        """Set the references of slice `k`; an item is encoded once and used in every slice that it is near."""
        from pydicom.dataelem import RawDataElement
        from pydicom.tag import Tag

        low_end, high_end = self._heights[k] - self._near, self._heights[k] + self._near
        items = b""
        for series, (low, high) in zip(self._series, self._reach, strict=True):
            for key in _objects(series, np.flatnonzero((low <= high_end) & (high >= low_end))):
                if key not in self._items:
                    self._items[key] = _item(*key)
                items += self._items[key]
        if items:
            tag = Tag("SourceImageSequence")
            data[tag] = RawDataElement(tag, "SQ", len(items), items, 0, False, True)


def _reach(planes: Planes, normal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest point of each image along another direction, mm."""
    rows, columns = planes.shape
    right = planes.row * planes.spacing_mm[1] * (columns - 1) @ normal
    down = planes.column * planes.spacing_mm[0] * (rows - 1) @ normal
    corners = (planes.positions @ normal)[:, None] + np.array([0.0, right, down, right + down])
    half = abs(float(planes.normal @ normal)) * planes.step_mm / 2
    return corners.min(axis=1) - half, corners.max(axis=1) + half


def _objects(series: Series, here: np.ndarray) -> list[tuple[str, str, tuple[int, ...]]]:
    """SOP class, SOP instance and frames (none for an object of one) of images of a series."""
    frames: dict[tuple[str, str], list[int]] = {}
    for index in here:
        instance = series.instances[index]
        numbers = frames.setdefault((instance.sop_class, instance.sop_uid), [])
        if instance.frame is not None:
            numbers.append(instance.frame)
    return [(*key, tuple(sorted(numbers))) for key, numbers in frames.items()]


def _item(sop_class: str, sop_uid: str, frames: tuple[int, ...]) -> bytes:
    """One item of SourceImageSequence, in explicit little endian."""
    from pydicom import dcmwrite
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_uid
    if frames:
        item.ReferencedFrameNumber = list(frames)
    item.PurposeOfReferenceCodeSequence = [_code("121322", "DCM", "Source image for image processing operation")]
    buffer = BytesIO()
    dcmwrite(buffer, item, implicit_vr=False, little_endian=True)
    return _ITEM + len(buffer.getvalue()).to_bytes(4, "little") + buffer.getvalue()


def _ds(number: float) -> str:
    from pydicom.valuerep import format_number_as_ds

    return format_number_as_ds(float(number))
