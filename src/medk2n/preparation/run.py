"""A whole data set: which studies are left to do, in how many processes, and what became of each."""

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medk2n.data.prepared import FORMAT, SETTINGS, is_prepared
from medk2n.data.subject import Subject
from medk2n.errors import DatasetError, Medk2nError, OutputExistsError, contained
from medk2n.gatekeeper import Gatekeeper
from medk2n.io.atomic import write_json
from medk2n.io.door import door, read_text
from medk2n.io.names import folder_names
from medk2n.io.outputs import OutputFolder, output_folder
from medk2n.preparation.study import Plan, is_there, prepare_study, versions
from medk2n.workers import each

Report = Callable[[str, int, int], None]
"""Called with the subject just done, subjects done, and subjects in all."""


@dataclass
class Result:
    """What became of the subjects of a data set: ids, and lines for a person under the id that they concern."""

    prepared: list[str] = field(default_factory=list)
    there: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    warnings: dict[str, list[str]] = field(default_factory=dict)


def prepare(
    subjects: Sequence[Subject],
    root: Path,
    out: Path,
    plan: Plan,
    *,
    keeper: Gatekeeper | None = None,
    jobs: int = 1,
    overwrite: bool = False,
    report: Report | None = None,
) -> Result:
    """Prepare the subjects of the data set `root` into `out`; what is there already, from the same files, stays.

    A subject that fails is told in the result, and the others go on.

    Args:
        keeper: looks at every scan first; what it refuses fails.
        jobs: processes.
        overwrite: begin anew where `out` was prepared with other settings, or is to be made again.

    Raises:
        OutputExistsError: `out` is something else, or was prepared with other settings.
        DatasetError: every subject failed.
        SystemLimitError: the disk is full, or a process was killed for want of memory.
    """
    result = Result()
    folders = folder_names([subject.id for subject in subjects])
    with output_folder(out, ["*"], goes_on=True) as place, place.scratch() as scratch:
        _open_set(place, plan, overwrite=overwrite)
        tasks = [(subject, plan, out / folders[subject.id], root, scratch, keeper) for subject in subjects]
        with closing(each(_one, tasks, min(jobs, len(tasks)))) as outcomes:
            for done, (task, outcome) in enumerate(outcomes, 1):
                subject_id = task[0].id
                if isinstance(outcome, Medk2nError):
                    result.failed[subject_id] = str(outcome)
                elif outcome is None:
                    result.there.append(subject_id)
                else:
                    result.prepared.append(subject_id)
                    if outcome:
                        result.warnings[subject_id] = outcome
                if report:
                    report(subject_id, done, len(tasks))
        if len(result.failed) == len(tasks):
            raise DatasetError(f"all {len(tasks)} subjects failed; the first: {next(iter(result.failed.values()))}")
    return result


def _open_set(place: OutputFolder, plan: Plan, *, overwrite: bool) -> None:
    """Begin the set, or see that it was begun with the same settings."""
    settings = {"format": FORMAT, "steps": plan.to_json()}
    if overwrite or not is_prepared(place.path):
        place.check(overwrite=overwrite)
        place.clear()
    place.check(overwrite=True, planned=[SETTINGS])
    if is_prepared(place.path) and (before := _settings(place.path)) != settings:
        raise OutputExistsError(
            f"{place.path} was prepared with other settings ({_difference(before, settings)}); give the same ones to "
            "go on, choose another --out, or add --overwrite to begin anew"
        )
    with place.whole(last=SETTINGS, planned=[SETTINGS]) as new:
        write_json(new / SETTINGS, settings | {"versions": versions()})


def _settings(out: Path) -> dict[str, Any]:
    with door(OutputExistsError, f"{out / SETTINGS}: cannot be read", "add --overwrite to begin anew"):
        found = json.loads(read_text(out / SETTINGS))
        return {"format": found["format"], "steps": found["steps"]}


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first step that is not alike."""
    old, new = ({step["step"]: step for step in settings["steps"]} for settings in (before, now))
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name):
            told = [", ".join(f"{k} {v}" for k, v in s[name].items() if k != "step") or "on" if name in s else "off"
                    for s in (old, new)]  # fmt: skip
            return f"{name}: {told[0]}, now {told[1]}"
    return "another format"


_Task = tuple[Subject, Plan, Path, Path, Path, Gatekeeper | None]
_Outcome = list[str] | None | Medk2nError


def _one(task: _Task) -> _Outcome:
    """Warnings of a subject that was prepared, None for one that was there, or what went wrong with it."""
    subject, plan, place, root, scratch, keeper = task
    try:
        if is_there(subject, place, root):
            return None
        return prepare_study(subject, plan, place, root, scratch, keeper).warnings
    except Exception as error:
        return contained(error)
