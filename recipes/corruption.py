"""What a damaged input does to the weights and to the image. Prints a Markdown table.

    python recipes/corruption.py MODEL DATA [--subjects 1] [--every 20] [--out docs/results/corruption.md]

MODEL is a folder with its `reference/unet`, DATA a data set with t1n, t1c, t2w and t2f. Each of the four is made from
the other three, one of which is damaged in turn (`medk2n.data.corrupt`: the kinds seen in training, other draws). The
image without that input is the bar: what is worse than that should have been left out.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from medk2n.checkpoint import find_model
from medk2n.cli.common import progress_bar
from medk2n.data.corrupt import KINDS
from medk2n.data.discover import discover
from medk2n.data.working import WorkingStudy, every_nth, load_working
from medk2n.inference.predictor import SlicePredictor, load_predictor

CORE = ("t1n", "t1c", "t2w", "t2f")
SEVERITIES = (0.25, 0.5, 1.0)
Row = tuple[float, float, float, float]  # W, share of open gates (the key frame's is open), PSNR, PSNR of the U-Net


def damaged(study: WorkingStudy, source: str, kind: str, severity: float) -> np.ndarray:
    """One input of a study, (s, h, w), damaged alike in all slices."""
    image = torch.from_numpy(study.images[source])
    return np.where(study.foreground, KINDS[kind](np.random.default_rng(0), image, severity).numpy(), 0)


def psnr(image: np.ndarray, study: WorkingStudy, target: str, at: list[int]) -> float:
    """dB inside the foreground of some slices."""
    error = (image - study.images[target])[at][study.foreground[at]]
    return float(-10 * np.log10(np.mean(error**2)))


def ask(
    models: tuple[SlicePredictor, SlicePredictor],
    study: WorkingStudy,
    given: dict[str, np.ndarray],
    target: str,
    source: str,
    at: list[int],
) -> Row:
    """One target from what is given; W and gate are those of `source`, 0 where it is not given."""
    ours, unet = (model.infer(given, [target], only=at) for model in models)
    names = models[0].modalities
    steps = [s for s in (ours.plan or {})[names.index(target)] if names[s.source] == source]
    weight, gate = (steps[0].weight, steps[0].gate) if steps else (0.0, 0.0)
    return weight, gate, *(psnr(found.means[target], study, target, at) for found in (ours, unet))


def measure(
    models: tuple[SlicePredictor, SlicePredictor], study: WorkingStudy, every: int
) -> Iterator[tuple[str, Row]]:
    """Label and figures of every case of one study."""
    at = every_nth(len(study.foreground), every)
    for target in CORE:
        whole = {name: study.images[name] for name in CORE if name != target}
        for source in whole:
            yield "whole", ask(models, study, whole, target, source, at)
            yield "absent", ask(models, study, {n: x for n, x in whole.items() if n != source}, target, source, at)
            for kind in KINDS:
                for severity in SEVERITIES:
                    given = whole | {source: damaged(study, source, kind, severity)}
                    yield f"{kind} {severity:g}", ask(models, study, given, target, source, at)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--subjects", type=int, default=1)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    folder = find_model(args.model)
    models = load_predictor(folder), load_predictor(folder / "reference" / "unet")
    found: dict[str, list[Row]] = {}
    cases = len(CORE) * (len(CORE) - 1) * (2 + len(KINDS) * len(SEVERITIES))
    subjects = discover(args.data)[: args.subjects]
    with progress_bar() as bar:
        line = bar.add_task("measuring", total=cases * len(subjects))
        for subject in subjects:
            for label, row in measure(models, load_working(subject, models[0].config.spacing_mm), args.every):
                found.setdefault(label, []).append(row)
                bar.advance(line)
    lines = ["| the input | W | gates open | Med-K2N, PSNR | U-Net, PSNR |", "|---|---|---|---|---|"]
    for label, rows in found.items():
        weight, gate, ours, unet = np.mean(rows, axis=0)
        lines.append(f"| {label} | {weight:.2f} | {gate:.0%} | {ours:.2f} | {unet:.2f} |")
    text = "\n".join(lines)
    sys.stdout.write(text + "\n")
    if args.out:
        head = "# One damaged input among three\n\nMade by `recipes/corruption.py`, which says what is done:"
        head += f" mean over {cases // (2 + len(KINDS) * len(SEVERITIES))} pairs of target and damaged input,"
        head += f" {len(subjects)} subject(s) of {args.data.name}, every {args.every}th slice.\n"
        head += "After the name of the damage, its severity. PSNR in dB inside the foreground."
        args.out.write_text(f"{head}\n\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
