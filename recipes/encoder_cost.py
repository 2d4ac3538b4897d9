"""What encoders and scans cost on this machine. Prints a Markdown table.

    python recipes/encoder_cost.py [--repeats 9] [--out docs/results/encoder-cost.md]

Noise stands for images: time does not depend on what they show. An encode is that of four frames of 160 x 192, as in
one slice of a head; a step is one that trains the whole of Med-K2N on two crops of 96 x 96, as preset `tiny` has them.
CPU seconds of the fastest of the repeats: other programs may be busy.
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from medk2n.cli.common import progress_bar
from medk2n.config.schema import ModelChoice, TrainConfig, load_config
from medk2n.data.batches import Batch
from medk2n.io.atomic import write_text
from medk2n.io.outputs import output_file
from medk2n.models._spec import Statistics
from medk2n.registry import resolve
from medk2n.training.begin import chosen
from medk2n.training.contender import Contender
from medk2n.training.feed import Part
from medk2n.training.world import World

NAMES = ("adc", "ct", "dwi", "pd", "t1c", "t1n", "t2f", "t2w")
M = len(NAMES)
CONV, NANO, TINY = {"name": "conv"}, {"name": "hiera", "size": "nano"}, {"name": "hiera", "size": "tiny"}
CASES: dict[str, dict[str, Any]] = {
    "none": {},
    "conv": {"encoder": CONV},
    "conv, plain pyramid": {"encoder": CONV, "multiscale": {"scan": "none"}},
    "conv, spiral": {"encoder": CONV, "multiscale": {"scan": "spiral"}},
    "Hiera nano, plain pyramid": {"encoder": NANO, "multiscale": {"scan": "none"}},
    "Hiera nano, raster": {"encoder": NANO, "multiscale": {"scan": "raster"}},
    "Hiera nano, spiral": {"encoder": NANO, "multiscale": {"scan": "spiral"}},
    "Hiera tiny, spiral": {"encoder": TINY, "multiscale": {"scan": "spiral"}},
}


def seconds(work: Callable[[], object], repeats: int) -> float:
    """CPU time, the shortest of the repeats."""
    taken = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return min(taken)


def batch(config: TrainConfig) -> Batch:
    """Crops of noise with all modalities."""
    b, side = config.batch.size, config.batch.crop
    images = torch.rand(b, M, 3, side, side, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
    there = torch.ones(b, M, dtype=torch.bool)
    return Batch(
        images,
        there,
        images[:, :, 1],
        torch.ones(b, side, side, dtype=torch.bool),
        torch.zeros(b, M),
        torch.full((b, M), -1),
    )


def measure(params: dict[str, Any], config: TrainConfig, repeats: int) -> tuple[float, ...]:
    """Parameters of the encoder, of the MultiScaleNet and of all (in millions); encode and step (in seconds)."""
    choice = ModelChoice(name="medk2n", params=params)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = resolve("models", "medk2n").build(chosen(choice), M, Statistics.neutral(M))
    contender = Contender(choice, config, module, chosen(choice))
    slice_ = torch.rand(1, M, 3, 160, 192)
    needed = torch.arange(M)[None] < 4
    crops = batch(config)
    with torch.no_grad():
        encode = seconds(lambda: module.encode(slice_, needed), repeats)
    step = seconds(lambda: contender.step([Part(crops, contender.steps)], World()), repeats)
    parts = (module.encoder, module.multiscale, module)
    counts = (0 if part is None else sum(p.numel() for p in part.parameters()) / 1e6 for part in parts)
    return *counts, encode, step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--overwrite", action="store_true", help="replace what lies at --out")
    args = parser.parse_args()
    with output_file(args.out, overwrite=args.overwrite) if args.out else nullcontext():
        make(args)


def make(args: argparse.Namespace) -> None:
    """The table, on the screen and at --out."""
    torch.set_num_threads(1)
    config = load_config("tiny", [f"modalities=[{', '.join(NAMES)}]", "spacing_mm=1.5", "budget={steps: 1000}"])
    lines = [
        "| encoder, scan | encoder, M | MultiScaleNet, M | model, M | encode, s | step, s |",
        "|---|---|---|---|---|---|",
    ]
    with progress_bar() as bar:
        for name, params in bar.track(CASES.items(), description="measuring"):
            found = measure(params, config, args.repeats)
            lines.append(f"| {name} | " + " | ".join(f"{value:.3g}" for value in found) + " |")
    text = "\n".join(lines)
    sys.stdout.write(text + "\n")
    if args.out:
        head = "# What encoders and scans cost\n\nMade by `recipes/encoder_cost.py`, which says what is measured:"
        head += f" CPU seconds of the fastest of {args.repeats} repeats, one thread, {platform.machine()}, torch"
        head += f" {torch.__version__}. M is a million parameters."
        write_text(args.out, f"{head}\n\n{text}\n")


if __name__ == "__main__":
    main()
