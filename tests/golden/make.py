"""What small seeded models answer and how they learn, as numbers, so that a change which should change nothing is seen.

    python tests/golden/make.py

writes `golden.json` beside this file, which `test_golden.py` compares with. Run it after a change that is meant to
change answers or training, and say so in the commit.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from medk2n.config.params import read_params
from medk2n.config.schema import load_config
from medk2n.models._spec import Query, Statistics
from medk2n.registry import names, resolve
from medk2n.training.contender import Contender
from medk2n.training.feed import Feed
from medk2n.training.reading import read_data
from medk2n.training.world import World

FILE = Path(__file__).with_name("golden.json")
M, STEPS = 4, 20
SIZES = {
    "medk2n": {"widths": [8, 8, 8, 16, 16], "embedding": 8},
    "mm_synthesis": {"widths": [8, 8, 16], "latent": 8},
    "mmt": {"widths": [8, 8, 16, 16], "head": 8, "window": 4, "pixels": 8, "critic": 8},
    "pgan": {"width": 8, "blocks": 2, "critic": 8},
    "poe": {"encoder": [8, 8, 8, 8, 8], "decoder": [8, 8, 8, 8, 8], "latents": [4, 4, 4, 4, 4]},
    "unet": {"widths": [8, 8, 8, 16, 16]},
}
VARIANTS = {
    "medk2n, conv, spiral": {"encoder": {"name": "conv"}, "channels": [8, 8, 8, 8], "multiscale": {"scan": "spiral"}}
}


def build(name: str) -> torch.nn.Module:
    """A small model, fresh but for a stir: what begins at zero matters too."""
    model, _, variant = name.partition(",")
    spec = resolve("models", model)
    params = read_params(spec.params, SIZES[model] | (VARIANTS[name] if variant else {}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = spec.build(params, M, Statistics.neutral(M)).eval().requires_grad_(False)
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return module


def query(k: int, n: int) -> Query:
    """The first K modalities in, N others out."""
    return Query(torch.zeros(n, dtype=torch.long), (torch.arange(M) < k).repeat(n, 1), torch.arange(k, k + n))


def answers(name: str) -> dict[str, list[float]]:
    """Case -> means of the answer, its square and its log-variance."""
    module, found = build(name), {}
    grey = torch.linspace(0, 12, 24 * 40).sin().view(24, 40) * 0.4 + 0.5
    images = torch.stack([grey.roll(i, 0).roll(3 * i, 1) ** (1 + i / 2) for i in range(M)])
    images = images[None, :, None] * torch.tensor([0.9, 1.0, 0.95])[:, None, None]
    for k in range(1, M):
        for n in range(1, M - k + 1):
            made = module(images, query(k, n))
            told = [made.mean.mean(), made.mean.square().mean()]
            told += [] if made.log_variance is None else [made.log_variance.mean()]
            found[f"{k} in, {n} out"] = [float(x) for x in told]
    return found


def decisions() -> dict[str, list[float]]:
    """What the weighting networks of a model that was taught say of three inputs."""
    module = build("medk2n")
    module.fusion.taught.fill_(1)
    module.fusion.pre_weight.weigh[-1].bias += 0.3  # gates that open
    module.fusion.effi_weight.threshold.softness += 2.0  # and some that are in doubt
    noise = torch.rand(2, M, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
    fused = module.fuse(module.scene(noise, torch.ones(2, M, dtype=torch.bool)), query(3, 1))
    return {
        "first look": fused.first[0, :3].tolist(),
        "order": [float(step.source[0]) for step in fused.steps],
        "weights": [float(step.weight[0]) for step in fused.steps],
        "gates": [float(step.gate[0]) for step in fused.steps],
        "presence": fused.presence.mean(dim=(0, 2, 3)).tolist(),
    }


def learning(name: str, folder: Path) -> list[float]:
    """Loss of each step, half of them of the second kind where the model has two."""
    settings = [
        f"data=['{folder}']", "modalities=[t1c, t1n, t2f, t2w]", "core=[]", "spacing_mm=1.5", "budget={steps: 20}",
        "batch={size: 2, crop: 32, draws: 1, most_sources: 3}", "teaching={weighing: 0.5, held_out: 0.3}",
        f"models=[{{name: {name}, params: {json.dumps(SIZES[name])}}}]",
    ]  # fmt: skip
    config = load_config("tiny", settings)
    data, world = read_data(config, lambda *_: None), World()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Contender.of(config.models[0], config, data.statistics, "cpu")
    losses = []
    for step in range(STEPS):
        model.turn()
        feed = Feed(data, config, model.params.slices, range(1), step, model.kind)
        losses.append(model.step(next(feed), world)["loss"])
    return losses


def cohort(folder: Path) -> Path:
    """Four subjects with four contrasts, made by formula."""
    z, y, x = np.mgrid[-1:1:5j, -1:1:44j, -1:1:40j]
    for k in range(4):
        head = x**2 + y**2 + 0.2 * z**2 < 0.8
        t1n = 0.5 + 0.3 * np.sin(5 * x + k) * np.cos(4 * y - k) + 0.1 * z
        grey = {"t1n": t1n, "t1c": t1n**2, "t2w": 1 - t1n, "t2f": np.abs(2 * t1n - 1)}
        arrays = {name: np.round(head * (25 + 220 * a)).astype(np.uint8) for name, a in grey.items()}
        np.savez(folder / f"p{k}.npz", **arrays)
    return folder


def golden() -> dict[str, object]:
    """All of it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            found: dict[str, object] = {"answers": {name: answers(name) for name in (*names("models"), *VARIANTS)}}
            found["decisions"] = decisions()
        with tempfile.TemporaryDirectory() as folder:
            data = cohort(Path(folder))
            found["learning"] = {name: learning(name, data) for name in ("medk2n", "unet")}
    finally:
        torch.set_num_threads(threads)
    return found


if __name__ == "__main__":
    rounded = json.loads(json.dumps(golden()), parse_float=lambda number: float(f"{float(number):.7g}"))
    FILE.write_text(json.dumps(rounded, indent=1) + "\n", encoding="utf-8")
