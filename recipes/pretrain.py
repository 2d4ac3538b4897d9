"""Teach a Hiera to fill in what is hidden, on any images without labels; `weights:` takes the folder that it writes.

    medk2n phantom DATA --subjects 48 --seed 1 --spacing 1.5 --protocols random
    python recipes/pretrain.py DATA --out FOLDER [--size nano] [--steps 4000] [--seed 0]

Masked image modelling as in SimMIM (Xie 2022): three of five cells of a frame take a learned colour, and linear layers
predict the voxels behind them, judged by their absolute error there. As in Hiera (Ryali 2023) all four stages are read.
Every modality of every subject is a frame of its own, and the trunk is not told which: with cohorts of random protocols
it sees contrasts that no scanner was set to. The tissue alone is judged; air is easy.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from medk2n.cli.common import progress_bar
from medk2n.data.batches import Augmentation, Store, draw_batch
from medk2n.data.discover import discover
from medk2n.data.working import load_working
from medk2n.io.atomic import write_text
from medk2n.io.outputs import OutputFolder, output_folder
from medk2n.models.medk2n_parts.encoders.hiera import DEVIATION, LEVELS, MEAN, SIZES, SLICES, build_trunk, run_blocks
from medk2n.pretrained import CONFIG, WEIGHTS, save_trunk

CELL, HIDDEN = 16, 0.6


class Masked(nn.Module):
    """A trunk, the colour of what is hidden, and linear layers from every stage to the voxels."""

    def __init__(self, size: str) -> None:
        super().__init__()
        self.trunk = build_trunk(size)
        self.colour = nn.Parameter(torch.zeros(SLICES, 1, 1))
        widths = self.trunk.config.embed_dim_per_stage
        self.heads = nn.ModuleList(nn.Conv2d(c, SLICES * s * s, 1) for s, c in zip(LEVELS, widths, strict=True))

    def forward(self, frames: Tensor, hidden: Tensor) -> Tensor:
        """frames (f, 3, h, w), hidden (f, 1, h, w) bool, h and w multiples of 32 -> frames as predicted."""
        seen = torch.where(hidden, self.colour, (frames - MEAN) / DEVIATION)
        stages = run_blocks(self.trunk, self.trunk.patch_embed(seen))
        shown = [
            functional.pixel_shuffle(head(x.permute(0, 3, 1, 2)), s)
            for s, head, x in zip(LEVELS, self.heads, stages, strict=True)
        ]
        return torch.stack(shown).sum(dim=0) * DEVIATION + MEAN


def hide(frames: Tensor, rng: np.random.Generator) -> Tensor:
    """Which voxels are hidden, (f, 1, h, w): the same share of cells in every frame."""
    f, _, h, w = frames.shape
    cells = rng.random((f, h // CELL * (w // CELL))).argsort(axis=1) < HIDDEN * (h // CELL * (w // CELL))
    mask = torch.from_numpy(cells).view(f, 1, h // CELL, w // CELL)
    return mask.repeat_interleave(CELL, dim=2).repeat_interleave(CELL, dim=3)


def error(model: Masked, frames: Tensor, rng: np.random.Generator) -> Tensor:
    """Mean absolute error over the tissue that is hidden, in the scaled unit."""
    hidden = hide(frames, rng)
    judged = hidden & (frames > 0)
    return (model(frames, hidden) - frames).abs()[judged].mean()


def frames_of(store: Store, rng: np.random.Generator, size: int, crop: int) -> Tensor:
    """(size, 3, crop, crop): some crops' frames that are there, mixed and cut to the number asked for."""
    found: list[Tensor] = []
    while sum(map(len, found)) < size:
        batch = draw_batch([store], [1.0], rng, batch_size=4, crop=crop, slices=SLICES, augmentation=Augmentation())
        found.append(batch.images[batch.acquired])
    every = torch.cat(found)
    return every[torch.from_numpy(rng.permutation(len(every))[:size])]


def learn(
    store: Store, *, size: str, steps: int, batch: int, crop: int, rate: float, seed: int
) -> tuple[Masked, list[float]]:
    """The model after so many steps of AdamW, warmed up and cooled down, and its error at each."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Masked(size)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.05)
    errors: list[float] = []
    with progress_bar() as bar:
        line = bar.add_task("learning", total=steps)
        for step in range(steps):
            rng = np.random.default_rng([seed, step])
            warm = min(1.0, (step + 1) / (0.05 * steps))
            for group in optimiser.param_groups:
                group["lr"] = rate * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
            loss = error(model, frames_of(store, rng, batch, crop), rng)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            errors.append(loss.item())
            bar.update(line, advance=1, description=f"learning  error {np.mean(errors[-50:]):.4f}")
    return model, errors


def card(args: argparse.Namespace, subjects: int, names: Sequence[str], errors: Sequence[float], digest: str) -> str:
    """What it learned from, how, and how far it came."""
    share = max(1, len(errors) // 20)
    first, last = np.mean(errors[:share]), np.mean(errors[-share:])
    return f"""# A Hiera of size {args.size}, taught by recipes/pretrain.py

Learned from {subjects} subjects of {", ".join(root.name for root in args.data)}, {args.spacing:g} mm, modalities
{", ".join(names)}: {args.steps} steps of {args.batch} frames of {args.crop} x {args.crop}, learning rate {args.rate:g},
seed {args.seed}. Mean absolute error of the tissue that was hidden (scaled, 0 to 1), first and last twentieth of the
steps: {first:.4f} and {last:.4f}.
SHA-256 of the weights: {digest}
"""


def taught(args: argparse.Namespace, folder: OutputFolder) -> str:
    """Read, learn and write; returns the card."""
    subjects = [subject for root in args.data for subject in discover(root)]
    names = sorted({name for subject in subjects for name in subject.modalities})
    studies = []
    with progress_bar() as bar:
        for subject in bar.track(subjects, description="reading"):
            studies.append(load_working(subject, args.spacing))
    how = {name: getattr(args, name) for name in ("size", "steps", "batch", "crop", "rate", "seed")}
    model, errors = learn(Store(studies, names), **how)
    with folder.whole(last=CONFIG) as new:
        text = card(args, len(subjects), names, errors, save_trunk(new, model.trunk))
        write_text(new / "README.md", text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", choices=SIZES, default="nano")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--crop", type=int, default=96)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--spacing", type=float, default=1.5, help="in-plane, mm")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.crop % LEVELS[-1]:
        parser.error(f"--crop {args.crop}: expected a multiple of {LEVELS[-1]}")
    with output_folder(args.out, [CONFIG, WEIGHTS, "README.md"]) as folder:
        text = taught(args, folder)
    print(text)
    print(f"Use it as encoder.weights: {args.out}, encoder.size: {args.size}")


if __name__ == "__main__":
    main()
