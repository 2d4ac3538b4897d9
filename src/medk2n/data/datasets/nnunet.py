"""nnU-Net's raw format: `dataset.json` names the channels, `imagesTr/CASE_0000.nii.gz` holds the first."""

import json
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from medk2n.data.datasets._files import from_mapping, image_files, unusable
from medk2n.data.subject import LeftOut, Subject
from medk2n.errors import DatasetError
from medk2n.io.door import door, read_any_text
from medk2n.io.names import read_name, stem
from medk2n.vocabulary import short_name

_IMAGES, _LABELS = ("imagesTr", "imagesTs"), ("labelsTr", "labelsTs")
_EXPECTED = 'expected JSON with "channel_names": {"0": "T1", ...}'
_CASE = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


def is_nnunet(root: Path) -> bool:
    """Whether `dataset.json` and `imagesTr` lie in `root`."""
    return (root / "dataset.json").is_file() and (root / _IMAGES[0]).is_dir()


class NnUNet:
    """Cases of the training and the test folder; labels are lesions."""

    name = "nnunet"
    expects = "dataset.json and imagesTr/*_0000.nii.gz (nnU-Net)"

    def matches(self, root: Path) -> bool:
        """`dataset.json` beside `imagesTr`."""
        return is_nnunet(root)

    def index(self, root: Path) -> list[Subject]:
        """One subject a case; channels that are no modality we know (such as a mask) are left out.

        Raises:
            DatasetError: dataset.json cannot be read, names no modality, or two channels are the same one; no file is
                called as nnU-Net wants it (the Decathlon's 4-D files are not); a case is in both folders.
        """
        channels = _channels(root / "dataset.json")
        images: dict[str, dict[str, Path]] = defaultdict(dict)
        left: dict[str, list[LeftOut]] = defaultdict(list)
        for folder in (root / name for name in _IMAGES if (root / name).is_dir()):
            for file in image_files(folder):
                case = _CASE.fullmatch(stem(file))
                if case is None:
                    left[stem(file)].append(LeftOut(str(file), "not called CASE_0000.nii.gz"))
                    continue
                name, why = channels.get(int(case["channel"]), (None, "dataset.json names no such channel"))
                if why := unusable(file) or why:
                    left[case["case"]].append(LeftOut(str(file), why))
                elif name and (other := images[case["case"]].setdefault(name, file)) != file:
                    raise DatasetError(f"{other} and {file} are one case twice; expected unique names; rename one")
        if not images:
            raise DatasetError(
                f"{root / _IMAGES[0]}: no file called CASE_0000.nii.gz; expected one 3-D file a channel; "
                "split 4-D files first (nnUNetv2_convert_MSD_dataset)"
            )
        labels = {stem(f): f for name in _LABELS if (root / name).is_dir() for f in image_files(root / name)}
        subjects = (
            from_mapping(case, images.get(case, {}), {"lesion": labels[case]} if case in labels else None)
            for case in {**images, **left}
        )
        return [replace(subject, left_out=tuple(left[subject.id])) for subject in subjects]


def _channels(path: Path) -> dict[int, tuple[str | None, str]]:
    """Channel -> (short modality name, "") or (None, why it is none).

    They stand in `channel_names` (version 2) or `modality` (version 1).
    """
    with door(DatasetError, f"{path}: cannot be read", _EXPECTED):
        described = json.loads(read_any_text(path))
        named = described.get("channel_names") or described["modality"]
        given = {int(channel): str(name) for channel, name in named.items()}
    known: dict[int, tuple[str | None, str]] = {}
    for channel, name in given.items():
        short, why = short_name(name), ""
        if short is None:
            short, why = read_name(name).modality, f"channel {name!r}: {read_name(name).why}"
        if short and (short, "") in known.values():
            raise DatasetError(f"{path}: two channels are {short} ({name!r} is one); expected one; rename the other")
        known[channel] = (short, "") if short else (None, why)
    if not any(short for short, _ in known.values()):
        raise DatasetError(f"{path}: no channel is a known modality ({', '.join(given.values())}); rename the channels")
    return known


COMPONENT = NnUNet()
