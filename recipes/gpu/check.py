"""Is the card right, and how fast is it? In under 90 s; run it before `train.py`.

    python recipes/gpu/check.py --pack PACK --bodies BODIES [--device cuda] [--json FILE]

Right: a bundled model gives on the card what it gives on the CPU, in float32 to 1e-3 of the range and in bfloat16 to
0.05 dB. Fast: crops a second of a training step, the share of it that drawing the batch takes, the share of this card's
own bfloat16 matrix rate, and how many times as fast as the naive loop (batches drawn on the host, float32, a number
fetched each step) it is. Exits with 1 where something is wrong; what is slow is told, not refused.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
import train
from learner import learners_of
from loaded import SLICES, Data, read_data

from medk2n import checkpoint
from medk2n.cli.common import resolve_device
from medk2n.config.schema import LossWeights, Optimiser
from medk2n.data.batches import Augmentation, Batch, Store, draw_batch
from medk2n.errors import Medk2nError
from medk2n.losses.reconstruction import mean_squared_error
from medk2n.models._flops import counting
from medk2n.training.device_damage import Chance
from medk2n.training.device_feed import draw_sources
from medk2n.training.queries import as_query, every_target

MOST_ERROR, MOST_DB = 1e-3, 0.05
SHAPE = Augmentation(strip=0.3, restyle=0.5, corrupt=0.05)


@torch.no_grad()
def same_as_cpu(model: str, batch: Batch, device: torch.device) -> dict[str, float]:
    """A bundled model on the same crops by CPU and device: largest difference, and loss of PSNR in bfloat16."""
    module, _ = checkpoint.load(checkpoint.BUNDLED / model)
    module.fusion.taught.zero_()  # all gates open: a weight that lies at its threshold may fall to either side
    here = batch.to(torch.device("cpu"))
    sources = draw_sources(here.acquired, Chance(torch.Generator().manual_seed(0)), most=3).numpy()
    query = as_query(*every_target(here.acquired.numpy(), np.arange(len(sources)), sources))
    target, inside = here.targets[query.sample, query.target], here.foreground[query.sample]

    def made(where: torch.device, *, bf16: bool) -> torch.Tensor:
        there = module.to(where)
        with torch.autocast(where.type, torch.bfloat16, enabled=bf16):
            mean = there(here.images.to(where), query.to(where)).mean
        return mean.float().cpu() * inside

    def psnr(image: torch.Tensor) -> torch.Tensor:
        return -10 * torch.log10(mean_squared_error(image, target, inside) + 1e-6)

    before = torch.backends.cudnn.allow_tf32
    wanted = made(torch.device("cpu"), bf16=False)
    try:
        torch.backends.cudnn.allow_tf32 = False
        exact = made(device, bf16=False)
    finally:
        torch.backends.cudnn.allow_tf32 = before
    return {
        "float32_error": float((exact - wanted).abs().max()),
        "float32_as_set_error": float((made(device, bf16=False) - wanted).abs().max()),
        "bf16_loss_db": float((psnr(made(device, bf16=True)) - psnr(wanted)).mean().abs()),
    }


def seconds_of(work: Callable[[], Any], device: torch.device, *, least: float, warm: int = 3) -> float:
    """Mean time of one call, over at least so many seconds."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(warm):
        work()
    wait()
    started, calls = time.perf_counter(), 0
    while time.perf_counter() - started < least or calls < 3:
        work()
        calls += 1
        if calls % 8 == 0:
            wait()
    wait()
    return (time.perf_counter() - started) / calls


