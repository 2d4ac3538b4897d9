"""What one slice of a study says about itself, as plain data: pydicom stops here."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medk2n.dicom.guard import parsing, too_deep
from medk2n.dicom.limits import Limits
from medk2n.errors import DicomError

Vector = tuple[float, float, float]

CLASSIC = {"1.2.840.10008.5.1.4.1.1.4": "MR", "1.2.840.10008.5.1.4.1.1.2": "CT"}
ENHANCED = {
    "1.2.840.10008.5.1.4.1.1.4.1": "MR",
    "1.2.840.10008.5.1.4.1.1.4.4": "MR",  # legacy converted
    "1.2.840.10008.5.1.4.1.1.2.1": "CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "CT",
}
_SAYS_NONE = frozenset({"NONE", "NO", "N", "NO CONTRAST", "WITHOUT", "0", "NIL"})
_TAGS = (
    "ImageType", "SyntheticData", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID",
    "FrameOfReferenceUID", "PatientID", "PatientName", "PatientBirthDate", "Modality", "SeriesNumber",
    "SeriesDescription", "ProtocolName", "ScanningSequence", "SequenceVariant", "SequenceName", "ScanOptions",
    "MRAcquisitionType", "AngioFlag", "EchoTime", "RepetitionTime", "InversionTime", "FlipAngle", "DiffusionBValue",
    "ContrastBolusAgent", "ContrastBolusAgentSequence", "PulseSequenceName", "EchoPulseSequence",
    "AcquisitionContrast", "AcquisitionNumber", "TemporalPositionIdentifier", "TriggerTime", "InversionTimes",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "Rows", "Columns",
    "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "NumberOfFrames",
    "RescaleSlope", "RescaleIntercept", "RescaleType", "PixelPaddingValue", "EchoPlanarPulseSequence",
    "InversionRecovery", "ModalityLUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
_WORDS = ("ScanningSequence", "EchoPulseSequence", "EchoPlanarPulseSequence")  # sequences of pulses, not of items
_SEQUENCES = tuple(name for name in _TAGS if name.endswith("Sequence") and name not in _WORDS)
_ECHOES = {"SPIN": ("SE",), "GRADIENT": ("GR",), "BOTH": ("SE", "GR")}  # of enhanced MR, in the words of classic MR


@dataclass(frozen=True)
class Facts:
    """What says which contrast a slice has; hashable, so that slices can be sorted by it.

    Attributes:
        modality: MR or CT.
        image_type: ImageType, upper case.
        words: SeriesDescription and ProtocolName. They may name a patient: read, never shown.
        sequence: SequenceName or PulseSequenceName, lower case.
        scanning, variant, options: ScanningSequence (SE, GR, IR, EP), SequenceVariant, ScanOptions.
        stated: AcquisitionContrast of enhanced MR (T1, T2, FLAIR, ...).
        echo_ms, repetition_ms, inversion_ms: TE, TR, TI; None if not said.
        b_value: s/mm^2.
        agent: whether a contrast agent is named; None if nothing is said, which many scanners do after one was given.
    """

    modality: str
    image_type: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    sequence: str = ""
    scanning: tuple[str, ...] = ()
    variant: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    stated: str = ""
    echo_ms: float | None = None
    repetition_ms: float | None = None
    inversion_ms: float | None = None
    b_value: float | None = None
    agent: bool | None = None


@dataclass(frozen=True)
class Frame:
    """One slice: which file holds it, where it lies, what it shows.

    Attributes:
        file: where its pixels are (a plain copy of a deflated file).
        number: which frame of the file, from 0.
        multiframe: whether the file holds several.
        position, row, column: ImagePositionPatient and the two direction cosines (LPS, mm).
        spacing_mm: between rows, between columns (as PixelSpacing).
        order: further numbers that tell one volume of a series from another, where positions repeat.
    """

    file: Path
    number: int
    multiframe: bool
    sop_class: str
    sop_uid: str
    series: str
    series_number: int
    frame_of_reference: str
    rows: int
    columns: int
    position: Vector
    row: Vector
    column: Vector
    spacing_mm: tuple[float, float]
    thickness_mm: float | None
    slope: float
    intercept: float
    padding: float | None
    facts: Facts
    order: tuple[float, ...] = field(default=())


@dataclass(frozen=True)
class Header:
    """A file as far as it is known before its pixels are read: its frames, or why it is left out.

    `study` and `series` are empty for what belongs to none, such as a DICOMDIR.
    """

    study: str
    series: str
    patient: tuple[str, ...]
    frames: tuple[Frame, ...] = ()
    left_out: str = ""


def read_header(path: Path, limits: Limits) -> Header:
    """Read all of a file but its pixels.

    Raises:
        DicomError: damaged, nested too deep, or of impossible size. The message holds no value of the file.
    """
    from pydicom import dcmread

    with parsing(path):
        data = dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
        for name in _SEQUENCES:
            _refuse_depth(data.get(name) or [], limits.depth, path)
        return _header(data, path, limits)


def _refuse_depth(items: Iterable[Any], left: int, path: Path) -> None:
    if left < 0:
        raise too_deep(path)
    for item in items:
        for element in item:
            if element.VR == "SQ":
                _refuse_depth(element.value, left - 1, path)


def _header(data: Any, path: Path, limits: Limits) -> Header:
    sop_class = str(data.get("SOPClassUID", ""))
    if sop_class not in CLASSIC and sop_class not in ENHANCED and not data.get("StudyInstanceUID"):
        return Header("", "", (), left_out=_no_scan(data, sop_class))  # such as a DICOMDIR
    header = Header(
        study=_uid(data, "StudyInstanceUID", path),
        series=_uid(data, "SeriesInstanceUID", path),
        patient=tuple(str(data.get(name) or "") for name in ("PatientID", "PatientName", "PatientBirthDate")),
        left_out=_no_scan(data, sop_class),
    )
    if header.left_out:
        return header
    _refuse_size(data, path, limits)
    return replace(header, frames=_enhanced(data, path) if sop_class in ENHANCED else (_classic(data, path),))


def _no_scan(data: Any, sop_class: str) -> str:
    """Why an object can be no input, whatever the caller says; empty if it can."""
    from pydicom.uid import UID

    if sop_class not in CLASSIC and sop_class not in ENHANCED:
        name = UID(sop_class).name
        return f"no MR or CT image ({name})" if name != sop_class else "no MR or CT image"
    if data.get("SyntheticData") == "YES" or "SYNTHETIC" in _texts(data, "ImageType"):
        return "synthetic, never acquired"
    if "MOSAIC" in _texts(data, "ImageType"):
        return "many slices in one picture (mosaic)"
    looks = str(data.get("PhotometricInterpretation") or "")
    if int(data.get("SamplesPerPixel") or 1) != 1 or looks == "PALETTE COLOR":
        return "colour picture"
    if looks == "MONOCHROME1" and (CLASSIC | ENHANCED)[sop_class] == "MR":
        return "bright is stored as dark (MONOCHROME1)"
    if data.get("HighBit") is not None and data.get("HighBit") + 1 != data.get("BitsStored"):
        return "values that do not begin at the lowest bit"
    if "ModalityLUTSequence" in data:
        return "values given by a table (Modality LUT)"
    places = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    if sop_class in CLASSIC and not all(data.get(name) for name in places):
        return "does not say where it lies"
    if sop_class in CLASSIC and int(data.get("NumberOfFrames") or 1) != 1:
        return "several pictures, and the place of one"
    if (CLASSIC | ENHANCED)[sop_class] == "CT":
        return _no_hounsfield(data if sop_class in CLASSIC else _first_groups(data))
    return ""


def _first_groups(data: Any) -> Any:
    """What an enhanced object says of the scale of its first frame."""
    own = (data.get("PerFrameFunctionalGroupsSequence") or [{}])[0]
    common = (data.get("SharedFunctionalGroupsSequence") or [{}])[0]
    return _Groups(own, common).get("PixelValueTransformationSequence")


def _no_hounsfield(scale: Any) -> str:
    """Why the values of a CT are no Hounsfield units; empty if they are."""
    if any(scale.get(name) is None for name in ("RescaleSlope", "RescaleIntercept")):
        return "CT that states no scale"
    return "" if str(scale.get("RescaleType") or "HU").upper() == "HU" else "CT in another unit than HU"


def _refuse_size(data: Any, path: Path, limits: Limits) -> None:
    sizes = [data.get(name) for name in ("Rows", "Columns")]
    frames = data.get("NumberOfFrames") or 1
    if any(type(n) is not int or not 0 < n <= 65535 for n in sizes) or data["Rows"].VR != "US":
        raise DicomError(f"{path}: Rows or Columns is no number from 1 to 65535; the file is damaged; copy it again")
    if int(frames) < 1 or math.prod((*sizes, int(frames))) > limits.voxels:
        raise DicomError(f"{path}: states more than {limits.voxels} voxels, or none; the file is damaged")


def _classic(data: Any, path: Path) -> Frame:
    orientation = _numbers(data, "ImageOrientationPatient", 6, path)
    return Frame(
        file=path,
        number=0,
        multiframe=False,
        position=_numbers(data, "ImagePositionPatient", 3, path),
        row=orientation[:3],
        column=orientation[3:],
        spacing_mm=_numbers(data, "PixelSpacing", 2, path),
        thickness_mm=_number(data, "SliceThickness"),
        slope=_number(data, "RescaleSlope", 1.0),
        intercept=_number(data, "RescaleIntercept", 0.0),
        facts=_facts(data),
        order=_order(data),
        **_shared(data, path),
    )


def _enhanced(data: Any, path: Path) -> tuple[Frame, ...]:
    groups = data.get("PerFrameFunctionalGroupsSequence") or []
    if len(groups) != int(data.get("NumberOfFrames") or 1):
        raise DicomError(f"{path}: describes {len(groups)} frames and holds another number; copy it again")
    common = (data.get("SharedFunctionalGroupsSequence") or [{}])[0]
    return tuple(_one_of_many(data, _Groups(group, common), number, path) for number, group in enumerate(groups))


class _Groups:
    """The functional groups of one frame: its own first, then those it shares."""

    def __init__(self, own: Any, shared: Any) -> None:
        self._own, self._shared = own, shared

    def get(self, macro: str) -> Any:
        """The item of a macro's sequence; an empty one if there is none."""
        from pydicom.dataset import Dataset

        for group in (self._own, self._shared):
            if macro in group and len(group[macro].value):
                return group[macro].value[0]
        return Dataset()


