"""How fast a run learns on this machine, and what it waits for. Prints a Markdown table.

    python recipes/throughput.py DATA [--device auto] [--rounds 5] [--steps 8] [--set workers=2]

The same model learns from the same batches in two ways, in turn: as `medk2n train` does it, with the settings given;
and in a naive loop: 32 bits, no worker processes, one pass at a time through the synthesizer. On a GPU the share of the
rate of plain bf16 matrix products is told too.
"""

import argparse
import itertools
import sys
import time

import numpy as np
import torch

from medk2n.cli.common import progress_bar, resolve_device
from medk2n.config.draft import read_draft
from medk2n.config.schema import TrainConfig
from medk2n.models._flops import counting
from medk2n.models.layers.unet_trunk import Pyramid
from medk2n.training.contender import Contender
from medk2n.training.feed import Feed
from medk2n.training.plan import make_plan
from medk2n.training.reading import TrainingData, read_data
from medk2n.training.world import World


class Loop:
    """A model that learns, and what its steps took."""

    def __init__(self, config: TrainConfig, data: TrainingData, device: str, *, naive: bool) -> None:
        self.world = World(device, config.precision)
        torch.manual_seed(config.seed)
        self.model = Contender.of(config.models[0], config, data.statistics, device)
        if naive:
            trunk = self.model.module.trunk
            trunk.forward = _one_by_one(trunk.forward)
        parts = self.world.share(config.batch.accumulate)
        self.feed = Feed(data, config, self.model.params.slices, parts, 0, self.model.kind)

    def flops(self, steps: int = 4) -> float:
        """Of a mean step."""
        with counting() as counter:
            self.run(steps)
        return counter.get_total_flops() / steps

    def run(self, steps: int) -> tuple[float, float]:
        """Seconds that so many steps took, and how many of them were spent waiting for batches."""
        waited, started = self.feed.waited_s, time.perf_counter()
        for _ in range(steps):
            self.model.step(next(self.feed), self.world)
        if self.world.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started, self.feed.waited_s - waited


def _one_by_one(forward):
    def each(images: torch.Tensor, presence: torch.Tensor, context: Pyramid | None = None) -> torch.Tensor:
        made = []
        for k in range(len(images)):
            beside = {stride: level[k : k + 1] for stride, level in context.items()} if context else None
            made.append(forward(images[k : k + 1], presence[k : k + 1], beside))
        return torch.cat(made)

    return each


def matrix_rate(device: torch.device) -> float:
    """FLOPs a second of a large bf16 matrix product."""
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    for repeats in (3, 30):  # the first to warm up
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(repeats):
            a @ a
        torch.cuda.synchronize()
    return repeats * 2 * 8192**3 / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    args = parser.parse_args()
    device = resolve_device(args.device)
    draft = read_draft(args.preset, [f"data=['{args.data}']", "budget={steps: 1000000}", *args.overrides])
    config = make_plan(draft, device).config
    plain = config.model_copy(update={"precision": "fp32", "workers": 0})
    torch.set_num_threads(config.threads or torch.get_num_threads())
    data = read_data(config, lambda *_: None)
    loops = {"as it is": Loop(config, data, device, naive=False), "naive": Loop(plain, data, device, naive=True)}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
    with progress_bar() as bar:
        line = bar.add_task("learning", total=(args.rounds + 1) * len(loops))
        for k, (name, loop) in itertools.product(range(args.rounds + 1), loops.items()):
            spent = loop.run(args.steps)
            if k:  # the first round warms up
                taken[name].append(spent)
            bar.advance(line)
    crops = args.steps * config.batch.size * config.batch.accumulate
    lines = ["| loop | crops a second | waiting for batches |", "|---|---|---|"]
    for name, rounds in taken.items():
        seconds, waited = np.array(rounds).T
        lines.append(f"| {name} | {crops / np.median(seconds):.1f} | {waited.sum() / seconds.sum():.1%} |")
    ratio = np.median([b / a for (a, _), (b, _) in zip(taken["as it is"], taken["naive"], strict=True)])
    world = loops["as it is"].world
    lines += ["", f"{ratio:.2f} times as fast (median of {args.rounds} pairs), {world.precision}, {device}."]
    if world.device.type == "cuda":
        rate = args.steps * loops["as it is"].flops() / np.median([seconds for seconds, _ in taken["as it is"]])
        lines.append(f"{rate / matrix_rate(world.device):.1%} of the bf16 matrix rate.")
    sys.stdout.write("\n".join(lines) + "\n")
    for loop in loops.values():
        loop.feed.close()


if __name__ == "__main__":
    main()
