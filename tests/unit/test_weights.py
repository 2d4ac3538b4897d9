"""The recipe that holds weights, expectations and predicted errors against what is measured."""

import csv
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

RECIPE = Path(__file__).parents[2] / "recipes" / "weights.py"


@pytest.fixture
def recipe() -> dict:
    return runpy.run_path(str(RECIPE))


def test_ranks_are_compared_within_a_target_and_small_gains_tie(recipe: dict) -> None:
    def told(target: str, *pairs: tuple[float, float]) -> list:
        return [recipe["Input"]("s", target, "none", "x", weight, -weight, worth) for weight, worth in pairs]

    assert recipe["agreement"](told("t1n", (1, -3.0), (2, 0.0), (3, 2.0)), "weight") == pytest.approx(1)
    assert recipe["agreement"](told("t1n", (1, -3.0), (2, 0.0), (3, 2.0)), "expected_db") == pytest.approx(-1)
    tied = recipe["agreement"](told("t1n", (1, 0.05), (2, -0.05), (3, 2.0)), "weight")
    assert tied == pytest.approx(np.sqrt(3) / 2), "two of three are worth the same"
    inputs = [x for target in recipe["CORE"] for x in told(target, (1, 1.0), (2, 2.0))]
    images = [recipe["Image"]("s", t, "none", "x", p, 2 * p, 0.5) for t in recipe["CORE"] for p in (0.1, 0.2)]
    lines = recipe["table"](inputs, images)
    assert lines[-1] == "| mean | 1.00 | n/a | -1.00 | n/a | 8 | 1.00 | 0.50 | 8 |"


def test_windows_are_means_inside_those_that_show_enough(recipe: dict) -> None:
    values, inside = np.ones((1, 32, 40)), np.zeros((1, 32, 40), bool)
    inside[0, :16, :8] = True  # half of the first window
    inside[0, 16:, 16:20] = True  # a quarter of another
    values[0, :16, :8] = 3
    assert recipe["windows"](values, inside) == [3.0]


def test_it_asks_every_subset_whole_and_damaged(recipe: dict, save_model, tmp_path: Path, monkeypatch) -> None:
    names = tuple(sorted(recipe["CORE"]))
    model, data, out = save_model(tmp_path / "model", "medk2n", names), tmp_path / "data", tmp_path / "out"
    data.mkdir()
    for k in range(1):
        rng = np.random.default_rng(k)
        images = {m: np.pad(rng.integers(20, 250, (3, 24, 28), np.uint8), ((0, 0), (4, 4), (4, 4))) for m in names}
        np.savez(data / f"s{k}.npz", **images)
    monkeypatch.setattr(sys, "argv", ["weights.py", *map(str, (model, data, out)), "--every", "3", "--subjects", "1"])
    recipe["main"]()
    with (out / "weights.csv").open() as file:
        inputs = list(csv.DictReader(file))
    with (out / "errors.csv").open() as file:
        made = list(csv.DictReader(file))
    assert len(inputs) == 4 * 2 * 3, "targets, whole and damaged, inputs"
    assert len(made) == 4 * 2 * 7
    first = [row for row in inputs if (row["subject"], row["target"], row["damage"]) == ("s0", "t1n", "none")]
    whole = next(row for row in made if row["sources"].count("+") == 2 and row["target"] == "t1n")
    empty = -10 * np.log10(0.05)
    gained = sum(float(row["expected_db"]) for row in first)
    assert gained == pytest.approx(-10 * np.log10(float(whole["predicted"])) - empty, abs=1e-4), "shares add up"
    assert (out / "weights.md").read_text().count("\n| t") == 5
