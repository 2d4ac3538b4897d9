"""How fast training batches come from a prepared data set. Prints a Markdown table.

    python recipes/loading.py PREPARED [--modalities t1n,t1c,t2w,t2f] [--crop 192] [--seconds 10]

PREPARED is what `medk2n prepare` wrote. Batches are drawn as a run with the preset draws them (3 slices, its batch size
and augmentation), from the mapped files (cold: dropped from the page cache before) and from studies in memory, by one
process and by two, each with one thread. Opening and reading the data set are timed apart.
"""

import argparse
import multiprocessing
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medk2n.config.draft import read_draft
from medk2n.config.schema import BatchShape, TrainConfig
from medk2n.data.batches import Augmentation, Store, draw_batch
from medk2n.data.discover import discover
from medk2n.data.stored import SLICES, Stored
from medk2n.data.working import load_working


def mapped(root: Path, modalities: list[str]) -> Store:
    """The data set as it lies on the disk."""
    found = [subject.prepared for subject in discover(root)]
    return Store([Stored.opened(folder, modalities, modalities) for folder in found if folder], modalities)


def in_memory(root: Path, modalities: list[str]) -> Store:
    """The data set read as any other."""
    return Store((load_working(subject, None) for subject in discover(root)), modalities)


def forget(root: Path) -> None:
    """Drop the slices from the page cache."""
    for path in root.glob(f"*/{SLICES}"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@dataclass(frozen=True)
class Rate:
    """Crops a second of wall time, and a second of processor time (which other programs hardly slow down)."""

    wall: float
    processor: float


def draw(store: Store, batch: BatchShape, crop: int, seed: int, seconds: float) -> Rate:
    """Batch after batch, for so long."""
    torch.set_num_threads(1)
    augmentation = Augmentation(strip=batch.strip, restyle=batch.restyle, corrupt=batch.corrupt)
    count, start, busy = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds:
        rng = np.random.default_rng([seed, count])
        draw_batch([store], [1.0], rng, batch_size=batch.size, crop=crop, slices=3, augmentation=augmentation)
        count += batch.size
    return Rate(count / (time.perf_counter() - start), count / (time.process_time() - busy))


def side_by_side(processes: int, *how: Any) -> Rate:
    """Processes that draw at the same time: their sum, and their mean for the processor. They share what is there."""
    context = multiprocessing.get_context("fork")
    found: multiprocessing.Queue[Rate] = context.Queue()
    working = [
        context.Process(target=lambda seed=seed: found.put(draw(*how[:-1], seed, how[-1]))) for seed in range(processes)
    ]
    for process in working:
        process.start()
    rates = [found.get() for _ in working]
    for process in working:
        process.join()
    return Rate(sum(r.wall for r in rates), sum(r.processor for r in rates) / processes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prepared", type=Path)
    parser.add_argument("--modalities", default="t1n,t1c,t2w,t2f")
    parser.add_argument("--crop", type=int, default=192)
    parser.add_argument("--seconds", type=float, default=10)
    args = parser.parse_args()
    torch.set_num_threads(1)
    modalities = sorted(args.modalities.split(","))
    config: TrainConfig = read_draft("tiny").config
    start = time.perf_counter()
    on_disk = mapped(args.prepared, modalities)
    opened = time.perf_counter() - start
    start = time.perf_counter()
    memory = in_memory(args.prepared, modalities)
    read = time.perf_counter() - start
    lines = ["| samples/s | 1 process | 2 processes | a processor second of one |", "|---|---|---|---|"]
    for name, store in (("mapped, cold", on_disk), ("mapped", on_disk), ("in memory", memory)):
        rates = []
        for processes in (1, 2):
            if name == "mapped, cold":
                forget(args.prepared)
            rates.append(side_by_side(processes, store, config.batch, args.crop, args.seconds))
        one, two = rates
        lines.append(f"| {name} | {one.wall:.0f} | {two.wall:.0f} | {one.processor:.0f} |")
    about = f"{len(discover(args.prepared))} subjects, {len(on_disk)} slices, {len(modalities)} modalities, "
    about += f"crop {args.crop}, batch {config.batch.size}; opened in {opened:.2f} s, read in {read:.1f} s; "
    sys.stdout.write("\n".join([about + f"{platform.machine()}, {os.cpu_count()} cores", "", *lines]) + "\n")


if __name__ == "__main__":
    main()
