"""Discovery: which subjects are in a folder, whatever its layout. Reads names, never voxels."""

from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol

from medk2n import registry
from medk2n.data.datasets._files import from_mapping, subject_of
from medk2n.data.datasets.pattern import COMPONENT as PATTERN
from medk2n.data.datasets.pattern import is_pattern
from medk2n.data.datasets.studies import study_files
from medk2n.data.prepared import STUDY, is_prepared, prepared_subject
from medk2n.data.subject import Subject
from medk2n.errors import DatasetError, Medk2nError, UnknownNameError
from medk2n.io import names
from medk2n.vocabulary import modality


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
    faulty: Callable[[str, Medk2nError], object] | None = None,
) -> list[Subject]:
    """Subjects of a data set, sorted by id.

    Args:
        subjects: ids to keep; None keeps all.
        exclude: ids to leave out.
        faulty: called with the id and the fault of each subject that cannot be used; they are left out of the result.
            None refuses the data set for the first.

    Raises:
        DatasetError: no folder, no known layout, two layouts at once, nothing left, or a faulty subject.
        UnknownNameError: an id in `subjects` or `exclude` that is not there.
    """
    root = _existing_folder(root)
    found = {}
    for subject in _reader(root).index(root):
        if subject.id in found:
            raise DatasetError(f"{root}: two subjects are called {subject.id}; expected unique names; rename one")
        found[subject.id] = subject
    _refuse_unknown([*(subjects or ()), *exclude], found, root)
    kept = [found[i] for i in sorted(found) if (subjects is None or i in subjects) and i not in exclude]
    if not kept:
        raise DatasetError(f"{root}: no subject is left of {len(found)}; check which are chosen and excluded")
    for subject in kept:
        if subject.fault and faulty is None:
            raise subject.fault
        if subject.fault:
            faulty(subject.id, subject.fault)
    if all(subject.fault for subject in kept):
        raise DatasetError(f"{root}: all {len(kept)} subjects are faulty; the first: {kept[0].fault}")
    return [subject for subject in kept if not subject.fault]


def discover_study(source: Path | str | Sequence[Path | str] | Mapping[str, Path | str]) -> Subject:
    """One study: a folder, loose files whose names tell the modality, or modality -> file.

    Raises:
        DatasetError: nothing recognised, or two files of one modality.
        UnknownNameError: a modality name in a mapping that is not known.
    """
    if isinstance(source, Mapping):
        return from_mapping(names.study_id(list(source.values())), _by_short_name(source))
    if not isinstance(source, (str, Path)):
        files = [Path(p) for p in source]
        return _some_images(subject_of(names.study_id(files), files), f"{len(files)} files")
    if Path(source).is_file():
        return discover_study([source])
    folder = _existing_folder(source)
    if is_prepared(folder.parent) and (folder / STUDY).is_file():
        return prepared_subject(folder)
    files = study_files(folder)
    images = [file for file in files if names.recognise(file)]
    study = names.study_id(images) if images else folder.name
    return _some_images(subject_of(study, files), str(folder))


def _by_short_name(source: Mapping[str, Path | str]) -> dict[str, Path]:
    images: dict[str, Path] = {}
    for name, path in source.items():
        short = modality(name).name
        if short in images:
            raise DatasetError(f"{images[short]} and {path} are both given as {short}, expected one file a modality")
        images[short] = Path(path)
    return images


def _some_images(subject: Subject, where: str) -> Subject:
    if not subject.readers:
        raise DatasetError(
            f"{where}: no image whose name tells its modality (such as t1n.nii.gz or sub-01_FLAIR.nii.gz); "
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
        raise DatasetError(f"{root}: no scans found; looked for {', '.join(reader.expects for reader in known)}")
    if len(fitting) > 1:
        layouts = " and ".join(reader.expects for reader in fitting)
        raise DatasetError(f"{root}: holds {layouts}; expected one layout; name the folder of one of them")
    return fitting[0]


def _refuse_unknown(ids: Sequence[str], found: Mapping[str, Subject], root: Path) -> None:
    for unknown in (i for i in ids if i not in found):
        near = get_close_matches(unknown, found, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"there are {len(found)}, the first is {min(found)}"
        raise UnknownNameError(f"no subject {unknown!r} in {root}: {hint}")
