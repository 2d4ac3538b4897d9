"""Which of a BIDS session's files are meant, as `--bids-filter-file` of fMRIPrep says it.

    {"t1w": {"acquisition": "mprage", "run": 1}, "flair": {"reconstruction": null}}

Keys are modalities, by any name of the vocabulary. A value is a label, a list of labels, `null` (the entity is absent)
or `"*"` (it is there, whatever it says).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medk2n.errors import UnknownNameError, UsageError
from medk2n.io.door import door, read_text
from medk2n.io.names import entities, recognise, stem
from medk2n.vocabulary import modality

Filters = Mapping[str, Mapping[str, Any]]
_SHORT = {
    "subject": "sub",
    "session": "ses",
    "acquisition": "acq",
    "ceagent": "ce",
    "tracer": "trc",
    "reconstruction": "rec",
    "direction": "dir",
    "inversion": "inv",
    "description": "desc",
}


def read_filters(path: Path) -> Filters:
    """Short modality name -> entity -> what is wanted.

    Raises:
        UsageError: no such file, no JSON, or no object of objects.
        UnknownNameError: a key that is no modality.
    """
    with door(UsageError, f"--bids-filter-file {path}: cannot be read as JSON", "see its help"):
        given = json.loads(read_text(path))
    if not isinstance(given, dict) or not all(isinstance(value, dict) for value in given.values()):
        raise UsageError(
            f'--bids-filter-file {path}: expected an object of objects, such as {{"t1w": {{"acquisition": "mprage"}}}}'
        )
    filters: dict[str, Mapping[str, Any]] = {}
    for name, wanted in given.items():
        try:
            filters[modality(name).name] = wanted
        except UnknownNameError as error:
            raise UnknownNameError(f"--bids-filter-file {path}: {error}") from error
    return filters


def wanted_files(files: Iterable[Path], filters: Filters) -> list[Path]:
    """Those that no filter keeps out; a file of no known modality stays."""
    return [file for file in files if _fits(file, filters.get(recognise(file) or "", {}))]


def _fits(file: Path, wanted: Mapping[str, Any]) -> bool:
    said = {**entities(file), "suffix": stem(file).rsplit("_", 1)[-1], "datatype": file.parent.name}
    said["extension"] = file.name.removeprefix(stem(file))
    return all(_agree(said.get(_SHORT.get(name, name)), value) for name, value in wanted.items())


def _agree(said: str | None, wanted: Any) -> bool:
    choices: Sequence[Any] = wanted if isinstance(wanted, list) else [wanted]
    return any(
        said is None if choice is None else said is not None and (choice == "*" or _plain(choice) == _plain(said))
        for choice in choices
    )


def _plain(label: Any) -> str:
    """Labels compare as text, numbers whatever their zeros: run 1 is `run-01`."""
    text = str(label)
    return str(int(text)) if text.isdecimal() else text
