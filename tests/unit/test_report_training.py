"""The page about a run: from what is in its folder alone, whole or cut off, and nothing from elsewhere."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from medk2n.cli.main import main
from medk2n.errors import CheckpointError
from medk2n.report.training import render_training
from medk2n.training.log import COLUMNS, METRICS, read_log

SCORES = {"medk2n": (18.25, 21.5), "unet": (19.75, 21.25)}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two models, half done: two validations, losses, two sheets, no model saved yet."""
    rows = [",".join(COLUMNS)]
    for model, scores in SCORES.items():
        for k, score in enumerate(scores, 1):
            rows.append(f"{model},{20 * k},{60.0 * k},{0.25 * k},log_mse,{-k / 2}")
            rows.append(f"{model},{20 * k},{60.0 * k},{0.25 * k},validation_psnr_db,{score}")
    folder = tmp_path / "<my> run"
    (folder / "samples").mkdir(parents=True)
    (folder / METRICS).write_text("\n".join(rows) + "\n")
    settings = {"models": [{"name": "medk2n"}, {"name": "unet"}], "budget": {"minutes": 4.0}}
    (folder / "train.json").write_text(json.dumps(settings))
    for name, grey in (("2-of-8", 40), ("10-of-16", 200)):
        Image.new("L", (8, 8), grey).save(folder / "samples" / f"{name}.png")
    return folder


def test_the_page_tells_every_validation_and_stands_alone(run: Path) -> None:
    page = render_training(run)
    assert all(f"{score:.2f} dB" in page for scores in SCORES.values() for score in scores)
    assert re.findall(r"<b>([\d.]+) dB</b>", page) == ["19.75", "21.50"]  # the best of each row
    assert "medk2n, unet, side by side; 50 %" in page
    assert "budget minutes" in page
    assert "&lt;my&gt; run" in page
    assert "<my>" not in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert "<script" not in page
    shown = re.findall(r"<summary>(.*?) of the budget", page)
    assert shown == ["10 of 16", "2 of 8"], "the newest first, by number and not by spelling"


def test_a_row_that_was_cut_off_is_left_out(run: Path) -> None:
    whole = read_log(run / METRICS)
    with (run / METRICS).open("a") as file:
        file.write("medk2n,60,18")
    assert read_log(run / METRICS) == whole
    render_training(run)


def test_a_run_without_validation_says_so(run: Path) -> None:
    lines = (run / METRICS).read_text().splitlines()
    (run / METRICS).write_text("\n".join(line for line in lines if "validation" not in line) + "\n")
    page = render_training(run)
    assert "Nothing yet" in page
    assert "log mse" in page


def test_a_validation_that_was_logged_again_counts_once(run: Path) -> None:
    with (run / METRICS).open("a") as file:
        file.write("medk2n,40,120.0,0.5,validation_psnr_db,21.5\nunet,40,120.0,0.5,validation_psnr_db,21.25\n")
    assert len(re.findall(r"<b>[\d.]+ dB</b>", render_training(run))) == 2


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (METRICS, None, r"metrics\.csv: no metrics of a run"),
        (METRICS, "", r"metrics\.csv: no metrics of a run"),
        (METRICS, "a,b\n1,2\n", r"columns a, b"),
        (METRICS, ",".join(COLUMNS) + "\nm,x,1,1,loss,1\n", r"metrics\.csv: no metrics"),
        ("train.json", None, r"train\.json: no settings of a run"),
        ("train.json", "{", r"train\.json: no settings of a run"),
    ],
)
def test_what_is_no_run_is_refused(run: Path, file: str, content: str | None, message: str) -> None:
    (run / file).unlink()
    if content is not None:
        (run / file).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        render_training(run)


def test_the_command_writes_beside_the_run_and_does_not_replace_unasked(run: Path, capsys) -> None:
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert main(["report", str(run)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["report", str(run), "--out", str(run / "page.txt")]) == 2
    assert ".html" in capsys.readouterr().err
    assert main(["report", str(run / "nowhere"), "--out", str(run / "other.html")]) == 2
    assert not (run / "other.html").exists()
    assert not (run / "nowhere").exists()
    assert main(["report", str(run), "--overwrite"]) == 0
    assert (run / "report.html").read_text() == page
