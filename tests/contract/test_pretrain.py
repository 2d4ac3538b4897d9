"""The pre-training recipe on a tiny data set: it learns, and what it writes is what `weights:` takes."""

import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from medk2n.errors import OutputExistsError
from medk2n.models.medk2n_parts.encoders.hiera import Params
from medk2n.pretrained import read_trunk

RECIPE = Path(__file__).parents[2] / "recipes" / "pretrain.py"


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = spec_from_file_location("pretrain", RECIPE)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two heads in two contrasts, the second without one of them."""
    root = tmp_path_factory.mktemp("arrays")
    z, y, x = np.mgrid[-1:1:6j, -1:1:72j, -1:1:68j]
    for k in range(2):
        head = x**2 + y**2 + 0.3 * z**2 < 0.8
        t1n = head * (100 + 70 * ((x - 0.2 * k) ** 2 + y**2 < 0.2) + 12 * np.sin(4 * x))
        arrays = {"t1n": t1n, "t2w": head * (250 - t1n)} if k else {"t1n": t1n}
        np.savez_compressed(root / f"p{k}.npz", **{name: a.astype(np.uint8) for name, a in arrays.items()})
    return root


@pytest.mark.slow
def test_it_learns_to_fill_in_and_writes_weights_with_a_card(
    recipe: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(data), "--out", str(tmp_path / "w"), "--steps", "40", "--batch", "6", "--crop", "64"]
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *words])
    recipe.main()
    card = (tmp_path / "w" / "README.md").read_text(encoding="utf-8")
    first, last = map(float, re.search(r"steps: ([\d.]+) and ([\d.]+)\.\n", card).groups())
    assert last < 0.8 * first, "the error falls"
    weights, digest = read_trunk(Params(weights=str(tmp_path / "w")))
    assert digest in card
    assert digest in capsys.readouterr().out
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    with pytest.raises(OutputExistsError, match="exists already"):
        recipe.main()


def test_what_is_hidden_never_reaches_the_prediction(recipe: ModuleType) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = recipe.Masked("nano").eval()
        frames = torch.rand(2, 3, 64, 64)
        hidden = recipe.hide(frames, np.random.default_rng(0))
        assert hidden.float().mean() == pytest.approx(10 / 16)
        other = torch.where(hidden, torch.rand_like(frames), frames)
    with torch.no_grad():
        assert torch.equal(model(frames, hidden), model(other, hidden))
        assert not torch.equal(model(frames, hidden), model(frames, ~hidden))


def test_the_same_seed_gives_the_same_weights(recipe: ModuleType, data: Path) -> None:
    from medk2n.data.batches import Store
    from medk2n.data.discover import discover
    from medk2n.data.working import load_working

    store = Store([load_working(subject, 1.5) for subject in discover(data)], ["t1n", "t2w"])
    how = {"size": "nano", "steps": 2, "batch": 4, "crop": 32, "rate": 1e-3, "seed": 4}
    made = []
    for other in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(other)  # whatever torch's own generator stands at
            made.append(recipe.learn(store, **how)[0])
    for p, q in zip(*(model.parameters() for model in made), strict=True):
        assert torch.equal(p, q)
