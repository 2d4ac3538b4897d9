"""A run is the same however it is computed: by one process or two, at once or in parts, in 32 bits or nearly in 16."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medk2n.config.schema import TrainConfig, load_config
from medk2n.errors import ConfigError, UsageError
from medk2n.training import board as board_module
from medk2n.training import run
from medk2n.training.contender import Contender
from medk2n.training.feed import Feed
from medk2n.training.reading import read_data
from medk2n.training.world import World

SMALL = [
    "modalities=[t1n, t1c, t2w]",
    "spacing_mm=1.5",
    "models=[{name: medk2n, params: {widths: [8, 8, 8, 8, 8], embedding: 8}},"
    " {name: unet, params: {widths: [8, 8, 8, 8, 8]}}]",
    "budget={steps: 20}",
    "batch={size: 2, crop: 32, draws: 1, targets: 2, most_sources: 2, accumulate: 2}",
    "threads=1",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subjects, three contrasts."""
    root, rng = tmp_path_factory.mktemp("arrays"), np.random.default_rng(0)
    for name in ("p0", "p1"):
        head = np.zeros((5, 40, 36))
        head[:, 4:-4, 4:-4] = rng.uniform(60, 120, (5, 32, 28))
        arrays = {"t1n": head, "t1c": 0.7 * head, "t2w": np.where(head > 0, 250 - head, 0)}
        np.savez_compressed(root / name, **{modality: a.astype(np.uint8) for modality, a in arrays.items()})
    return root


def config(data: Path, *overrides: str) -> TrainConfig:
    return load_config("tiny", [f"data=['{data}']", *SMALL, *overrides])


def logged(folder: Path) -> dict[tuple[str, str, str], float]:
    """(model, step, name) -> value."""
    rows = csv.DictReader((folder / "metrics.csv").read_text(encoding="utf-8").splitlines())
    return {(row["model"], row["step"], row["name"]): float(row["value"]) for row in rows}


def learned(settings: TrainConfig, steps: int) -> tuple[Contender, list[dict[str, float]]]:
    """A model after some steps, and what each step told."""
    prepared, world = read_data(settings, lambda *_: None), World("cpu", settings.precision)
    torch.manual_seed(0)
    contender = Contender.of(settings.models[0], settings, prepared.statistics, "cpu")
    feed = Feed(prepared, settings, 3, world.share(settings.batch.accumulate), 0)
    return contender, [contender.step(next(feed), world) for _ in range(steps)]


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(data: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(config(data).model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "medk2n"]
    options = ["train", "--device", "cpu", "--config", str(tmp_path / "run.yaml"), "--out"]
    done = subprocess.run([*command, *options, str(tmp_path / "two")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Model:") == 1, "one of the processes speaks"
    one, two = logged(run.train(config(data), tmp_path / "one")), logged(tmp_path / "two")
    assert one.keys() == two.keys()
    assert any(name == "loss" for _, _, name in one)
    assert max(abs(one[key] - two[key]) for key in one) <= 1e-5


def test_a_step_is_the_mean_of_its_parts(data: Path) -> None:
    """Two parts of two crops: each counts for half, whichever comes first."""
    settings = config(data, "models=[{name: unet, params: {widths: [8, 8, 8, 8, 8]}}]")
    prepared, world = read_data(settings, lambda *_: None), World()
    parts = next(Feed(prepared, settings, 3, range(2), 0))
    torch.manual_seed(0)
    contender = Contender.of(settings.models[0], settings, prepared.statistics, "cpu")
    alone = [contender.lesson.loss(part.batch, part.seed, 0.0, world)[1]["loss"] for part in parts]
    assert alone[0] != alone[1]
    assert contender.step(parts, world)["loss"] == pytest.approx(np.mean(alone), rel=1e-5)
    assert contender.samples == 4


def test_workers_draw_what_the_run_itself_would(data: Path) -> None:
    drawn = []
    for workers in (0, 2):
        settings = config(data, f"workers={workers}")
        feed = Feed(read_data(settings, lambda *_: None), settings, 3, range(2), first=3)
        drawn.append([part for _ in range(4) for part in next(feed)])
        feed.close()
    for mine, theirs in zip(*drawn, strict=True):
        assert mine.seed == theirs.seed
        torch.testing.assert_close(mine.batch.images, theirs.batch.images, rtol=0, atol=0, equal_nan=True)
    assert len({part.seed for part in drawn[0]}) == 8


def test_sixteen_bits_learn_nearly_the_same(data: Path) -> None:
    full, half = (learned(config(data, f"precision={name}"), 3) for name in ("fp32", "bf16"))
    assert full[1] != half[1]
    for a, b in zip(full[1], half[1], strict=True):
        assert a.keys() == b.keys()
        assert b["loss"] == pytest.approx(a["loss"], abs=0.05)
    assert {p.dtype for p in half[0].module.parameters()} == {torch.float32}


def test_parts_that_cannot_be_shared_are_refused() -> None:
    world = World()
    world.size = 2
    assert list(world.share(4)) == [0, 2]
    with pytest.raises(ConfigError, match=r"cannot be shared by 2 processes.*--set batch\.accumulate=4"):
        world.share(3)


def test_one_numbered_device_is_not_for_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"--device cuda:1 with 2 processes; give --device cuda"):
        World("cuda:1")


def test_tensorboard_holds_numbers_and_pictures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = board_module.Board(tmp_path, {"medk2n": 0})
    Image.new("L", (8, 4)).save(tmp_path / "sheet.png")
    board.numbers("medk2n", 20, {"loss": 1.5})
    board.picture("medk2n", 20, tmp_path / "sheet.png")
    board.close()
    seen = EventAccumulator(str(tmp_path / "tensorboard" / "medk2n")).Reload()
    assert [(e.step, e.value) for e in seen.Scalars("loss")] == [(20, 1.5)]
    assert [(e.width, e.height) for e in seen.Images("samples")] == [(8, 4)]


def test_a_run_tells_tensorboard_what_it_logs(data: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = run.train(config(data, "tensorboard=true"), tmp_path / "run")
    for model in ("medk2n", "unet"):
        seen = EventAccumulator(str(out / "tensorboard" / model)).Reload()
        told = {(model, str(e.step), name) for name in seen.Tags()["scalars"] for e in seen.Scalars(name)}
        assert told == {key for key in logged(out) if key[0] == model}


def test_tensorboard_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"not installed.*pip install 'medk2n\[tensorboard\]'"):
        board_module.Board(tmp_path, {})