def _one_of_many(data: Any, groups: _Groups, number: int, path: Path) -> Frame:
    orientation = _numbers(groups.get("PlaneOrientationSequence"), "ImageOrientationPatient", 6, path)
    measures, transform = groups.get("PixelMeasuresSequence"), groups.get("PixelValueTransformationSequence")
    return Frame(
        file=path,
        number=number,
        multiframe=True,
        position=_numbers(groups.get("PlanePositionSequence"), "ImagePositionPatient", 3, path),
        row=orientation[:3],
        column=orientation[3:],
        spacing_mm=_numbers(measures, "PixelSpacing", 2, path),
        thickness_mm=_number(measures, "SliceThickness"),
        slope=_number(transform, "RescaleSlope", 1.0),
        intercept=_number(transform, "RescaleIntercept", 0.0),
        facts=_facts(data, groups),
        order=_order(groups.get("FrameContentSequence")),
        **_shared(data, path),
    )


def _shared(data: Any, path: Path) -> dict[str, Any]:
    return {
        "sop_class": str(data.SOPClassUID),
        "sop_uid": _uid(data, "SOPInstanceUID", path),
        "series": str(data.SeriesInstanceUID),
        "series_number": int(data.get("SeriesNumber") or 0),
        "frame_of_reference": _uid(data, "FrameOfReferenceUID", path) if data.get("FrameOfReferenceUID") else "",
        "rows": int(data.Rows),
        "columns": int(data.Columns),
        "padding": _number(data, "PixelPaddingValue"),
    }


