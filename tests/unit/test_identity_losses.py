"""The recipe that says what the losses of identity do: enhancement that is there, and that is not."""

import runpy
from pathlib import Path

import numpy as np
import pytest

RECIPE = Path(__file__).parents[2] / "recipes" / "identity_losses.py"


@pytest.fixture(scope="module")
def recipe() -> dict:
    return runpy.run_path(str(RECIPE))


def test_a_rim_enhances_and_a_change_of_contrast_does_not(recipe: dict) -> None:
    rng = np.random.default_rng(0)
    t1n = rng.uniform(0.2, 0.8, 20_000)
    t1c = 0.7 * t1n + 0.1 + rng.normal(0, 0.02, t1n.shape)
    t1c[:400] += 0.3
    fit = recipe["foretold"](t1c, t1n)
    assert fit == pytest.approx((0.7, 0.1, 0.02), abs=0.005), "the rim does not draw the line to itself"
    found = recipe["enhancing"](t1c, t1n, fit)
    assert found[:400].all()
    assert found[400:].mean() < 0.005, "three deviations"
    assert not recipe["enhancing"](0.7 * t1n + 0.1, t1n, fit).any()


def test_a_page_counts_each_run_by_itself(recipe: dict) -> None:
    runs = {
        "without": recipe["Found"]([20.0, 22.0], [True, False], [False], [1.0], [2.0]),
        "with": recipe["Found"]([19.0, 21.0], [True, True], [True], [0.5], [2.0]),
    }
    text = recipe["page"](runs, "a trial.")
    assert "| without | 21.00 | 50 | 0 | 1.00 | 2.00 |" in text
    assert "| with | 20.00 | 100 | 100 | 0.50 | 2.00 |" in text
    assert "2 images and 1 pairs of targets a run." in text
