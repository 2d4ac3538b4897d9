"""What the reading process hands to the one that asked: plain data, checked on arrival."""

from dataclasses import dataclass, field
from enum import StrEnum

from medk2n.dicom.attributes import Codes, Values
from medk2n.dicom.choose import LeftOut
from medk2n.dicom.frame import Vector
from medk2n.dicom.limits import Limits


@dataclass(frozen=True)
class Instance:
    """One slice as a derived image refers to it; `frame` counts from 1, None for an object of one frame."""

    sop_class: str
    sop_uid: str
    frame: int | None


@dataclass(frozen=True)
class SeriesAnswer:
    """One stack that was read: its voxels lie in the file `voxels` of the work folder, if they were asked for."""

    modality: str
    name: str
    kind: str
    evidence: str
    voxels: str
    frame_of_reference: str
    positions: list[Vector]
    row: Vector
    column: Vector
    spacing_mm: tuple[float, float]
    shape: tuple[int, int]
    thickness_mm: float | None
    instances: list[Instance]


@dataclass(frozen=True)
class Place:
    """A folder with images in it, or a .zip, relative to where was looked; `study` is empty if none can be read."""

    name: str
    study: str


class Asked(StrEnum):
    """How much of a folder or .zip is wanted."""

    study = "study"  # with its voxels
    outline = "outline"  # all but the voxels
    places = "places"  # in which folders the images of which study lie


@dataclass(frozen=True)
class Question:
    """What to read: a folder or a .zip, with the caller's choice of series, and the modalities wanted (None: all)."""

    asked: Asked
    source: str
    wishes: dict[str, str]
    known: list[str] | None
    limits: Limits
    wall_clock_s: float


@dataclass(frozen=True)
class Answer:
    """A study, or why there is none (`error`: name of the class in medk2n.errors, and the line)."""

    error: tuple[str, str] | None = None
    study: str = ""
    places: list[Place] = field(default_factory=list)
    series: list[SeriesAnswer] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    values: dict[str, Values] = field(default_factory=dict)
    codes: dict[str, Codes] = field(default_factory=dict)