def _facts(data: Any, groups: _Groups | None = None) -> Facts:
    """From a classic file, or from an enhanced one and the functional groups of a frame."""
    from pydicom.dataset import Dataset

    def macro(name: str) -> Any:
        return groups.get(name) if groups else Dataset()

    def first(*values: float | None) -> float | None:
        return next((value for value in values if value is not None), None)

    sop_class, timing = str(data.SOPClassUID), macro("MRTimingAndRelatedParametersSequence")
    frame_type = _texts(macro("MRImageFrameTypeSequence"), "FrameType") or _texts(
        macro("CTImageFrameTypeSequence"), "FrameType"
    )
    return Facts(
        modality=CLASSIC.get(sop_class) or ENHANCED[sop_class],
        image_type=frame_type or _texts(data, "ImageType"),
        words=tuple(str(data.get(name) or "") for name in ("SeriesDescription", "ProtocolName")),
        sequence=str(data.get("SequenceName") or data.get("PulseSequenceName") or "").lower(),
        scanning=_texts(data, "ScanningSequence") or _pulses(data),
        variant=_texts(data, "SequenceVariant"),
        options=_texts(data, "ScanOptions") + (("TOF",) if data.get("AngioFlag") == "Y" else ()),
        stated=str(data.get("AcquisitionContrast") or "").upper(),
        echo_ms=first(_number(macro("MREchoSequence"), "EffectiveEchoTime"), _number(data, "EchoTime")),
        repetition_ms=first(_number(timing, "RepetitionTime"), _number(data, "RepetitionTime")),
        inversion_ms=first(_number(macro("MRModifierSequence"), "InversionTimes"), _number(data, "InversionTime")),
        b_value=first(_number(macro("MRDiffusionSequence"), "DiffusionBValue"), _number(data, "DiffusionBValue")),
        agent=_agent(data),
    )


