"""Every verb and its outputs: what is somebody else's stays, sets are whole or absent, a killed run does no harm."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from medk2n.cli.main import VERBS as PROGRAM
from medk2n.cli.main import main
from medk2n.io.outputs import HOME

from .conftest import save, scan

SMALL = ["models=[{name: unet, params: {widths: [8, 8, 8, 8, 8]}}]", "budget={steps: 2}", "threads=1",
         "batch={size: 1, crop: 16, draws: 1, targets: 1, most_sources: 1}", "modalities=[t1n, t2w]",
         "spacing_mm=2.0", "validation_subjects=0"]  # fmt: skip


@dataclass(frozen=True)
class Verb:
    """How a verb is run into a place, what it writes, and what appears when all else is there."""

    words: Callable[["World", Path], list[object]]
    writes: tuple[str, ...]
    last: str


@dataclass(frozen=True)
class World:
    model: Path
    cohort: Path
    three: Path
    raw: Path
    run: Path


VERBS = {
    "synth": Verb(lambda w, o: ["synth", w.cohort / "a", "-t", "t2f", "-o", o, "--model", w.model, "--device", "cpu"],
                  ("report.html", "dataset_description.json", "a_desc-synth_FLAIR.nii.gz", "a_desc-synth_FLAIR.json"),
                  "report.html"),
    "synth of many": Verb(lambda w, o: ["synth", w.cohort, "-t", "t2f", "-o", o, "--model", w.model, "--device", "cpu"],
                          ("dataset_description.json", "b/report.html", "b/b_desc-synth_FLAIR.nii.gz", "group.html"),
                          "group.html"),
    "bids": Verb(lambda w, o: ["bids", w.raw, o, "participant", "-t", "t2f", "--model", w.model, "--device", "cpu"],
                 ("dataset_description.json", "sub-01.html", "sub-01/anat/sub-01_desc-synth_FLAIR.nii.gz"),
                 "sub-01.html"),
    "evaluate": Verb(lambda w, o: ["evaluate", "--data", w.cohort, "-o", o, "--model", w.model, "--device", "cpu"],
                     ("table.md", "records.csv", "picture.png", "protocols.md"), "table.md"),
    "benchmark": Verb(lambda w, o: ["benchmark", "phantom", "--model", w.model, "--data", w.cohort, "-o", o,
                                    "--subjects", "a,b", "--device", "cpu"],
                      ("table1.md", "values.csv", "table2.tex", "facts.json"), "table1.md"),
    "ablate": Verb(lambda w, o: ["ablate", "--data", w.three, "-o", o, "--model", w.model, "--device", "cpu",
                                 "--parts", "doubt", "--damage", "noise", "--every", "9"],
                   ("ablation.md", "ablation.csv", "facts.json"), "ablation.md"),
    "train": Verb(lambda w, o: ["train", "--data", w.cohort, "-o", o, "--device", "cpu",
                                *(word for value in SMALL[:-1] for word in ("--set", value))],
                  ("config.json", "model.safetensors", "metrics.csv", "train.json", "samples/scan.nii.gz",
                   "state/notes.txt", "reference/unet/config.json", "plan.json"), "config.json"),
    "index": Verb(lambda w, o: ["index", w.cohort, "-o", o], ("index.md", "index.csv", "index.png"), "index.md"),
    "prepare": Verb(lambda w, o: ["prepare", w.cohort, "-o", o, "-j", "1"], ("prepared.json", "a/t1n.nii", "mine.txt"),
                    "prepared.json"),
    "phantom": Verb(lambda w, o: ["phantom", o, "--subjects", "1", "--spacing", "8", "--workers", "1"],
                    ("dataset_description.json", "README", "sub-007/mine.nii", "mine.txt"), "dataset_description.json"),
    "demo": Verb(lambda w, o: ["demo", "-o", o, "--model", w.model, "--device", "cpu"],
                 ("report.html", "demo.png", "patient/mine.nii", "dataset_description.json"), "report.html"),
    "plan": Verb(lambda w, o: ["plan", w.cohort, "-o", o / "plan.yaml", "--device", "cpu"],
                 ("plan.yaml",), "plan.yaml"),
    "report": Verb(lambda w, o: ["report", w.run, "-o", o / "run.html"], ("run.html",), "run.html"),
}  # fmt: skip
ELSEWHERE = ("demo", "phantom")  # half a minute a run; their own tests repeat them
ALL_KILLS = "MEDK2N_ALL_KILLS" in os.environ
KILLED = ("synth", "evaluate", "ablate", "train", "index", "prepare", "plan", "report")  # the others take minutes
NAMED = ("plan", "report")  # one file, which the caller names: --overwrite is said of that very file
ALL = [(verb, name) for verb, row in VERBS.items() for name in row.writes]


@pytest.fixture(scope="module")
def world(model, tmp_path_factory) -> World:
    root = tmp_path_factory.mktemp("world")
    for k, subject in enumerate("ab"):
        for j, name in enumerate(("t1n", "t2w")):
            save(root / "cohort" / subject / f"{name}.nii.gz", scan(10 * k + j))
    for j, name in enumerate(("t1n", "t2w", "t1c")):
        save(root / "three" / "a" / f"{name}.nii.gz", scan(j))
    save(root / "raw" / "sub-01" / "anat" / "sub-01_T1w.nii.gz", scan())
    (root / "raw" / "dataset_description.json").write_text(json.dumps({"Name": "x", "BIDSVersion": "1.11.0"}))
    (root / "run").mkdir()
    (root / "run" / "train.json").write_text(json.dumps({"models": [{"name": "unet"}]}))
    (root / "run" / "metrics.csv").write_text("model,step,seconds,progress,name,value\nunet,1,1.0,1.0,loss,0.5\n")
    return World(model, root / "cohort", root / "three", root / "raw", root / "run")


@pytest.fixture(autouse=True)
def coarse(monkeypatch) -> None:
    monkeypatch.setattr("medk2n.cli.demo._SPACING_MM", 8.0)


def run(verb: str, world: World, out: Path, *more: str) -> int:
    return main([str(word) for word in (*VERBS[verb].words(world, out), *more)])


def seen(out: Path) -> dict[str, bytes]:
    """What a person sees in a folder."""
    files = (path for path in out.rglob("*") if path.is_file() and HOME not in path.parts)
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def test_every_verb_is_here_that_writes_to_a_place_of_its_own():
    """`node` keeps a ledger (tests/node), `info` writes nothing."""
    assert {verb.split()[0] for verb in VERBS} == set(PROGRAM) - {"node", "info"}


@pytest.mark.parametrize(("verb", "name"), ALL, ids=[f"{verb}: {name}" for verb, name in ALL])
def test_what_is_somebody_elses_is_refused_before_the_work_and_stays(world, tmp_path, capsys, verb, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    for more in ([], ["--overwrite"]) if verb not in NAMED else ([],):
        assert run(verb, world, tmp_path, *more) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert ("exists already" if verb in NAMED else "is not as medk2n left it") in said
        assert name.split("/")[-1] in said or name.split("/")[0] in said
        assert seen(tmp_path) == {name: b"mine"}


@pytest.mark.parametrize("verb", VERBS)
def test_a_link_is_not_written_through(world, tmp_path, verb):
    victim, out = tmp_path / "victim", tmp_path / "out"
    victim.write_text("mine")
    (out / VERBS[verb].writes[0]).parent.mkdir(parents=True)
    (out / VERBS[verb].writes[0]).symlink_to(victim)
    assert run(verb, world, out, "--overwrite") == (0 if verb in NAMED else 2)
    assert victim.read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ELSEWHERE])
def test_into_a_folder_below_one_that_is_absent_and_once_more(world, tmp_path, verb, capsys):
    out = tmp_path / "A" / "B"
    assert run(verb, world, out) == 0, capsys.readouterr().err
    assert (out / VERBS[verb].last).is_file()
    (out / "notes").mkdir()  # an empty folder is nobody's
    first = set(seen(out))
    again = run(verb, world, out)
    assert again == (0 if verb in ("synth of many", "bids", "prepare") else 2)  # these go on where they were
    assert run(verb, world, out, "--overwrite") == 0, capsys.readouterr().err
    assert set(seen(out)) == first
    assert not [path for path in out.rglob("*") if path.name.startswith((".tmp-", "new-")) or path.name == "whole"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="a child is killed")
@pytest.mark.parametrize("verb", VERBS if ALL_KILLS else KILLED)
def test_killed_at_a_write_nothing_is_lost_or_half_there(world, tmp_path, monkeypatch, run_killed, verb):
    """In the middle and near the end; with MEDK2N_ALL_KILLS=1 at every write of every verb, which takes an hour.

    Over an earlier run's outputs, beside a file of somebody's: that stays, what is seen is one run's or the other's,
    and the next run makes all of it and leaves nothing of the dead one.
    """
    monkeypatch.setattr(os, "fsync", lambda handle: None)

    def work(out: Path) -> int:
        return run(verb, world, out, "--overwrite")

    def left(out: Path) -> list[str]:
        return [path.name for path in out.rglob("*") if path.name.startswith((".tmp-", "new-")) or path.name == "whole"]

    whole = tmp_path / "whole"
    writes = run_killed(lambda: work(whole), 0, whole)
    names, makes_several_sets = set(seen(whole)), verb in ("train", "prepare", "synth of many", "phantom")
    for at in range(1, writes + 1) if ALL_KILLS else (writes // 2, writes - 4):
        out = tmp_path / f"at-{at}"
        mine = set()
        if verb not in ("prepare", "phantom"):  # which want a folder of their own
            mine = {"deep/notes.txt"}
            (out / "deep").mkdir(parents=True)
            (out / "deep" / "notes.txt").write_text("mine")
        run_killed(lambda out=out: work(out), at, out)
        now = {name for name in seen(out) if not Path(name).name.startswith(".tmp-")}  # or of a dead run
        assert mine <= now
        assert makes_several_sets or now - mine in (set(), names), (at, writes)
        assert run_killed(lambda out=out: work(out), 0, out)
        assert set(seen(out)) == names | mine, (at, writes)
        assert not mine or (out / "deep" / "notes.txt").read_text() == "mine"
        assert not left(out), (at, writes)
