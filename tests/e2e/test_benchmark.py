"""`medk2n phantom` and then `medk2n benchmark phantom`; the numbers against those made by other means."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from medk2n import checkpoint
from medk2n.cli.main import main
from medk2n.data.discover import discover
from medk2n.data.working import every_nth, load_working
from medk2n.evaluation.background import inside_inputs
from medk2n.evaluation.noise_ceiling import CEILING
from medk2n.inference.predictor import load_predictor
from medk2n.metrics.psnr import psnr

EVERY = 4
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A digital subject with two T1w, no T1c, and a file that no name explains."""
    out = tmp_path_factory.mktemp("phantom") / "cohort"
    manifest = out.with_name("run.json")
    options = ["--subjects", "1", "--spacing", "8", "--seed", "3", "--workers", "1", "--manifest", str(manifest)]
    assert main(["phantom", str(out), *options]) == 0
    told = json.loads(manifest.read_text())
    assert [Path(output["path"]).name for output in told["outputs"]] == ["dataset_description.json", "participants.tsv"]
    assert {subject.id for subject in discover(out)} == {"sub-001"}
    first = out / "sub-001" / "anat"
    (first / "sub-001_T1w.nii.gz").rename(first / "sub-001_run-1_T1w.nii.gz")
    shutil.copy(first / "sub-001_T2w.nii.gz", first / "sub-001_run-2_T1w.nii.gz")
    (first / "sub-001_ce-gadolinium_T1w.nii.gz").rename(first / "sub-001_CT1.nii.gz")
    return out


def test_the_tables_of_a_digital_cohort(cohort: Path, model: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    run = ["benchmark", "phantom", "--model", str(model), "--data", str(cohort), "--every", str(EVERY), "-o", str(out)]
    assert main([*run, "--device", "cpu", "--prefer", "run-1"]) == 0
    said = capsys.readouterr().err
    assert "left out: sub-001: sub-001_run-2_T1w.nii.gz (sub-001_run-1_T1w.nii.gz is preferred)" in said
    assert "left out: sub-001: sub-001_CT1.nii.gz (its name tells no modality)" in said

    with (out / "values.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["region"] == "foreground"]
    found = {
        (row["method"], row["sources"], row["target"], row["affine_matched"] == "True"): float(row["psnr"])
        for row in rows
    }
    predictor, spacing = load_predictor(model), checkpoint.read_config(model).spacing_mm
    (subject,) = discover(cohort, prefer=["run-1"])
    study = load_working(subject, spacing)
    at = every_nth(len(study.foreground), EVERY)
    given = {name: study.images[name] for name in ("t1n", "t2w")}
    shown = inside_inputs(given)
    made = np.where(shown, predictor.infer(given, ["t2f"]).means["t2f"], 0)
    value = psnr(made[at], study.images["t2f"][at], study.foreground[at], data_range=1.0)
    assert found["medk2n", "t1n+t2w", "t2f", False] == pytest.approx(value, rel=1e-5)
    for (method, sources, target, matched), value in found.items():
        assert matched or found[method, sources, target, True] >= value - 1e-4
    of_flair = {m: {v for (method, _, target, raw), v in found.items() if (method, target, raw) == (m, "t2f", False)}
                for m in ("copy", CEILING)}  # fmt: skip
    assert len(of_flair[CEILING]) == 1, "noise does not depend on what is given"
    assert min(of_flair[CEILING]) > max(of_flair["copy"])
    lines = list(csv.DictReader((out / "table1.csv").read_text().splitlines()))
    row = next(
        line
        for line in lines
        if (line["row"], line["method"], line["region"], line["metric"], line["affine_matched"])
        == ("t1n+t2w", "medk2n", "foreground", "psnr", "False")
    )
    assert float(row["mean"]) == pytest.approx(found["medk2n", "t1n+t2w", "t2f", False], rel=1e-5)
    printed = f"{float(row['mean']):.2f}"
    assert printed in re.findall(r"\d+\.\d+", (out / "table1.md").read_text())
    assert printed in re.findall(r"\d+\.\d+", (out / "table1.tex").read_text())


def test_who_was_learned_from_is_refused(cohort: Path, model: Path, tmp_path: Path, capsys) -> None:
    learned = tmp_path / "model"
    shutil.copytree(model, learned)
    config = checkpoint.read_config(learned)
    config.training["subject_ids"] = {"cohort": ["sub-001"]}
    checkpoint.write_config(learned, config)
    run = ["benchmark", "phantom", "--model", str(learned), "--data", str(cohort), "-o", str(tmp_path / "out")]
    assert main([*run, "--device", "cpu", "--prefer", "run-1"]) == 2
    assert "medk2n learned from sub-001; expected subjects it has not seen" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
