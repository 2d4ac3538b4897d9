"""Door bench: which bad scans does the gatekeeper tell or refuse, and how often does it doubt a good one?

    python recipes/door.py DATA [DATA ...] --out docs/results/door [--good MORE] [--model default] [--jobs 2]

Every scan of every study is a good case. Every study of DATA gives one bad case of each kind that it can: one of its
scans is replaced, and any doubt about the study counts as told. Kinds that take V are left out where the model has
none. Data sets that state no millimetres get `--voxel` in plane; their slices are `slice_mm` of a manifest.json beside
them, or share out the 130 mm of a head.
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from medk2n.checkpoint import find_model, read_config
from medk2n.data.discover import discover
from medk2n.data.doubts import NAMED, REFUSED, TOLD
from medk2n.data.patient import patient
from medk2n.errors import GeometryError, VolumeReadError
from medk2n.gatekeeper import Gatekeeper
from medk2n.geometry.grid import Grid
from medk2n.io.atomic import write_text
from medk2n.io.shown import csv_text
from medk2n.io.volume import Volume
from medk2n.workers import each

HEAD_MM = 130.0
FARTHER, FARTHEST = 4, 12
"""Voxels by which a displaced scan is moved in plane."""
IMAGE = "noise", "noise in the head", "faded to one grey", "mask", "label map", "cut off"
PAIR = "displaced", "mirrored", "another patient's"
NAME = "names swapped", "CT named as MR"
GOOD = "good"


@dataclass(frozen=True)
class Case:
    """One scan that was looked at.

    Attributes:
        expected: kind of damage, or `GOOD`.
        told: kind of the surest doubt, "unreadable" where the reader refuses it already, "" for none.
    """

    data: str
    study: str
    modality: str
    expected: str
    told: str
    certainty: float
    refused: bool


Study = dict[str, Volume]


def studies(root: Path, voxel: float, most: int) -> Iterator[tuple[str, Study]]:
    """Id and scans of a data set's subjects, with the millimetres that the data set may lack."""
    beside = next((p for p in (root / "manifest.json", root.parent / "manifest.json") if p.is_file()), None)
    about = json.loads(beside.read_text()) if beside else {}
    for subject in discover(root)[:most]:
        volumes = {name: read() for name, read in subject.readers.items()}
        for name, volume in volumes.items():
            if volume.provenance.get("spacing") != "unknown":
                continue
            told = about.get(subject.id, {}) if isinstance(about, dict) else {}
            edges = (voxel, voxel, told.get("slice_mm") or HEAD_MM / volume.grid.shape[2], 1.0)
            volumes[name] = Volume(volume.array, Grid(volume.grid.shape, np.diag(edges)), name)
        yield subject.id, volumes


def damaged(kind: str, volume: Volume, rng: np.random.Generator) -> Volume:
    """One scan with damage that shows in itself or in where it lies."""
    array, inside = volume.array, patient(volume)
    mean, spread = float(array[inside].mean()), float(array[inside].std())
    if kind == "noise":
        array = np.abs(rng.normal(mean, spread, array.shape))
    elif kind == "noise in the head":
        array = np.where(inside, np.abs(rng.normal(mean, spread, array.shape)), 0)
    elif kind == "faded to one grey":
        array = np.where(inside, mean + 0.01 * spread * rng.standard_normal(array.shape), 0)
    elif kind == "mask":
        array = inside
    elif kind == "label map":
        array = np.where(inside, 1 + np.digitize(array, np.percentile(array[inside], [20, 40, 60, 80])), 0)
    elif kind == "cut off":
        array = np.minimum(array, np.percentile(array[inside], rng.uniform(40, 70)))
    elif kind == "displaced":
        angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(FARTHER, FARTHEST)
        array = ndimage.shift(array, (far * np.cos(angle), far * np.sin(angle), 0), order=1, mode="nearest")
    elif kind == "mirrored":
        array = array[::-1]
    return replace(volume, array=np.ascontiguousarray(array, dtype=np.float32), provenance={})


def bad_cases(
    study: Study, before: Study, keeper: Gatekeeper, rng: np.random.Generator
) -> Iterator[tuple[str, str, Study]]:
    """Kind, the scan that is bad, and the study with it."""
    first, *others = study
    for kind in (*IMAGE, *PAIR[:2]):
        name = str(rng.choice(others))
        yield kind, name, {first: study[first], name: damaged(kind, study[name], rng)}
    if shared := [name for name in others if name in before]:
        name = str(rng.choice(shared))
        yield PAIR[2], name, {first: study[first], name: before[name]}
    known = keeper.identity.names if keeper.identity else ()
    if {"t1n", "t2w"} <= {*study} & {*known}:
        swapped = {"t1n": replace(study["t2w"], modality="t1n"), "t2w": replace(study["t1n"], modality="t2w")}
        yield NAME[0], "t1n", swapped
    if "ct" in study and {"t1n", "ct"} <= {*known} and (other := next((n for n in ("t2w", "t1c") if n in study), "")):
        yield NAME[1], "t1n", {other: study[other], "t1n": replace(study["ct"], modality="t1n")}


