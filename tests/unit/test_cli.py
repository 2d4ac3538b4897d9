"""The command line's own parts: complaints, devices, the manifest, options that reach the library."""

import errno
import json
from pathlib import Path

import pytest
import typer

from medk2n.cli.cohort import Job
from medk2n.cli.common import modality_names, resolve_device, run_manifest, split_names
from medk2n.cli.complaints import explain, one_line
from medk2n.cli.main import VERBS, main
from medk2n.cli.synth import _with_rules, named_inputs
from medk2n.config.control import FusionRule, WeightRule
from medk2n.errors import InternalError, OutputExistsError, SystemLimitError, UnknownNameError, UsageError
from medk2n.report.places import StudyFolder


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (UsageError("give one"), "give one", 2),
        (SystemLimitError("disk full"), "disk full", 1),
        (InternalError("oops"), "oops", 1),
        (KeyboardInterrupt(), "interrupted", 130),
        (OSError(errno.ENOSPC, "no", "/x"), "no space left on the disk: /x", 1),
        (OSError(errno.EROFS, "no", "/x"), "permission denied: /x", 2),
        (PermissionError(errno.EACCES, "no", "/x"), "permission denied: /x", 2),
        (MemoryError(), "out of memory", 1),
        (OutOfMemoryError("CUDA"), "out of memory", 1),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory", 1),
        (RuntimeError("else"), "internal error (RuntimeError: else)", 1),
    ],
)
def test_explain(error, message, code):
    line, exit_code = explain(error)
    assert message in line
    assert exit_code == code


def test_notes_are_told_and_escapes_are_not_obeyed():
    error = UsageError("two\nlines \x1b[31m")
    error.add_note("while reading sub-01")
    assert explain(error)[0] == r"two lines \x1b[31m; while reading sub-01"
    assert one_line("é \u202e") == r"é \u202e"


def test_device_is_never_changed_in_silence(monkeypatch):
    import torch

    assert resolve_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("cuda:0") == "cuda:0"
    for absent in ("cuda:1", "tpu", "cuda:x", "auto:1", ""):
        with pytest.raises(UsageError, match="--device"):
            resolve_device(absent)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == "cuda"


def test_lists_and_modalities():
    assert split_names(["a, b", "c", ""]) == ["a", "b", "c"]
    assert modality_names(["T1w,flair"], "-t") == ["t1n", "t2f"]
    with pytest.raises(UsageError, match="-t names t1n twice"):
        modality_names(["t1n", "T1w"], "-t")
    with pytest.raises(UnknownNameError, match="-t t1x: unknown modality"):
        modality_names(["t1x"], "-t")


def test_named_inputs_keep_their_order_and_may_hold_equal_signs():
    files = named_inputs(["t2w=x/a=b.nii.gz", "./run=1/sub-01_T1w.nii.gz"])
    assert list(files.items()) == [("t2w", Path("x/a=b.nii.gz")), ("t1n", Path("run=1/sub-01_T1w.nii.gz"))]


def jobs(*given: tuple[str, ...]) -> list[Job]:
    place = StudyFolder(Path("out"), "study", Path("out"))
    return [Job(dict.fromkeys(names, Path("x.nii")), ["t2f"], place) for names in given]


def test_each_of_several_studies_gets_the_rules_that_concern_it():
    rule = FusionRule(leave_out=["t1c"], weights={"t2w": WeightRule(at_most=0.5)})
    first, second = _with_rules(jobs(("t1n", "t1c", "t2w"), ("t1n",)), {"t2f": rule})
    assert first.control == {"t2f": rule}
    assert second.control == {"t2f": FusionRule()}, "it lacks what the rule keeps out"
    (only,) = _with_rules(jobs(("t1n",)), {"t2f": rule})
    assert only.control == {"t2f": rule}, "of one study the rule is checked in full"


def test_rules_that_concern_no_study_or_one_patient_are_refused():
    with pytest.raises(UsageError, match=r"--set fusion.ct: no study wants ct; wanted are: t2f"):
        _with_rules(jobs(("t1n",)), {"ct": FusionRule(key="t1n")})
    masked = FusionRule(weights={"t2w": WeightRule(at_most=0.5, where=Path("lesion.nii"))})
    with pytest.raises(UsageError, match="a mask belongs to one patient"):
        _with_rules(jobs(("t1n", "t2w"), ("t1n", "t2w")), {"t2f": masked})