def _pulses(data: Any) -> tuple[str, ...]:
    """ScanningSequence as enhanced MR says it."""
    planar = ("EP",) if data.get("EchoPlanarPulseSequence") == "YES" else ()
    inverted = ("IR",) if data.get("InversionRecovery") == "YES" else ()
    return (*_ECHOES.get(str(data.get("EchoPulseSequence") or ""), ()), *inverted, *planar)


def _agent(data: Any) -> bool | None:
    if data.get("ContrastBolusAgentSequence"):
        return True
    agent = str(data.get("ContrastBolusAgent") or "").strip().upper()
    return agent not in _SAYS_NONE if agent else None


def _order(data: Any) -> tuple[float, ...]:
    names = ("TemporalPositionIdentifier", "TemporalPositionIndex", "AcquisitionNumber", "TriggerTime")
    return tuple(_number(data, name, 0.0) for name in names)


def _uid(data: Any, name: str, path: Path) -> str:
    """A UID as text. One that could be no UID is refused: it would end up in our own files and messages."""
    value = str(data.get(name) or "")
    if not is_uid(value):
        raise DicomError(f"{path}: {name} is no UID (digits and dots, 64 at most); the file is damaged or hostile")
    return value


def is_uid(value: str) -> bool:
    """Digits and dots, 1 to 64 of them."""
    return 0 < len(value) <= 64 and set(value) <= set("0123456789.")


def _texts(data: Any, name: str) -> tuple[str, ...]:
    value = data.get(name)
    values: Iterable[Any] = [value] if isinstance(value, str) else (value or [])
    return tuple(str(text).strip().upper() for text in values if str(text).strip())


def _number(data: Any, name: str, default: Any = None) -> Any:
    """The (first) value of an attribute as a float; `default` if it is absent or empty.

    Raises:
        ValueError: it is no finite number.
    """
    value = data.get(name)
    if value is None or value == "":
        return default
    values = list(value) if hasattr(value, "__iter__") and not isinstance(value, str) else [value]
    if not values:
        return default
    number = float(values[0])
    if not math.isfinite(number):
        raise ValueError(f"{name} is not finite")
    return number


def _numbers(data: Any, name: str, count: int, path: Path) -> Any:
    values = [float(value) for value in (data.get(name) or [])]
    if len(values) != count or not all(map(math.isfinite, values)):
        raise DicomError(f"{path}: {name} is missing, or not {count} finite numbers; copy it again")
    return tuple(values)
