"""The recipe of trained ablations: which switches, a row a run whatever stops it, and what the page says."""

import csv
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from medk2n.errors import ConfigError, StoppedError
from medk2n.evaluation.ablation import FULL
from medk2n.evaluation.damage import WHOLE, DamageRecord
from medk2n.evaluation.table import write_csv

RECIPE = Path(__file__).parents[2] / "recipes" / "ablate.py"
SMALL = """
full:
  - modalities=[t1n, t2f, t2w]
  - spacing_mm=1
  - "batch={size: 2, crop: 32, draws: 1, targets: 2, most_sources: 2}"
  - "models.medk2n.params={widths: [8, 8, 8, 8, 8], embedding: 8}"
switches:
  - {name: no-weighing, says: "all open", set: [teaching.weighing=0]}
  - {name: 2d, says: "one slice", set: [models.medk2n.params.slices=1]}
  - {name: given, says: "weights", set: ["models.medk2n.params.encoder={name: hiera, weights: '{encoder}'}"]}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = spec_from_file_location("ablate", RECIPE)
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "ablate", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    (tmp_path / "small.yaml").write_text(SMALL, encoding="utf-8")
    monkeypatch.setattr(module, "SWITCHES", tmp_path / "small.yaml")
    return module


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """Heads in three contrasts."""
    z, y, x = np.mgrid[-1:1:5j, -1:1:40j, -1:1:36j]
    for k, name in enumerate(("data", "data", "data", "val", "val")):
        (tmp_path / name).mkdir(exist_ok=True)
        inside = x**2 + y**2 + 0.3 * z**2 < 0.7
        t1n = inside * (130 + 60 * np.sin(4 * x + k) * np.cos(3 * y))
        t2w, t2f = inside * (250 - t1n), inside * (60 + t1n / 2 + 30 * y)
        images = {"t1n": t1n, "t2w": t2w, "t2f": t2f}
        np.savez(tmp_path / name / f"p{k}.npz", **{m: image.astype(np.uint8) for m, image in images.items()})
    return [str(tmp_path / name) for name in ("data", "val", "work")]


@pytest.fixture
def run(recipe: ModuleType, folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run the recipe; returns what is in its table."""

    def main(*words: str) -> str:
        out = tmp_path / "table" / "ablation.csv"
        monkeypatch.setattr(sys, "argv", ["ablate.py", *folders, "--every", "3", "--out", str(out), *words])
        recipe.main()
        return out.read_text(encoding="utf-8")

    return main


