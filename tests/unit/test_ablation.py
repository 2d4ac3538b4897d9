"""`medk2n ablate`: which parts, what the table says of them, and the command from end to end."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medk2n.cli.main import main
from medk2n.evaluation.ablation import FULL, Worth, compared, worth, write_ablation
from medk2n.evaluation.damage import WHOLE, DamageRecord
from medk2n.evaluation.neutralise import PARTS
from medk2n.inference.predictor import load_predictor

NAMES = ("t1n", "t2f", "t2w")


def record(subject: str, method: str, psnr_db: float, kind: str) -> DamageRecord:
    severity = float(kind != WHOLE)
    return DamageRecord(subject, "t1n+t2w", "t2w", "t2f", kind, severity, method, psnr_db, 20.0, 23.0, None, None)


def records() -> list[DamageRecord]:
    """The full model loses 1 dB to damage, without doubt 2, and 0.1 clean; of the last subject one image is exact."""
    found = []
    for k in range(4):
        clean = 25.0 + k if k < 3 else np.inf
        for method, less in ((FULL, 0.0), ("doubt", 0.1)):
            found.append(record(f"s{k}", method, clean - less, WHOLE))
            for kind, harm in (("noise", 0.5), ("blank", 1.5)):
                found.append(record(f"s{k}", method, clean - harm - 10 * less, kind))
    return found


def test_a_part_is_worth_what_the_full_model_has_more(tmp_path: Path) -> None:
    full, doubt = worth(records(), seed=0)
    assert (full.part, full.subjects, full.clean_db, full.damaged_db) == (FULL, 3, 26.0, 25.0)
    assert np.isnan([full.clean_change, full.damaged_low]).all()
    assert (doubt.part, doubt.says) == ("doubt", PARTS["doubt"].says)
    np.testing.assert_allclose([doubt.clean_change, doubt.clean_low, doubt.clean_high], -0.1, atol=1e-9)
    np.testing.assert_allclose([doubt.damaged_change, doubt.damaged_low, doubt.damaged_high], -1.0, atol=1e-9)
    text = write_ablation(tmp_path, records(), seed=0)
    assert "one of them damaged (noise, blank)" in text
    assert f"| {FULL} |  | 26.00 |  | 25.00 |  |" in text
    assert "| 25.90 | -0.10 [-0.10, -0.10] | 24.00 | -1.00 [-1.00, -1.00] |" in text
    with (tmp_path / "ablation.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == list(Worth.__dataclass_fields__)
    assert [line["part"] for line in lines] == [FULL, "doubt"]


@pytest.fixture
def model(tmp_path: Path, save_model: Callable[..., Path]) -> Path:
    return save_model(tmp_path / "model", "medk2n", NAMES)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for k in range(2):
        rng = np.random.default_rng(k)
        images = {m: np.pad(rng.integers(20, 250, (4, 16, 20), np.uint8), ((0, 0), (4, 4), (4, 4))) for m in NAMES}
        np.savez(folder / f"s{k}.npz", **images)
    return folder


def run(model: Path, data: Path, out: Path, *more: str) -> int:
    return main(["ablate", "--model", str(model), "--data", str(data), "-o", str(out), "--device", "cpu", *more])


def test_command_writes_a_line_a_part(model: Path, data: Path, tmp_path: Path, capsys) -> None:
    options = ["--parts", "gates,sharp_head", "--damage", "noise,another", "--every", "4"]
    assert run(model, data, tmp_path / "out", *options) == 0
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir() if p.is_file()} == {
        "ablation.csv",
        "ablation.md",
        "records.csv",
        "facts.json",
    }
    assert (out / "ablation.md").read_text() in capsys.readouterr().out
    with (out / "ablation.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["part"] for line in lines] == [FULL, "gates", "sharp_head"]
    assert float(lines[2]["clean_change"]) != 0
    with (out / "records.csv").open() as file:
        cases = list(csv.DictReader(file))
    assert len(cases) == 2 * 3 * 3 * (1 + 2), "subjects, targets, methods, whole and two kinds"
    facts = json.loads((out / "facts.json").read_text())
    assert (facts["kinds"], facts["severities"], facts["parts"]) == (
        ["noise", "another"], [1.0], ["gates", "sharp_head"],
    )  # fmt: skip


def test_scenes_are_shared_and_change_nothing(model: Path) -> None:
    """What each part answers beside the others is what it answers alone; only few passes are made for it."""
    passes = []
    predictor = load_predictor(model)
    predictor.module.fusion.effi_weight.threshold.softness.data.fill_(-9.0)  # a frame in doubt has a pass more
    rng = np.random.default_rng(0)
    images = {m: rng.uniform(0.1, 1, (4, 32, 32)).astype(np.float32) for m in NAMES[:2]}
    trunk = predictor.module.trunk.register_forward_hook(lambda _, given, out: passes.append(len(out)))
    counts, answers = {}, {}
    for p in compared(predictor, list(PARTS)):
        passes.clear()
        answers[p.name] = p.predict(images, NAMES[2:])[NAMES[2]].image
        counts[p.name] = sum(passes)
    trunk.remove()
    assert counts["agreement"] < counts[FULL] / 2
    assert counts["smooth_head"] == counts[FULL], "another image: nothing to share"
    for name, part in PARTS.items():
        with part.taken_from(predictor.module):
            alone = predictor.predict(images, NAMES[2:])[NAMES[2]].image
        np.testing.assert_array_equal(answers[name], alone, err_msg=name)
    np.testing.assert_array_equal(answers[FULL], predictor.predict(images, NAMES[2:])[NAMES[2]].image)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--parts", "doubt,heart"], "--parts heart: expected some of weights, gates"),
        (["--modalities", "t1n,t2w"], "no subject has 3 of t1n, t2w"),
        (["--damage", "rust"], "--damage rust: expected all or some of noise"),
    ],
)
def test_command_refuses_what_cannot_be_done(model, data, tmp_path, capsys, options, message) -> None:
    assert run(model, data, tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_without_such_parts_is_refused(data: Path, tmp_path: Path, save_model, capsys) -> None:
    unet = save_model(tmp_path / "unet", "unet", NAMES)
    assert run(unet, data, tmp_path / "out") == 2
    assert "the model is a unet; its parts are not known: expected a medk2n" in capsys.readouterr().err
