"""Many subjects in one folder, or in one folder a modality, as IXI hands them out: `IXI002-Guys-0828-T1.nii.gz`."""

import re
from collections import defaultdict
from pathlib import Path

from medk2n.data.datasets._files import RANDOM_PROTOCOL, folders, image_files, other_formats, subject_of, unusable
from medk2n.data.datasets.bids import DATATYPES
from medk2n.data.prepared import is_prepared
from medk2n.data.subject import LeftOut, Subject
from medk2n.errors import DatasetError
from medk2n.io.names import entities, is_mask, read_name, recognise, stem, without_modality

_SEPARATORS = "_-. "


class Flat:
    """A subject is what its files' names share: the name without the modality at its end."""

    name = "flat"
    expects = "SUBJECT-T1.nii.gz, many in a folder or in one folder a modality (flat)"

    def matches(self, root: Path) -> bool:
        """Some modality is there more than once."""
        return is_flat(root) and not is_prepared(root)

    def index(self, root: Path) -> list[Subject]:
        """Subjects with at least one recognised image; reads no voxels.

        Raises:
            DatasetError: the names do not tell which files belong together.
        """
        of: dict[str, list[Path]] = defaultdict(list)
        masks, unclear = [], []
        for file in _files(root):
            if is_mask(file):
                masks.append(file)
            elif recognise(file):
                of[without_modality(stem(file)).strip(_SEPARATORS)].append(file)
            else:
                unclear.append(file)
        _refuse_unclear(root, of)
        nobodys = []
        for file in (*masks, *unclear, *other_formats(root)):
            owners = [name for name in of if stem(file).startswith(_beginnings(name))]
            if owners:
                of[max(owners, key=len)].append(file)
            else:
                nobodys.append(file)
        return [subject_of(name, mine) for name, mine in of.items()] + [_nobody(file) for file in nobodys]


def _nobody(file: Path) -> Subject:
    """A file that belongs to no subject with an image, so that it is told."""
    why = unusable(file) or ("it is a mask of none of the subjects" if is_mask(file) else read_name(file).why)
    return Subject(stem(file), {}, left_out=(LeftOut(str(file), why),))


def is_flat(root: Path) -> bool:
    """Whether some modality is in `root` twice, so that it holds many subjects, not one study."""
    files = [file for file in _files(root) if entities(file).get("acq") != RANDOM_PROTOCOL]
    found = [name for file in files if (name := recognise(file))]
    return len(set(found)) < len(found)


def _files(root: Path) -> list[Path]:
    """Files in `root` and in the folders in it that are called like a modality and hold no other."""
    inner = (folder for folder in folders(root) if folder.name not in DATATYPES and _of_one_modality(folder))
    return image_files(root) + [file for folder in inner for file in image_files(folder)]


def _beginnings(name: str) -> tuple[str, ...]:
    return tuple(name + separator for separator in _SEPARATORS)


def _of_one_modality(folder: Path) -> bool:
    """Such as `T1` or `IXI-T1`, of two subjects or more; a study called `PD_001` is none."""
    named = recognise(re.split(r"[_\-. ]", folder.name)[-1])
    found = [name for file in image_files(folder) if (name := recognise(file))]
    return len(found) > 1 and set(found) == {named}


def _refuse_unclear(root: Path, of: dict[str, list[Path]]) -> None:
    modalities = {name: {recognise(file) for file in files} for name, files in of.items()}
    if len(set.union(*modalities.values())) > 1 and all(len(found) == 1 for found in modalities.values()):
        raise DatasetError(
            f"{root}: no two files share a name before the modality ({min(of)!r}, {max(of)!r}, ...); expected "
            "SUBJECT-T1.nii.gz beside SUBJECT-T2.nii.gz; rename them"
        )
    for name in of:
        for longer in of:
            if longer.startswith(_beginnings(name)) and modalities[name] & modalities[longer]:
                raise DatasetError(
                    f"{root}: {name!r} and {longer!r} may be one subject or two; expected names of which none begins "
                    "with another; rename the files or move one away"
                )


COMPONENT = Flat()
