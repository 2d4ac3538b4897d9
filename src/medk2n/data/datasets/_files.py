"""What the readers of file-based data sets share: files sorted into images and masks."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from medk2n.data.subject import LeftOut, Subject
from medk2n.errors import DatasetError
from medk2n.io import names
from medk2n.io.nifti import read_header, read_labels, read_volume

RANDOM_PROTOCOL = "random"  # label of the BIDS entity `acq` of acquisitions that only serve as inputs


def folders(root: Path) -> list[Path]:
    """Folders directly in `root`, sorted; hidden ones are none."""
    return sorted(p for p in root.iterdir() if not names.is_hidden(p) and p.is_dir())


def image_files(folder: Path) -> list[Path]:
    """NIfTI files directly in `folder`, sorted; hidden (half-written) ones are none, links to nothing are some."""
    return sorted(p for p in folder.iterdir() if names.is_image(p) and _may_be_read(p))


def other_formats(folder: Path) -> list[Path]:
    """Images directly in `folder` that are no NIfTI, as far as their suffix says so."""
    return sorted(p for p in folder.iterdir() if names.is_other_image(p) and _may_be_read(p))


def _may_be_read(path: Path) -> bool:
    return path.is_file() or _leads_nowhere(path)


def _leads_nowhere(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def subject_of(
    subject_id: str, files: Iterable[Path], mask_files: Iterable[Path] = (), said: Mapping[Path, str] | None = None
) -> Subject:
    """A subject from its files; nothing is read yet. Masks among `files` count before `mask_files`.

    What is not used is `left_out`; of a modality that is there twice all files are `doubles`, and the subject is faulty
    until one of them is preferred.

    Args:
        said: file -> the words that tell what it is, where these are not its name.
    """
    images: dict[str, list[Path]] = defaultdict(list)
    inputs_only: dict[str, list[Path]] = defaultdict(list)
    masks: dict[str, Path] = {}
    left: list[LeftOut] = []
    for path in files:
        word = said[path] if said else path.name
        read = names.read_name(word)
        if why := unusable(path):
            left += [LeftOut(str(path), why)] if not names.is_synthetic(word) else []
        elif names.is_mask(word):
            left += _masked(masks, path, word)
        elif read.modality is None:
            left += [LeftOut(str(path), read.why)] if not names.is_synthetic(word) else []
        elif names.entities(path).get("acq") == RANDOM_PROTOCOL:
            inputs_only[read.modality].append(path)
        else:
            images[read.modality].append(path)
    for path in mask_files:
        if names.is_mask(path):
            masks.setdefault(names.mask_kind(path), path)
    one = {name: paths[0] for name, paths in images.items() if len(paths) == 1}
    doubles = {name: tuple(paths) for name, paths in images.items() if len(paths) > 1}
    fault = _contradiction(subject_id, doubles) if doubles else None
    return replace(
        from_mapping(subject_id, one, masks, inputs_only), left_out=tuple(left), doubles=doubles, fault=fault
    )


def unusable(path: Path) -> str:
    """Why a file cannot even be tried; "" if it can."""
    if _leads_nowhere(path):
        return "a link to a file that is not there; fetch it first (datalad get, git annex get)"
    return "" if names.is_image(path) else "no NIfTI; convert it to .nii.gz"


def _masked(masks: dict[str, Path], path: Path, word: str) -> list[LeftOut]:
    """Take a mask, and say what is unclear about it."""
    kind = names.mask_kind(word)
    if masks.setdefault(kind, path) != path:
        return [LeftOut(str(path), f"a second {kind} mask beside {masks[kind].name}")]
    unclear = "its name does not tell whether it is of the brain, the head or a lesion; known as 'mask' alone"
    return [LeftOut(str(path), unclear)] if kind == "mask" else []


def _contradiction(subject_id: str, doubles: Mapping[str, tuple[Path, ...]]) -> DatasetError:
    name, (first, second, *more) = next(iter(doubles.items()))
    both = f"both {first} and {second}" if not more else f"{first}, {second} and {len(more)} more"
    cure = "choose with --prefer and a word of its name (--prefer run-1), or move the others away"
    if first.parent != second.parent:
        cure += "; if they are sessions, a pattern with {session} keeps them apart"
    return DatasetError(f"{subject_id}: {both} are {name}, expected one file a modality; {cure}")


def preferred(subject: Subject, prefer: Sequence[str]) -> Subject:
    """The subject with the one of its doubles that fits the words of `prefer`, each in turn narrowing the choice.

    A word fits a file whose name has it as an entity (`run-1`, whatever its zeros) or among its words, and one that
    lies in a folder of that name.
    """
    chosen: dict[str, Path] = {}
    left: list[LeftOut] = []
    for name, paths in subject.doubles.items():
        kept = list(paths)
        for word in prefer:
            kept = [path for path in kept if _fits(path, word)] or kept
        if len(kept) > 1:
            return subject
        chosen[name] = kept[0]
        left += [LeftOut(str(path), f"{kept[0].name} is preferred") for path in paths if path != kept[0]]
    if not chosen:
        return subject
    more = from_mapping(subject.id, chosen)
    return replace(
        subject,
        readers={**subject.readers, **more.readers},
        headers={**subject.headers, **more.headers},
        provenance={**subject.provenance, **more.provenance},
        files=(*more.files, *subject.files),
        left_out=(*subject.left_out, *left),
        doubles={},
        fault=None,
    )


def _fits(path: Path, word: str) -> bool:
    key, _, label = word.lower().partition("-")
    said = {k.lower(): v.lower() for k, v in names.entities(path).items()}
    if label and key in said:
        return said[key].lstrip("0") == label.lstrip("0")
    folders_of = (part.lower() for part in path.parent.parts)
    return word.lower() in {*folders_of, *re.split(r"[-_.\s]", names.stem(path).lower())}


def from_mapping(
    subject_id: str,
    images: Mapping[str, Path],
    masks: Mapping[str, Path] | None = None,
    inputs_only: Mapping[str, list[Path]] | None = None,
) -> Subject:
    """A subject whose modalities are known already; nothing is read yet."""
    masks, inputs_only = masks or {}, inputs_only or {}
    further = [path for paths in inputs_only.values() for path in paths]
    return Subject(
        id=subject_id,
        readers={name: partial(read_volume, path, name) for name, path in images.items()},
        inputs_only={name: tuple(partial(read_volume, p, name) for p in paths) for name, paths in inputs_only.items()},
        masks={kind: partial(read_labels, path) for kind, path in masks.items()},
        headers={name: partial(read_header, path) for name, path in images.items()},
        provenance={name: str(path) for name, path in images.items()},
        files=(*images.values(), *further, *masks.values()),
    )