@pytest.fixture
def learned(recipe: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs that were trained, by a trainer that is none, and scored without being asked."""
    done: list[str] = []

    def learn(config: object, run: Path, device: str, report: object) -> None:
        run.mkdir(parents=True, exist_ok=True)
        done.append(run.name)

    def score(work: object, switch: str, seed: int, device: str) -> None:
        harm = {FULL: 0.0, "no-weighing": 2.0, "2d": 0.0}[switch]
        write_csv(work.answers(switch, seed), DamageRecord, [
            DamageRecord(f"s{k}", "t1n+t2w", "t2w", "t2f", kind, 1.0, "m", 20 + k + seed - less, 19.0, 20.0, None, 1.0)
            for k in range(8) for kind, less in ((WHOLE, 0.0), ("noise", 1 + harm))
        ])  # fmt: skip

    cost = {"steps": 2, "wall_minutes": 0.1, "parameters": 9, "hardware": "a machine", "finished": True}
    monkeypatch.setattr(recipe, "learn", learn)
    monkeypatch.setattr(recipe.Work, "score", score)
    monkeypatch.setattr(recipe, "read_config", lambda folder: SimpleNamespace(training=cost))
    return done


def test_what_was_stopped_between_runs_ends_in_the_same_table(
    run: Callable[..., str], learned: list[str], recipe: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = recipe.learn

    def stopped(config: object, folder: Path, *rest: object) -> None:
        if folder.name == "no-weighing-0":
            raise StoppedError("stopped at 50%")
        real(config, folder, *rest)

    monkeypatch.setattr(recipe, "learn", stopped)
    with pytest.raises(StoppedError, match="stopped at 50%"):
        run("--steps", "2")
    partial = csv.DictReader((tmp_path / "table" / "ablation.csv").read_text(encoding="utf-8").splitlines())
    assert [row["switch"] for row in partial] == [FULL]
    monkeypatch.setattr(recipe, "learn", real)
    whole = run("--steps", "2")
    rows = list(csv.DictReader(whole.splitlines()))
    assert [(row["switch"], row["damaged_change"]) for row in rows] == [
        (FULL, "nan"), ("no-weighing", "-2.0"), ("2d", "0.0"),
    ]  # fmt: skip
    assert run("--steps", "2", "--only", "2d") == whole, "what is there stays"
    with pytest.raises(ConfigError, match=r"its rows have budget '2 steps', expected '3 steps'; give another --out"):
        run("--steps", "3")


def test_the_page_tells_seeds_together_and_what_was_not_run(
    run: Callable[..., str], learned: list[str], tmp_path: Path
) -> None:
    rows = list(csv.DictReader(run("--steps", "2", "--seeds", "2", "--only", "no-weighing").splitlines()))
    assert [(row["switch"], row["seed"]) for row in rows] == [
        (FULL, "0"), (FULL, "1"), ("no-weighing", "0"), ("no-weighing", "1"),
    ]  # fmt: skip
    text = (tmp_path / "table" / "ablation.md").read_text(encoding="utf-8")
    assert "| no-weighing | all open | 2 | 2 | 24.00 | +0.00 [+0.00, +0.00] | 21.00 | -2.00 [-2.00, -2.00] |" in text
    assert "| 2d | one slice | not run: no run yet |" in text
    assert "| given | weights | not run: needs `--encoder` |" in text
    assert "up to 1.00 dB apart clean, 1.00 damaged" in text
    assert "4 runs of 2 steps on\ndata with 3 subjects, scored on 8 subjects (val), one slice in 3:" in text
    assert learned == ["full-model-0", "no-weighing-0", "full-model-1", "no-weighing-1"]


def test_every_switch_can_be_set_and_changes_something(recipe: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "SWITCHES", RECIPE.with_suffix(".yaml"))
    full, ready, wanting = recipe.read_switches(None)
    args = SimpleNamespace(data=Path("data"), val=Path("val"), seeds=1)
    configs = recipe.planned(ready, full, args, "3 minutes")
    assert len(configs) == 1 + len(ready)
    assert configs[FULL, 0].budget.minutes == 3
    assert {s.name for s in wanting} == {"hiera-pretrained", "hiera-lora", "hiera-lora-plus"}


def test_a_switch_that_changes_nothing_or_is_not_there_is_refused(
    recipe: ModuleType, run: Callable[..., str], learned: list[str]
) -> None:
    with pytest.raises(
        ConfigError, match="--only given: no such switch, or it needs --encoder; there are no-weighing, 2d"
    ):
        run("--only", "given")
    recipe.SWITCHES.write_text(SMALL.replace("slices=1", "slices=3"), encoding="utf-8")
    with pytest.raises(ConfigError, match="2d changes nothing"):
        run("--only", "2d")
    assert not learned


def test_it_trains_scores_and_does_neither_twice(
    recipe: ModuleType, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(recipe, "DAMAGE", ("noise",))
    table = run("--steps", "4", "--only", "2d")
    full, flat = csv.DictReader(table.splitlines())
    assert (full["switch"], full["subjects"], full["steps"], full["clean_change"]) == (FULL, "2", "4", "nan")
    assert flat["switch"] == "2d"
    assert float(flat["clean_change"]) != 0
    for name in ("train", "measure_damage"):
        monkeypatch.setattr(recipe, name, lambda *_, **__: pytest.fail("it was done already"))
    (tmp_path / "table" / "ablation.csv").unlink()
    assert run("--steps", "4", "--only", "2d") == table
    (tmp_path / "table" / "ablation.csv").unlink()
    with pytest.raises(ConfigError, match="full-model-0 was trained with other settings; give another WORK"):
        run("--steps", "5", "--only", "2d")