def matrix_rate(device: torch.device, size: int, *, least: float) -> float:
    """Operations a second of a bfloat16 matrix product on random numbers."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds_of(lambda: a @ b, device, least=least)


def speed(asked: argparse.Namespace, data: Data, device: torch.device) -> dict[str, float]:
    """Of a training step of the trunk, whole and in parts."""
    weights, bf16 = LossWeights(), device.type == "cuda"
    chance = Chance(torch.Generator(device=device).manual_seed(0))

    def draw() -> tuple[Batch, torch.Tensor]:
        batch = data.feed.batch(chance, asked.batch, asked.crop, SLICES, SHAPE)
        return batch, draw_sources(batch.acquired, chance, most=3)

    fixed = draw()
    learner = learners_of(asked, fixed[0], Optimiser(), device)[0]

    def step(batch: Batch, sources: torch.Tensor) -> None:
        learner.step(learner.loss(batch, sources, weights, bf16=bf16), 1e-4, 1000)

    whole = seconds_of(lambda: step(*draw()), device, least=asked.seconds)
    alone = seconds_of(lambda: step(*fixed), device, least=asked.seconds)
    drawing = seconds_of(draw, device, least=asked.seconds / 2)
    small = Batch(*(getattr(fixed[0], name)[:2] for name in Batch.__dataclass_fields__)), fixed[1][:2]
    with counting() as counter:
        learner.loss(*small, weights, bf16=False).backward()
    flops = counter.get_total_flops() / 2
    naive = naive_rate(asked, data, device, weights)
    rate = matrix_rate(device, 8192 if device.type == "cuda" else 512, least=asked.seconds / 2)
    return {
        "crops_per_second": asked.batch / whole,
        "drawing_share": max(0.0, 1 - alone / whole),
        "drawing_ms": 1000 * drawing,
        "step_ms": 1000 * whole,
        "gflops_per_crop": flops / 1e9,
        "matrix_tflops": rate / 1e12,
        "matrix_share": flops * asked.batch / whole / rate,
        "naive_crops_per_second": naive,
        "times_naive": asked.batch / whole / naive,
    }


def naive_rate(asked: argparse.Namespace, data: Data, device: torch.device, weights: LossWeights) -> float:
    """Crops a second where the host draws them, in float32, with a number fetched each step."""
    names = data.modalities
    studies = [study.stored for study in data.feed.studies if study.stored.slices.size]
    if not studies:
        return float("nan")
    store, rng = Store(studies, names), np.random.default_rng(0)
    chance = Chance(torch.Generator().manual_seed(0))
    learner = None

    def step() -> None:
        nonlocal learner
        batch = draw_batch(
            [store], [1.0], rng, batch_size=asked.naive_batch, crop=asked.crop, slices=SLICES, augmentation=SHAPE
        )
        sources = draw_sources(batch.acquired, chance, most=3).to(device)
        batch = batch.to(device)
        learner = learner or learners_of(asked, batch, Optimiser(), device)[0]
        loss = learner.loss(batch, sources, weights, bf16=False)
        float(loss.detach())
        learner.step(loss, 1e-4, 1000)

    return asked.naive_batch / seconds_of(step, device, least=asked.seconds / 2, warm=1)


def check(asked: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """All numbers, and what is wrong."""
    started = time.perf_counter()
    device = torch.device(resolve_device(asked.device))
    data = read_data(asked, device)
    chance = Chance(torch.Generator(device=device).manual_seed(0))
    data.take_bodies(chance, at_once=asked.most_bodies)
    batch = data.feed.batch(chance, 4, asked.crop, SLICES, Augmentation(strip=0))
    told: dict[str, Any] = {"device": str(device), "torch": torch.__version__, "studies": len(data.feed)}
    if device.type == "cuda":
        told["card"] = torch.cuda.get_device_name(device)
    told |= same_as_cpu(asked.model, batch, device)
    wrong = []
    if not told["float32_error"] <= MOST_ERROR:
        wrong.append(f"float32 differs from the CPU by {told['float32_error']:.2e}; expected {MOST_ERROR:g} at most")
    if not told["bf16_loss_db"] <= MOST_DB:
        wrong.append(f"bfloat16 costs {told['bf16_loss_db']:.3f} dB; expected {MOST_DB:g} at most")
    told |= speed(asked, data, device)
    if device.type == "cuda":
        told["memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    return told | {"seconds": time.perf_counter() - started}, wrong


def parser() -> argparse.ArgumentParser:
    """The command line: that of `train.py` as far as it matters, and how long to measure."""
    made = train.parser()
    made.set_defaults(out=None, minutes=1.0, most_bodies=4, room=2000)
    made.description = __doc__.splitlines()[0]
    made.add_argument("--model", default="brain", help="a bundled model of the same modalities")
    made.add_argument("--seconds", type=float, default=6.0, help="that each measurement takes")
    made.add_argument("--naive-batch", type=int, default=16)
    made.add_argument("--json", type=Path, help="where to write the numbers")
    return made


def main() -> None:
    """Check, and say what was found."""
    asked = parser().parse_args()
    try:
        told, wrong = check(asked)
    except Medk2nError as error:
        sys.exit(f"check.py: {error}")
    for name, value in told.items():
        print(f"{name:24} {value:.4g}" if isinstance(value, float) else f"{name:24} {value}")
    if asked.json:
        asked.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    if wrong:
        sys.exit("check.py: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
