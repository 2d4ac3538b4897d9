"""Folders of any shape, by a pattern: `DATA/{subject}/reg/{modality}_to_mni.nii.gz` in place of a folder's name.

`{subject}` may come more than once, and stands for the same text then; `{session}` is one of several of a subject, and
`*` is any text that tells nothing. What stands for `{modality}` is read as a file's name would be (`T1`, `flair`,
`brain_mask`); what says nothing is left out. Hidden files and folders fit nothing.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from glob import escape
from pathlib import Path

from medk2n.data.datasets._files import subject_of
from medk2n.data.subject import Subject
from medk2n.errors import DatasetError
from medk2n.io.door import door
from medk2n.io.names import is_hidden, is_image, is_other_image

_FIELDS = {"subject", "modality"}
_OPTIONAL = {"session"}
_MOST_FIELDS = 8  # many ways to fit many fields take time without end


def is_pattern(root: Path) -> bool:
    """Whether a path is a pattern, and no folder."""
    return "{" in str(root) and not root.exists()


class Pattern:
    """Files whose paths say which subject and modality they are."""

    name = "pattern"
    expects = "'DIR/{subject}/{modality}.nii.gz' instead of a folder (pattern)"

    def matches(self, root: Path) -> bool:
        """It holds a field in braces."""
        return is_pattern(root)

    def index(self, root: Path) -> list[Subject]:
        """Subjects, some perhaps without an image that can be used; reads no voxels.

        Raises:
            DatasetError: a field that is unknown or missing, no file that fits, or none whose modality is told.
        """
        base, rest = _parted(root)
        told = re.compile(_expression(rest))
        of: dict[tuple[str, str], dict[Path, str]] = {}
        with door(DatasetError, f"{root}: is no pattern", "expected 'DIR/{subject}/{modality}.nii.gz'"):
            files = sorted(base.glob(_glob(rest)))
        for file in files:
            place = file.relative_to(base)
            if any(map(is_hidden, map(Path, place.parts))) or not (is_image(file) or is_other_image(file)):
                continue
            if (found := told.fullmatch(place.as_posix())) and not file.is_dir():
                said = found.groupdict()
                of.setdefault((said["subject"], said.get("session", "")), {})[file] = said["modality"]
        if not of:
            raise DatasetError(f"{root}: no file fits the pattern; expected some under {base}; check it")
        subjects = [
            replace(subject_of("_".join(filter(None, who)), files, said=files), patient=who[0] if who[1] else "")
            for who, files in of.items()
        ]
        if not any(subject.readers or subject.fault for subject in subjects):
            words = sorted({word for files in of.values() for word in files.values()})
            raise DatasetError(
                f"{root}: none of {', '.join(words[:5])} is a modality; expected names such as T1, t1ce or FLAIR"
            )
        return subjects


def _parted(pattern: Path) -> tuple[Path, list[str]]:
    """The folder before the first field, and the rest: text and, at every other place, the name of a field."""
    parts = pattern.parts
    first = next(k for k, part in enumerate(parts) if "{" in part)
    rest = re.split(r"\{([^{}]*)\}", "/".join(parts[first:]))
    if not _FIELDS <= set(rest[1::2]) <= _FIELDS | _OPTIONAL:
        raise DatasetError(
            f"{pattern}: expected the fields {{subject}} and {{modality}}, each at least once, {{session}} if need be, "
            "and no others"
        )
    if len(rest[1::2]) > _MOST_FIELDS:
        raise DatasetError(f"{pattern}: {len(rest[1::2])} fields; expected at most {_MOST_FIELDS}")
    return Path(*parts[:first]), rest


def _glob(rest: Sequence[str]) -> str:
    """Two fields side by side are one star: two would mean folders in folders."""
    parts = ("*" if k % 2 else "*".join(map(escape, text.split("*"))) for k, text in enumerate(rest))
    return re.sub(r"\*{2,}", "*", "".join(parts))


def _expression(rest: Sequence[str]) -> str:
    """A field's first place takes any text without a slash, its others the same text."""
    seen: set[str] = set()
    parts = []
    for k, text in enumerate(rest):
        if k % 2:
            parts.append(f"(?P={text})" if text in seen else f"(?P<{text}>[^/]+?)")
            seen.add(text)
        else:
            parts.append("[^/]*".join(map(re.escape, text.split("*"))))
    return "".join(parts)


COMPONENT = Pattern()