def test_manifest_tells_of_success_and_failure(tmp_path):
    path = tmp_path / "deep" / "run.json"
    (tmp_path / "in.txt").write_text("a")
    with run_manifest(path, "synth", {"out": tmp_path, "n": [1]}) as run:
        run.inputs.append(tmp_path / "in.txt")
        run.facts["model"] = {"folder": Path("m")}
    told = json.loads(path.read_text())
    assert (told["command"], told["exit_code"], told["options"]["n"], told["model"]) == (
        "synth",
        0,
        [1],
        {"folder": "m"},
    )
    assert told["inputs"][0]["sha256"].startswith("ca978112")
    assert told["versions"]["torch"]
    with pytest.raises(OutputExistsError, match="exists already"), run_manifest(path, "synth", {}):
        pass
    with pytest.raises(UsageError, match="bad"), run_manifest(path, "synth", {}, overwrite=True):
        raise UsageError("bad")
    assert {key: json.loads(path.read_text())[key] for key in ("exit_code", "error")} == {
        "exit_code": 2,
        "error": "bad",
    }
    with pytest.raises(typer.Exit), run_manifest(path, "synth", {}, overwrite=True):
        raise typer.Exit(3)
    assert json.loads(path.read_text())["exit_code"] == 3


@pytest.mark.parametrize("mine", ['{"Name": "x", "BIDSVersion": "1.11.0"}', "[]", "mine"])
def test_a_manifest_replaces_manifests_alone(tmp_path, mine):
    path = tmp_path / "dataset_description.json"
    path.write_text(mine)
    refused = pytest.raises(OutputExistsError, match="is no manifest of a run and would be lost")
    with refused, run_manifest(path, "synth", {}, overwrite=True):
        pass
    assert path.read_text() == mine


def test_help_names_every_verb_and_the_exit_codes(capsys):
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(verb in told for verb in VERBS)
    assert "130 interrupted" in " ".join(told.split())
    assert main([]) == 0
    assert main(["--version"]) == 0
    assert "medk2n 0." in capsys.readouterr().out


def test_info(capsys):
    assert main(["info", "--json", "--paths"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in facts["modalities"]} >= {"t1n", "t1c", "t2w", "t2f", "ct"}
    assert all(model["limits"]["inputs"][1] == len(model["modalities"]) for model in facts["models"])
    assert facts["paths"]["package"].endswith("medk2n")
    assert main(["info"]) == 0
    assert "ce-gadolinium_T1w" in capsys.readouterr().out


def test_train_hands_its_options_on(tmp_path, monkeypatch, capsys):
    seen = {}

    def learn(draft, out, *, device, overwrite, report, show):
        report("training", 0.5, {"loss": 1.0})
        seen.update(draft=draft, out=out, device=device, overwrite=overwrite)
        return out

    monkeypatch.setattr("medk2n.training.run.train", learn)
    code = main(
        ["train", "--data", "a:0.5", "--data", "b", "--val", "v", "--exclude", "x,y", "--minutes", "2", "--seed", "5",
         "--model", "mm-synthesis", "--model", "unet",
         "--set", "batch.size=3", "--device", "cpu", "--out", str(tmp_path / "m"),
         "--manifest", str(tmp_path / "r.json")]
    )  # fmt: skip
    assert code == 0
    config = seen["draft"].config
    assert (config.data, config.validation, config.exclude) == (["a:0.5", "b"], "v", ["x", "y"])
    assert (config.budget.minutes, config.seed, config.batch.size) == (2.0, 5, 3)
    assert [choice.name for choice in config.models] == ["mm_synthesis", "unet"]
    assert config.models[1].params["widths"], "what the preset lists keeps its sizes"
    assert json.loads((tmp_path / "r.json").read_text())["config"]["seed"] == 5
    assert main(["train", "--out", str(tmp_path / "m"), "--set", "batch.sise=3"]) == 2
    assert "did you mean 'size'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["snyth"], ["info", "--model", "nowhere"], ["train"], ["synth", "-o"]])
def test_usage_errors_are_one_line(arguments, capsys):
    assert main(arguments) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("medk2n: error: ")
    assert complaint.count("\n") == 1
