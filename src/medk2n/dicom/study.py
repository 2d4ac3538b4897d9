"""A study's folder or .zip as volumes: asks the confined reader, and checks what it answers."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from medk2n import errors
from medk2n.dicom.answer import Answer, Asked, Instance, Place, Question, SeriesAnswer
from medk2n.dicom.attributes import Codes, Values
from medk2n.dicom.choose import LeftOut
from medk2n.dicom.files import is_dicom, regular_files
from medk2n.dicom.geometry import Planes
from medk2n.dicom.limits import MIB, Limits
from medk2n.dicom.regular import regular
from medk2n.errors import DicomError, UsageError
from medk2n.geometry.grid import Grid
from medk2n.io.atomic import sha256_array
from medk2n.io.names import IMAGE_SUFFIXES
from medk2n.io.volume import Volume
from medk2n.vocabulary import modality as modality_row

_ANSWER = "answer.json"
_PREFIX = "medk2n-dicom-"
_STALE_S = 86_400  # no study takes a day to be read
_TEXTS = ("", ".csv", ".json", ".md", ".pdf", ".tsv", ".txt")  # what may lie beside archives of studies
_ANSWER_BYTES = 512 * MIB


@dataclass(frozen=True, eq=False)
class Series:
    """One acquired series.

    Attributes:
        uid: SeriesInstanceUID, with #2, ... for a part of it.
        kind: MR or CT, as DICOM's Modality.
        evidence: what says which modality it is.
        volume: (column, row, slice) float32; MR as stored and rescaled, CT in HU.
        planes: where the slices of `volume` lie.
        frame_of_reference: UID; empty if the source has none.
        instances: its images, upwards, as derived ones refer to them.
        acquired: where its images lie; other than `planes` if the volume was made even or upright.
    """

    uid: str
    kind: str
    evidence: str
    volume: Volume
    planes: Planes
    frame_of_reference: str
    instances: tuple[Instance, ...]
    acquired: Planes


@dataclass(frozen=True, eq=False)
class DicomStudy:
    """One study of one patient.

    Attributes:
        id: a name made of the study's UID alone, for files: no patient's data in it.
        uid: StudyInstanceUID.
        series: modality -> what was acquired.
        left_out: images that no input was made of, and why.
        notes: what else a reader should know, a line each.
        values, codes: attributes of patient and study that derived series keep (`attributes.KEPT`).
    """

    id: str
    uid: str
    series: Mapping[str, Series]
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    values: Mapping[str, Values] = field(default_factory=dict, repr=False)
    codes: Mapping[str, Codes] = field(default_factory=dict, repr=False)

    @property
    def modalities(self) -> tuple[str, ...]:
        """What was acquired."""
        return tuple(self.series)

    @property
    def volumes(self) -> dict[str, Volume]:
        """modality -> volume, as `Synthesizer.synth` takes them."""
        return {name: series.volume for name, series in self.series.items()}


@dataclass(frozen=True)
class Outline:
    """A study as far as it is known before its voxels are read.

    Attributes:
        source: its folder or .zip.
        id, uid: as `DicomStudy`.
        modalities: what was acquired.
    """

    source: Path
    id: str
    uid: str
    modalities: tuple[str, ...]

    def read(self, *, known: Collection[str] | None = None) -> DicomStudy:
        """All of it; raises as `read_study`."""
        return read_study(self.source, known=known)


def holds_dicom(path: Path) -> bool:
    """Whether `path` is a .zip or a DICOM file, or a folder with a DICOM file in it at any depth, or of archives alone.

    Reads four bytes a file.
    """
    if path.is_file():
        return path.suffix.lower() == ".zip" or is_dicom(path)
    files = regular_files(path)
    suffixes = {file.suffix.lower() for file in files}
    if ".zip" in suffixes and suffixes <= {".zip", *_TEXTS}:
        return True
    return any(is_dicom(file) for file in files if not file.name.lower().endswith((*IMAGE_SUFFIXES, ".json")))


def read_study(
    path: Path | str,
    *,
    series: Mapping[str, str] | None = None,
    known: Collection[str] | None = None,
    limits: Limits | None = None,
) -> DicomStudy:
    """Read a folder (any depth, any file names), a .zip or a multi-frame file: one study of one patient.

    Args:
        series: modality or alias -> series UID (with #2, ... for a part), where the attributes leave a doubt.
        known: modalities wanted; series of others are left out. None is all.

    Raises:
        DicomError: damaged, hostile or in doubt, two patients or studies, slices missing; one line, no patient's data.
        UsageError: the extra `dicom` is not installed, or `series` names none that is there.
    """
    wishes = {modality_row(name).name: uid for name, uid in (series or {}).items()}
    with _asking(Path(path), Asked.study, wishes, known, limits or Limits()) as (answer, work):
        notes = list(answer.notes)
        found = {row.modality: _series(row, work, notes) for row in answer.series}
    if len({one.frame_of_reference for one in found.values()}) > 1:
        notes.append("the series have several frames of reference: whether they lie on each other is not certain")
    return DicomStudy(
        study_id(answer.study),
        answer.study,
        found,
        tuple(answer.left_out),
        tuple(notes),
        answer.values,
        answer.codes,
    )


def outline_study(path: Path, *, known: Collection[str] | None = None, limits: Limits | None = None) -> Outline:
    """Read all of a study but its voxels; raises as `read_study`."""
    with _asking(path, Asked.outline, {}, known, limits or Limits()) as (answer, _):
        return Outline(path, study_id(answer.study), answer.study, tuple(row.modality for row in answer.series))


def study_places(folder: Path, *, limits: Limits | None = None) -> list[Place]:
    """In which folders below `folder`, and in which .zip files, the images of which study lie.

    Raises:
        DicomError: too many folders.
        UsageError: the extra `dicom` is not installed.
    """
    with _asking(folder, Asked.places, {}, None, limits or Limits()) as (answer, _):
        return answer.places


def study_id(uid: str) -> str:
    """What a study is called in file names: its UID cannot be read back from it."""
    return f"study-{hashlib.sha256(uid.encode()).hexdigest()[:8]}"


@contextmanager
def _asking(
    path: Path, asked: Asked, wishes: dict[str, str], known: Collection[str] | None, limits: Limits
) -> Iterator[tuple[Answer, Path]]:
    """What the confined process answers, and the folder of its voxels while they are looked at."""
    _require_extra()
    if not path.exists():
        raise DicomError(f"{path}: no such file or folder; expected a DICOM study; check the path")
    _sweep()
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder:
        yield _ask(path.resolve(), asked, wishes, known, Path(folder), limits), Path(folder)


def _sweep() -> None:
    """Remove work folders that a killed run left behind: they hold a patient's images."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another user's, or gone meanwhile
            if time.time() - folder.lstat().st_mtime > _STALE_S:
                shutil.rmtree(folder)


def _require_extra() -> None:
    from importlib.util import find_spec

    if find_spec("pydicom") is None or find_spec("highdicom") is None:
        raise UsageError('DICOM needs the extra "dicom": pip install "medk2n[dicom]"')


def _ask(
    path: Path, asked: Asked, wishes: dict[str, str], known: Collection[str] | None, work: Path, limits: Limits
) -> Answer:
    """Let the confined process read, and hear it out.

    Raises:
        Medk2nError: what it says, or that it was ended by a limit.
    """
    from pydantic import TypeAdapter, ValidationError

    files = [path] if path.is_file() else regular_files(path)
    wall_clock_s = limits.wall_clock_s(sum(file.stat().st_size for file in files))
    question = Question(asked, str(path), wishes, None if known is None else list(known), limits, wall_clock_s)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "medk2n.dicom.child"],  # -P: nothing is imported from the study's folder
            input=json.dumps(asdict(question)),
            text=True,
            cwd=work,
            env=os.environ | {"PYTHONPATH": _module_path()},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # what native decoders print may quote the file
            timeout=wall_clock_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DicomError(f"{path}: not read within {wall_clock_s:.0f} s; it is damaged or hostile") from error
    result = work / _ANSWER
    if not result.is_file() or result.stat().st_size > _ANSWER_BYTES:
        raise DicomError(
            f"{path}: the reader was ended by its limits (code {done.returncode}); a file of it is damaged or hostile"
        )
    try:
        answer = TypeAdapter(Answer).validate_json(result.read_bytes())
    except ValidationError as error:
        raise DicomError(f"{path}: the reader's answer is damaged; a file of it may be hostile") from error
    if answer.error:
        kind, line = answer.error
        raise getattr(errors, kind, DicomError)(line)
    return answer


