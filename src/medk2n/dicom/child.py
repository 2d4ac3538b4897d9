"""The process that parses files from outside: confined, and heard only through the files it leaves.

`python -m medk2n.dicom.child` reads a `Question` as JSON on its standard input, works in its working folder, and
leaves `answer.json` and one .npy a series there. Whoever asked (`study.py`) holds the wall clock.
"""

import json
import logging
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from medk2n.dicom.answer import Answer, Asked, Instance, Question, SeriesAnswer
from medk2n.dicom.attributes import KEPT, KEPT_CODES, Codes, Values, kept
from medk2n.dicom.choose import LeftOut, choose
from medk2n.dicom.files import find_files, is_dicom
from medk2n.dicom.frame import Frame, Header, read_header
from medk2n.dicom.geometry import Planes, check, check_directions
from medk2n.dicom.guard import parsing
from medk2n.dicom.inflate import Inflater
from medk2n.dicom.limits import Limits, confine
from medk2n.dicom.pixels import write_voxels
from medk2n.dicom.places import find_places
from medk2n.dicom.stacks import Stack, stacks, without_copies
from medk2n.dicom.unpack import unpack
from medk2n.errors import DicomError, Medk2nError

ANSWER = "answer.json"


def main() -> None:
    """Answer the question on standard input."""
    import pydicom.pixels  # noqa: F401  what has to be loaded anyway is loaded before memory is bounded

    warnings.simplefilter("ignore")  # they quote the values that they complain of
    logging.disable()
    asked, work = json.load(sys.stdin), Path.cwd()
    question = Question(**asked | {"limits": Limits(**asked["limits"])})
    confine(question.limits, question.wall_clock_s)
    try:
        found = answer(question, work)
    except Medk2nError as error:
        found = Answer(error=(type(error).__name__, str(error)))
    except MemoryError:
        found = Answer(
            error=("DicomError", f"{question.source}: needs more memory than a study may take; name one study")
        )
    except Exception as error:  # a bug of ours; what it says may hold a patient's data, so only its place is told
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
        found = Answer(error=("InternalError", f"{question.source}: the reader of DICOM failed ({where})"))
    (work / ANSWER).write_text(json.dumps(asdict(found)))


def answer(question: Question, work: Path) -> Answer:
    """Read what `question` names, in this process; unpacked files and voxels go to the folder `work`.

    Raises:
        DicomError, UsageError: as `read_study`.
    """
    source, limits = Path(question.source), question.limits
    if question.asked == Asked.places:
        return Answer(places=find_places(source, work, limits))
    folder = source
    if source.is_file() and not is_dicom(source):
        folder = work / "unpacked"
        folder.mkdir()
        unpack(source, folder, limits)
    found = find_files(folder, limits)
    inflater = Inflater(work, limits)
    plain = {path: inflater.plain(path) for path in found.dicom}
    headers = {path: read_header(plain[path], limits) for path in found.dicom}
    notes = _notes(found.others, found.links)
    study = _one_study(headers, source)
    frames = [frame for header in headers.values() for frame in header.frames]
    sorted_stacks = stacks(_single(frames, notes, source))
    choice = choose(sorted_stacks, question.wishes, question.known)
    left_out = [*choice.left_out, *_left_out(headers.values())]
    if not choice.stacks:
        raise DicomError(f"{source}: no scan to start from{_reasons(left_out, found.others)}")
    _refuse_incomplete(choice.stacks, headers.values())
    series = [
        _read(name, stack, choice.evidence[name], work / f"{number}.npy", voxels=question.asked == Asked.study)
        for number, (name, stack) in enumerate(choice.stacks.items())
    ]
    values, codes = _kept(next(iter(choice.stacks.values())))
    return Answer(None, study, [], series, left_out, notes, values, codes)


def _notes(others: int, links: int) -> list[str]:
    notes = []
    if others:
        notes.append(f"{others} files that are no DICOM were left out")
    if links:
        notes.append(f"{links} links were not followed")
    return notes


