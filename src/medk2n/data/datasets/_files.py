"""What the readers of file-based data sets share: files sorted into images and masks."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from medk2n.data.subject import Subject
from medk2n.errors import DatasetError
from medk2n.io import names
from medk2n.io.nifti import read_header, read_labels, read_volume

RANDOM_PROTOCOL = "random"  # label of the BIDS entity `acq` of acquisitions that only serve as inputs


def image_files(folder: Path) -> list[Path]:
    """NIfTI files directly in `folder`, sorted; hidden (half-written) ones are none."""
    return sorted(p for p in folder.iterdir() if p.is_file() and names.is_image(p))


def subject_of(subject_id: str, files: Iterable[Path], mask_files: Iterable[Path] = ()) -> Subject:
    """A subject from its files; nothing is read yet. Masks among `files` count before `mask_files`.

    Raises:
        DatasetError: two files of one modality.
    """
    images: dict[str, Path] = {}
    inputs_only: dict[str, list[Path]] = defaultdict(list)
    masks: dict[str, Path] = {}
    for path in files:
        if names.is_mask(path):
            masks.setdefault(names.mask_kind(path), path)
        elif (name := names.recognise(path)) is None:
            continue
        elif names.entities(path).get("acq") == RANDOM_PROTOCOL:
            inputs_only[name].append(path)
        else:
            add_once(images, name, path, subject_id)
    for path in mask_files:
        if names.is_mask(path):
            masks.setdefault(names.mask_kind(path), path)
    return from_mapping(subject_id, images, masks, inputs_only)


def add_once(images: dict[str, Path], name: str, path: Path, subject_id: str) -> None:
    """Put one image beside the others of a subject.

    Raises:
        DatasetError: there is one of that modality.
    """
    if name in images:
        raise DatasetError(
            f"{subject_id}: both {images[name]} and {path} are {name}, expected one file a modality; "
            "move one away or rename it"
        )
    images[name] = path


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