def _module_path() -> str:
    """This very package first, then what the caller set, seen from here: the reader works in another folder."""
    given = [str(Path(place).resolve()) for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    return os.pathsep.join([str(Path(__file__).parents[2]), *given])


def _series(row: SeriesAnswer, work: Path, notes: list[str]) -> Series:
    """Load the voxels of one series; make it even and upright if it is not."""
    acquired = Planes(
        np.array(row.positions, np.float64),
        np.array(row.row),
        np.array(row.column),
        row.spacing_mm,
        row.shape,
        row.thickness_mm,
    )
    array = np.load(work / Path(row.voxels).name, allow_pickle=False)
    if array.shape != (len(row.positions), *row.shape) or array.dtype != np.float32:
        raise DicomError(f"series {row.name}: the reader's voxels do not fit its answer; a file may be hostile")
    if array.min() == array.max():
        raise DicomError(f"series {row.name}: every voxel is {array.flat[0]:g}; a constant volume shows nothing")
    planes = acquired
    if not (acquired.even and acquired.straight):
        array, planes = regular(array, acquired)
        aside = "acquired with a tilted gantry" if acquired.tilted else "made of slices that lie beside each other"
        what = "unevenly spaced" if acquired.straight else aside
        notes.append(f"{row.modality} is {what}; it was resampled to an upright stack of {planes.step_mm:.4g} mm steps")
    grid = Grid((planes.shape[1], planes.shape[0], len(planes.positions)), planes.affine)
    provenance = {"path": f"DICOM series {row.name}", "sha256": sha256_array(array), "dtype": "int16"}
    volume = Volume(np.ascontiguousarray(array.transpose(2, 1, 0)), grid, row.modality, provenance)
    instances = tuple(row.instances)
    return Series(row.name, row.kind, row.evidence, volume, planes, row.frame_of_reference, instances, acquired)