def _one_study(headers: dict[Path, Header], source: Path) -> str:
    """The UID of the one study.

    Raises:
        DicomError: no DICOM at all, two patients, or two studies.
    """
    headers = {path: header for path, header in headers.items() if header.study}
    if not headers:
        raise DicomError(f"{source}: no DICOM image in it; expected a study's folder or .zip; check the path")
    first: dict[str, tuple[Path, tuple[str, ...]]] = {}
    for path, header in headers.items():
        first.setdefault(header.study, (path, _same_patient(header.patient)))
    patients: dict[tuple[str, ...], Path] = {}
    for path, header in headers.items():
        patients.setdefault(_same_patient(header.patient), path)
    if len(patients) > 1:
        one, other = list(patients.values())[:2]
        raise DicomError(
            f"{source}: holds {len(patients)} patients ({one.relative_to(_base(source, one))} and "
            f"{other.relative_to(_base(source, other))} differ); give one patient's study at a time"
        )
    if len(first) > 1:
        raise DicomError(f"{source}: holds {len(first)} studies ({', '.join(sorted(first))}); give one at a time")
    return next(iter(first))


def _base(source: Path, path: Path) -> Path:
    return source if path.is_relative_to(source) else path.parent


def _same_patient(patient: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(text.strip().rstrip("^").strip().casefold() for text in patient)


def _single(frames: list[Frame], notes: list[str], source: Path) -> list[Frame]:
    """Each instance once.

    Raises:
        DicomError: two different images under one SOPInstanceUID.
    """
    single = without_copies(frames)
    seen = {(frame.sop_uid, frame.number): _without_place(frame) for frame in single}
    if any(seen[frame.sop_uid, frame.number] != _without_place(frame) for frame in frames):
        raise DicomError(f"{source}: two different images have one SOPInstanceUID; the copy is damaged; copy it again")
    if copies := len(frames) - len(single):
        notes.append(f"{copies} copies of images that are there twice were left out")
    return single


def _without_place(frame: Frame) -> Frame:
    return replace(frame, file=Path())


def _left_out(headers: Iterable[Header]) -> list[LeftOut]:
    counted = Counter((header.series, header.left_out) for header in headers if header.left_out)
    return [LeftOut(series, count, reason) for (series, reason), count in counted.items()]


def _reasons(left_out: list[LeftOut], others: int) -> str:
    told = [f"{row.images} images: {row.reason}" for row in left_out] + ([f"{others} other files"] if others else [])
    return f" ({'; '.join(told[:8])})" if told else ""


def _refuse_incomplete(chosen: dict[str, Stack], headers: Iterable[Header]) -> None:
    lost = {header.series: header.left_out for header in headers if header.left_out}
    for name, stack in chosen.items():
        if reason := lost.get(stack.frames[0].series):
            raise DicomError(f"series {stack.name} ({name}): an image of it cannot be used ({reason}); copy it again")


def _read(name: str, stack: Stack, evidence: str, path: Path, *, voxels: bool) -> SeriesAnswer:
    called = f"series {stack.name} ({name})"
    planes = _planes(stack)
    check_directions(planes, called)
    if stack.repeated:
        raise DicomError(
            f"{called}: {stack.repeated} slices lie where another lies, and nothing tells them apart; "
            "export the series again, one volume in it"
        )
    check(planes, called)
    if voxels:
        write_voxels(stack, path)
    first = stack.frames[0]
    return SeriesAnswer(
        modality=name,
        name=stack.name,
        kind=first.facts.modality,
        evidence=evidence,
        voxels=path.name,
        frame_of_reference=first.frame_of_reference,
        positions=[frame.position for frame in stack.frames],
        row=first.row,
        column=first.column,
        spacing_mm=first.spacing_mm,
        shape=(first.rows, first.columns),
        thickness_mm=first.thickness_mm,
        instances=[
            Instance(frame.sop_class, frame.sop_uid, frame.number + 1 if frame.multiframe else None)
            for frame in stack.frames
        ],
    )


def _planes(stack: Stack) -> Planes:
    first = stack.frames[0]
    return Planes(
        np.array([frame.position for frame in stack.frames]),
        np.array(first.row),
        np.array(first.column),
        first.spacing_mm,
        (first.rows, first.columns),
        first.thickness_mm,
    )


def _kept(stack: Stack) -> tuple[dict[str, Values], dict[str, Codes]]:
    """Attributes of patient and study that a derived series keeps, from the first slice of a stack."""
    from pydicom import dcmread

    file, tags = stack.frames[0].file, [*KEPT, *KEPT_CODES]
    with parsing(file):
        return kept(dcmread(file, stop_before_pixels=True, specific_tags=list(tags)))


if __name__ == "__main__":
    main()
