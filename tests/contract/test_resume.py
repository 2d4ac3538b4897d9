"""No run is ever lost: stopped, killed, or saved on a bad disk, it goes on as if nothing had happened."""

import csv
import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from medk2n import checkpoint
from medk2n.cli.main import build_app
from medk2n.config.schema import TrainConfig, load_config
from medk2n.errors import ConfigError, DatasetError, StoppedError, SystemLimitError
from medk2n.training import run, state

STEPS = 12
KILLS = int(os.environ.get("MEDK2N_KILLS", "4"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subjects to learn from and one to watch, three contrasts."""
    root, rng = tmp_path_factory.mktemp("arrays"), np.random.default_rng(0)
    (root / "train").mkdir()
    (root / "val").mkdir()
    for name in ("train/p0", "train/p1", "val/p2"):
        head = np.zeros((5, 40, 36))
        head[:, 4:-4, 4:-4] = rng.uniform(60, 120, (5, 32, 28))
        arrays = {"t1n": head, "t1c": 0.7 * head, "t2w": np.where(head > 0, 250 - head, 0)}
        np.savez_compressed(root / name, **{modality: a.astype(np.uint8) for modality, a in arrays.items()})
    return root


def config(data: Path, steps: int = STEPS, *overrides: str) -> TrainConfig:
    small = [
        "modalities=[t1n, t1c, t2w]",
        "spacing_mm=1.5",
        "models=[{name: medk2n, params: {widths: [8, 8, 8, 8, 8], embedding: 8}},"
        " {name: unet, params: {widths: [8, 8, 8, 8, 8]}}]",
        f"budget={{steps: {steps}}}",
        "batch={size: 2, crop: 32, draws: 1, targets: 2, most_sources: 2}",
        "threads=1",
    ]
    return load_config("tiny", [f"data=['{data}/train']", f"validation={data}/val", *small, *overrides])


def outcome(folder: Path) -> tuple[list[str], list[list[str]]]:
    """What has to be equal: both models' weights, and every row of the log but for its wall time."""
    weights = [checkpoint.read_config(folder / part).sha256 for part in (".", checkpoint.REFERENCE_UNET)]
    rows = list(csv.reader((folder / "metrics.csv").read_text(encoding="utf-8").splitlines()))
    return weights, [row[:2] + row[3:] for row in rows]


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM comes in the middle of the given step from now."""
    left, step = [steps], run._counted

    def counted(*given):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*given)

    monkeypatch.setattr(run, "_counted", counted)


ADVERSARIAL = (
    "models=[{name: pgan, params: {width: 8, blocks: 1, critic: 8}}, {name: unet, params: {widths: [8, 8, 8, 8, 8]}}]"
)


@pytest.mark.parametrize(
    ("overrides", "count"),
    [([], 20), (["batch.accumulate=2", "workers=1"], 5), ([ADVERSARIAL], 5)],
    ids=["plain", "parts and workers", "an adversary"],
)
def test_a_run_stopped_at_random_steps_ends_in_the_same_bits(
    overrides: list[str], count: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(data, STEPS, *overrides)
    straight = run.train(settings, tmp_path / "straight")
    out, rng = tmp_path / "run", random.Random(0)
    before = signal.getsignal(signal.SIGTERM)
    stops = sorted(rng.sample(range(1, 2 * STEPS), count))
    for k, (last, at) in enumerate(zip([0, *stops], stops, strict=False)):
        with monkeypatch.context() as patched:
            stop_after(at - last, patched)
            with pytest.raises(StoppedError, match=r"go on with: .* --resume"):
                run.train(settings, out) if k == 0 else run.resume(out)
        assert checkpoint.read_config(out).training["finished"] is False
    assert len(list((out / "state").iterdir())) == state.KEPT
    run.resume(out)
    assert outcome(out) == outcome(straight)
    assert not (out / "state").exists(), "a run that has ended needs no state"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_killed_at_random_instants_ends_in_the_same_bits(data: Path, tmp_path: Path) -> None:
    """It saves at every step; every other kill waits for a save to begin. MEDK2N_KILLS=100 for the long version."""
    out, rng, steps = tmp_path / "run", random.Random(1), 4 * KILLS
    (tmp_path / "config.json").write_text(config(data, steps).model_dump_json(), encoding="utf-8")
    script = (
        "import sys; from pathlib import Path\n"
        "from medk2n.config.schema import load_config; from medk2n.training import run, state\n"
        "run._SAVE_EVERY_S = 0.0; config, out = map(Path, sys.argv[1:])\n"
        "tell = lambda stage, *rest: print(stage, flush=True)\n"
        "if state.newest(out / 'state'): run.resume(out, report=tell)\n"
        "else: run.train(load_config(config), out, overwrite=True, report=tell)"
    )

    def unfinished() -> set[Path]:
        return set((out / "state").glob(".tmp-*"))

    inside_a_save = 0
    for kill in range(KILLS):
        left = unfinished()
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "config.json"), str(out)], stdout=subprocess.PIPE, text=True
        )
        assert any(line.startswith("training") for line in child.stdout), "it never came to a step"
        until = time.monotonic() + rng.uniform(0, 0.3)
        while time.monotonic() < until if kill % 2 else not unfinished() - left:
            assert child.poll() is None, "it had ended"
        child.kill()
        child.communicate()
        inside_a_save += bool(unfinished() - left)
    assert inside_a_save >= 0.3 * KILLS
    run.resume(out)
    assert outcome(out) == outcome(run.train(config(data, steps), tmp_path / "straight"))


def tensors(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"medk2n": {"module.a": torch.full((3,), value), "optimiser0.0.step": torch.tensor(4.0)}}


@pytest.mark.parametrize("file", ["medk2n.safetensors", "counters.json", "MANIFEST.json"])
def test_one_flipped_byte_is_noticed_and_the_state_before_it_used(file: str, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        state.write(tmp_path, step, tensors(step), {"validated": step})
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-2", "step-3"]
    size, seen = (tmp_path / "step-3" / file).stat().st_size, set()
    for at in random.Random(0).sample(range(size), min(20, size)):
        path = tmp_path / "step-3" / file
        whole = path.read_bytes()
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        kept = state.newest(tmp_path)
        seen.add((kept.counters["validated"], kept.damaged))
        path.write_bytes(whole)
    assert seen == {(2, (tmp_path / "step-3",))}
    assert torch.equal(state.newest(tmp_path).tensors["medk2n"]["module.a"], torch.full((3,), 3.0))


def test_a_damaged_state_is_told_of(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr(run, "_SAVE_EVERY_S", 0.0)
    stop_after(3, monkeypatch)
    with pytest.raises(StoppedError):
        run.train(config(data), out)
    (out / "state" / "step-3" / "unet.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"step-3 is damaged"):
        run.resume(out)


def test_a_full_disk_leaves_the_state_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state.write(tmp_path, 1, tensors(1), {"validated": 1})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(state, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        state.write(tmp_path, 2, tensors(2), {"validated": 2})
    monkeypatch.undo()
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(SystemLimitError, match="disk full while writing"):
        state.write(tmp_path, 2, tensors(2), {"validated": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]
    assert state.newest(tmp_path).counters == {"validated": 1}


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError(), RuntimeError("can't allocate memory: 9 GB")]
)
def test_too_little_memory_names_the_settings_to_change(
    error: Exception, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: object) -> None:
        raise error

    monkeypatch.setattr(run, "_counted", step)
    with pytest.raises(SystemLimitError, match=r"medk2n with 2 crops of 32 pixels; lower batch\.size or batch\.crop"):
        run.train(config(data), tmp_path / "run")


def test_what_cannot_go_on_says_why(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="nothing to resume"):
        run.resume(tmp_path)
    stop_after(1, monkeypatch)
    with pytest.raises(StoppedError):
        run.train(config(data), tmp_path / "run")
    new = data / "train" / "p3.npz"
    new.write_bytes((data / "train" / "p1.npz").read_bytes())
    try:
        with pytest.raises(DatasetError, match="no longer those that the run began with"):
            run.resume(tmp_path / "run")
    finally:
        new.unlink()
    said = CliRunner().invoke(build_app(), ["train", "--resume", "--out", str(tmp_path / "run"), "--seed", "1"])
    assert "--resume goes on with the run's own settings" in str(said.exception)


def test_what_lies_beside_a_state_and_is_none_stays(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        state.write(tmp_path, step, {"m": {"w": torch.ones(2)}}, {"step": step})
    (tmp_path / "step-mine").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    assert state.newest(tmp_path).counters == {"step": 3}
    state.remove(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "step-mine"]
    for step in (1, 2):
        state.write(tmp_path / "new", step, {"m": {"w": torch.ones(2)}}, {})
    state.remove(tmp_path / "new")
    assert not (tmp_path / "new").exists()
