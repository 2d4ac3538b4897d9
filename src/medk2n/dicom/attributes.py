"""Attributes of the patient and the study that a derived series keeps: this list, and nothing else."""

from typing import Any

_LONGEST = 1024  # characters of one value

# Patient and General Study modules as far as an archive files by them; what de-identification leaves as its mark.
KEPT = (
    "SpecificCharacterSet", "TimezoneOffsetFromUTC", "PatientName", "PatientID", "IssuerOfPatientID",
    "PatientBirthDate", "PatientSex", "PatientIdentityRemoved", "DeidentificationMethod",
    "LongitudinalTemporalInformationModified", "RecognizableVisualFeatures", "StudyInstanceUID", "StudyDate",
    "StudyTime", "StudyID", "StudyDescription", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
KEPT_CODES = ("DeidentificationMethodCodeSequence",)
_CODE = ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")

Values = tuple[str, ...]
Codes = tuple[tuple[str, str, str], ...]


def kept(data: Any) -> tuple[dict[str, Values], dict[str, Codes]]:
    """keyword -> values as text, and keyword -> codes, of one object of the study (a pydicom data set)."""
    values = {name: _values(data[name].value) for name in KEPT if name in data}
    codes = {name: tuple(_code(item) for item in data[name].value) for name in KEPT_CODES if name in data}
    return values, codes


def _code(item: Any) -> tuple[str, str, str]:
    value, scheme, meaning = (str(item.get(part, ""))[:_LONGEST] for part in _CODE)
    return value, scheme, meaning


def _values(value: Any) -> Values:
    if value is None:
        return ()
    several = value if isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue" else [value]
    return tuple(str(one)[:_LONGEST] for one in several)


def put_back(data: Any, values: dict[str, Values], codes: dict[str, Codes]) -> None:
    """Set kept attributes on a data set, as they were: also those that no standard would let pass."""
    from pydicom import config
    from pydicom.datadict import dictionary_VR
    from pydicom.dataelem import DataElement
    from pydicom.dataset import Dataset
    from pydicom.tag import Tag

    for name in KEPT:
        if name in values:
            several = values[name]
            one = several[0] if len(several) == 1 else list(several) or None
            tag = Tag(name)
            data[tag] = DataElement(tag, dictionary_VR(tag), one, validation_mode=config.IGNORE)
    for name in KEPT_CODES:
        if name in codes:
            items = []
            for code in codes[name]:
                item = Dataset()
                for part, value in zip(_CODE, code, strict=True):
                    setattr(item, part, value)
                items.append(item)
            setattr(data, name, items)
