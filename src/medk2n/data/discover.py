"""Discovery: which subjects are in a folder, whatever its layout. Reads names, never voxels."""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Protocol

from medk2n import registry
from medk2n.data.datasets._files import from_mapping, preferred, subject_of
from medk2n.data.datasets.pattern import COMPONENT as PATTERN
from medk2n.data.datasets.pattern import is_pattern
from medk2n.data.datasets.studies import study_files, study_of
from medk2n.data.prepared import STUDY, is_prepared, prepared_subject
from medk2n.data.subject import LeftOut, Subject, all_needed
from medk2n.errors import DatasetError, Medk2nError, UnknownNameError
from medk2n.io import names
from medk2n.vocabulary import modality

_MOST_LOOKED_AT = 1000  # files, for a hint


class DatasetReader(Protocol):
    """What each file of `data/datasets` exports as COMPONENT."""

    name: str
    expects: str

    def matches(self, root: Path) -> bool:
        """Whether `root` is laid out so; cheap."""

    def index(self, root: Path) -> list[Subject]:
        """Its subjects; reads no voxels."""


def discover(
    root: Path | str,
    *,
    subjects: Collection[str] | None = None,
    exclude: Collection[str] = (),
    prefer: Sequence[str] = (),
    faulty: Callable[[str, Medk2nError], object] | None = None,
    left_out: Callable[[str, LeftOut], object] | None = None,
) -> list[Subject]:
    """Subjects of a data set, sorted by id.

    Args:
        subjects: ids to keep; None keeps all.
        exclude: ids to leave out.
        prefer: words of names (`run-1`), by which one file is chosen where several are of one modality.
        left_out: called with the id and what lies beside the files of a subject that is kept, or of one that has no
            image that can be used (which is no subject then).
        faulty: called with the id and the fault of each subject that cannot be used; they are left out of the result.
            None refuses the data set for the first.

    Raises:
        DatasetError: no folder, no known layout, two layouts at once, nothing left, or a faulty subject.
        UnknownNameError: an id in `subjects` or `exclude` that is not there.
    """
    root = _existing_folder(root)
    found: dict[str, Subject] = {}
    unusable: list[LeftOut] = []
    for subject in _reader(root).index(root):
        subject = preferred(subject, prefer)
        if left_out and (subjects is None or subject.id in subjects) and subject.id not in exclude:
            for file in subject.left_out:
                left_out(subject.id, file)
        if not (subject.readers or subject.inputs_only or subject.fault):
            unusable += subject.left_out
            continue
        if subject.id in found:
            raise DatasetError(f"{root}: two subjects are called {subject.id}; expected unique names; rename one")
        found[subject.id] = subject
    if not found:
        first = f": {unusable[0]}" if unusable else ""
        raise DatasetError(f"{root}: no image that can be used{first}")
    _refuse_unknown([*(subjects or ()), *exclude], found, root)
    kept = [found[i] for i in sorted(found) if (subjects is None or i in subjects) and i not in exclude]
    if not kept:
        raise DatasetError(f"{root}: no subject is left of {len(found)}; check which are chosen and excluded")
    for subject in kept:
        if subject.fault and faulty is None:
            with all_needed(subject.id):
                raise subject.fault
        if subject.fault:
            faulty(subject.id, subject.fault)
    if all(subject.fault for subject in kept):
        raise DatasetError(f"{root}: all {len(kept)} subjects are faulty; the first: {kept[0].fault}")
    return [subject for subject in kept if not subject.fault]


def discover_study(
    source: Path | str | Sequence[Path | str] | Mapping[str, Path | str], *, prefer: Sequence[str] = ()
) -> Subject:
    """One study: a folder, loose files whose names tell the modality, or modality -> file.

    Args:
        prefer: as `discover` has it.

    Raises:
        DatasetError: nothing recognised, or two files of one modality.
        UnknownNameError: a modality name in a mapping that is not known.
    """
    if isinstance(source, Mapping):
        return from_mapping(names.study_id(list(source.values())), _by_short_name(source))
    if not isinstance(source, (str, Path)):
        files = [Path(p) for p in source]
        return _usable(subject_of(names.study_id(files), files), f"{len(files)} files", prefer)
    if Path(source).is_file():
        return discover_study([source], prefer=prefer)
    folder = _existing_folder(source)
    if is_prepared(folder.parent) and (folder / STUDY).is_file():
        return prepared_subject(folder)
    images = [file for file in study_files(folder) if file.exists() and names.recognise(file)]
    study = replace(study_of(folder), id=names.study_id(images) if images else folder.name)
    return _usable(study, str(folder), prefer)


def _by_short_name(source: Mapping[str, Path | str]) -> dict[str, Path]:
    images: dict[str, Path] = {}
    for name, path in source.items():
        short = modality(name).name
        if short in images:
            raise DatasetError(f"{images[short]} and {path} are both given as {short}, expected one file a modality")
        images[short] = Path(path)
    return images


def _usable(subject: Subject, where: str, prefer: Sequence[str]) -> Subject:
    subject = preferred(subject, prefer)
    if subject.fault:
        raise subject.fault
    if not subject.readers:
        found = f"; there is {subject.left_out[0]}" if subject.left_out else ""
        raise DatasetError(
            f"{where}: no image whose name tells its modality (such as t1n.nii.gz or sub-01_FLAIR.nii.gz){found}; "
            "name them with -i MODALITY=FILE"
        )
    return subject


def _existing_folder(root: Path | str) -> Path:
    root = Path(root)
    if not root.is_dir() and not is_pattern(root):
        what = "is a file" if root.exists() else "no such folder"
        raise DatasetError(f"{root}: {what}; expected a folder of scans; check the path")
    return root


def _reader(root: Path) -> DatasetReader:
    known: list[DatasetReader] = [registry.resolve("data/datasets", name) for name in registry.names("data/datasets")]
    fitting = [PATTERN] if is_pattern(root) else [reader for reader in known if reader.matches(root)]
    if not fitting:
        if dicom := _a_dicom_file(root):
            raise DatasetError(
                f"{root}: holds DICOM ({dicom.name}), which medk2n synth and medk2n node complete; for anything else "
                "convert it first (dcm2niix)"
            )
        raise DatasetError(f"{root}: no scans found; looked for {', '.join(reader.expects for reader in known)}")
    if len(fitting) > 1:
        layouts = " and ".join(reader.expects for reader in fitting)
        raise DatasetError(f"{root}: holds {layouts}; expected one layout; name the folder of one of them")
    return fitting[0]


def _a_dicom_file(root: Path) -> Path | None:
    """One, if there is one among the first files in `root`, at any depth."""
    files = (Path(place) / name for place, _, names_ in os.walk(root) for name in sorted(names_))
    for file in islice(files, _MOST_LOOKED_AT):
        with suppress(OSError), file.open("rb") as stream:
            if stream.read(132)[128:] == b"DICM":
                return file
    return None


def _refuse_unknown(ids: Sequence[str], found: Mapping[str, Subject], root: Path) -> None:
    for unknown in (i for i in ids if i not in found):
        near = get_close_matches(unknown, found, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"there are {len(found)}, the first is {min(found)}"
        raise UnknownNameError(f"no subject {unknown!r} in {root}: {hint}")