def judged(data: str, of: str, name: str, expected: str, study: Study, keeper: Gatekeeper) -> Case:
    """What the gatekeeper says of one case."""
    try:
        found = keeper.examine(study, next(iter(study))).doubts
    except (VolumeReadError, GeometryError):
        return Case(data, of, name, expected, "unreadable", 1.0, True)
    if not found:
        return Case(data, of, name, expected, "", 0.0, False)
    return Case(data, of, name, expected, found[0].kind, found[0].certainty, any(d.refuses for d in found))


@dataclass(frozen=True)
class Task:
    """One data set, and what is made of it."""

    root: Path
    model: Path
    voxel: float
    most: int
    seed: int
    with_bad: bool
    minutes: float

    @property
    def name(self) -> str:
        """Its folder, and whose part it is."""
        return f"{self.root.parent.name}/{self.root.name}"


def cases_of(task: Task) -> list[Case]:
    """All cases of a data set."""
    keeper = Gatekeeper.of_model(task.model, read_config(task.model).spacing_mm)
    cases: list[Case] = []
    rng, before, until = np.random.default_rng(task.seed), {}, time.monotonic() + 60 * task.minutes
    for of, study in studies(task.root, task.voxel, task.most):
        if time.monotonic() > until:
            break
        if len(study) < 2:
            continue
        doubts = {d.modality: d for d in keeper.examine(study, next(iter(study))).doubts}
        for name in study:
            doubt = doubts.get(name)
            told = (doubt.kind, doubt.certainty, doubt.refuses) if doubt else ("", 0.0, False)
            cases.append(Case(task.name, of, name, GOOD, *told))
        for kind, name, made in bad_cases(study, before, keeper, rng) if task.with_bad else ():
            cases.append(judged(task.name, of, name, kind, made, keeper))
        before = study
    return cases


def table(cases: list[Case], about: Mapping[str, str]) -> str:
    """Markdown: each kind apart, then all bad and all good ones."""
    kinds = [k for k in (*IMAGE, *PAIR, *NAME) if any(c.expected == k for c in cases)]
    bad, good = ([c for c in cases if (c.expected == GOOD) is is_good] for is_good in (False, True))
    lines = ["# Door bench", "", *(f"- {key}: {value}" for key, value in about.items()), ""]
    limits = f"Told from a certainty of {TOLD} on (another modality from {NAMED})"
    lines += [f"{limits}, refused from {REFUSED} on, unless forced.", ""]
    lines += ["| scans | cases | refused | told | missed | as what |", "|---|---|---|---|---|---|"]
    rows = [*((kind, [c for c in cases if c.expected == kind]) for kind in kinds), ("**all bad**", bad)]
    lines += [_row(*row) for row in [*rows, ("**all good**", good)]]
    caught, alarms = sum(bool(c.told) for c in bad), sum(bool(c.told) for c in good)
    lines += ["", f"Bad ones refused or told: {caught} of {len(bad)} ({caught / max(1, len(bad)):.1%}). "
                  f"False alarms: {alarms} of {len(good)} ({alarms / max(1, len(good)):.1%})."]  # fmt: skip
    if alarms:
        lines += ["", "False alarms:"]
        lines += [f"- {c.data} {c.study} {c.modality}: {c.told}, {c.certainty:.2f}" for c in good if c.told]
    return "\n".join(lines) + "\n"


def _row(name: str, cases: list[Case]) -> str:
    refused = sum(c.refused for c in cases)
    told = sum(bool(c.told) and not c.refused for c in cases)
    kinds = sorted({c.told for c in cases if c.told})
    what = ", ".join(f"{kind} {sum(c.told == kind for c in cases)}" for kind in kinds)
    return f"| {name} | {len(cases)} | {refused} | {told} | {len(cases) - refused - told} | {what} |"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("data", type=Path, nargs="+")
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--model", default="default")
    options.add_argument("--voxel", type=float, default=1.5)
    options.add_argument("--most", type=int, default=1000, help="subjects of each data set")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--good", type=Path, nargs="*", default=[], help="data sets of good cases alone")
    options.add_argument("--minutes", type=float, default=1e6, help="no study of a data set is begun later")
    options.add_argument("--jobs", type=int, default=1, help="processes, one a data set")
    asked = options.parse_args()
    folder = find_model(asked.model)
    keeper = Gatekeeper.of_model(folder, read_config(folder).spacing_mm)
    roots = [(root, True) for root in asked.data] + [(root, False) for root in asked.good]
    tasks = [
        Task(root.resolve(), folder, asked.voxel, asked.most, asked.seed, with_bad, asked.minutes)
        for root, with_bad in roots
    ]
    with closing(each(cases_of, tasks, min(asked.jobs, len(tasks)))) as done:
        found = dict(done)
    cases = [case for task in tasks for case in found[task]]
    names = ", ".join(keeper.identity.described.modalities) if keeper.identity else "none: the model has no V"
    data = ", ".join(task.name + ("" if task.with_bad else " (good alone)") for task in tasks)
    asked.out.mkdir(parents=True, exist_ok=True)
    about = {"data": data, "model": asked.model, "names judged": names, "seed": str(asked.seed)}
    text = table(cases, about)
    write_text(asked.out / "table.md", text)
    columns = ["data", "study", "modality", "expected", "told", "certainty", "refused"]
    rows = [[c.data, c.study, c.modality, c.expected, c.told, f"{c.certainty:.3f}", int(c.refused)] for c in cases]
    write_text(asked.out / "records.csv", csv_text(columns, rows))
    print(text)


if __name__ == "__main__":
    main()
