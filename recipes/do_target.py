"""do(target): the inputs held fixed, another target asked for; what the judge V' then sees, and which edges stay.

    python recipes/do_target.py MODEL OUT.md --data DIR [--inputs t1n,t2f] [--subjects 4] [--every 8]

For each two targets (j, j') of the same inputs that a subject has: whether the image turns from j into j', by the
judge, and how far the edges that both real images share are those that both made images share (correlation, sum).
"""

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from medk2n.checkpoint import read_config
from medk2n.data.discover import discover
from medk2n.data.working import every_nth, load_working
from medk2n.evaluation.evaluate import ask
from medk2n.evaluation.identity import seen
from medk2n.evaluation.rows import Row
from medk2n.identity.identity import Identity
from medk2n.inference.predictor import load_predictor
from medk2n.io.atomic import write_text
from medk2n.losses.identity import shared_edges


def main() -> None:
    """All subjects, all pairs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--identity", type=Path, help="a folder with an identity module; the model's if left out")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--inputs", default="t1n")
    parser.add_argument("--subjects", type=int, default=4)
    parser.add_argument("--every", type=int, default=8)
    asked = parser.parse_args()
    identity, spacing = Identity.load(asked.identity or asked.model), read_config(asked.model).spacing_mm
    predictor = load_predictor(asked.model, "cpu", every=asked.every)
    inputs, flips, kept, amount = tuple(asked.inputs.split(",")), [], [], []
    for subject in discover(asked.data)[: asked.subjects]:
        study = load_working(subject, spacing)
        targets = tuple(n for n in predictor.modalities if n in study.images and n not in inputs)
        if not set(inputs) <= set(study.images) or len(targets) < 2:
            continue
        at = every_nth(len(study.foreground), asked.every)
        made = {t: answer.image[at] for t, answer in ask(predictor, study, Row(inputs, targets)).items()}
        named = {t: seen(identity, made[t], study.id, "", "", t).named for t in targets}
        inside = torch.from_numpy(study.foreground[at][:, 1:, 1:])
        for j, other in combinations(targets, 2):
            flips.append((named[j], named[other]) == (j, other))
            both = [(made[j], made[other]), (study.images[j][at], study.images[other][at])]
            ours, real = (shared_edges(*map(torch.from_numpy, pair))[inside].numpy() for pair in both)
            kept.append(float(np.corrcoef(ours, real)[0, 1]))
            amount.append(float(ours.sum() / real.sum()))
    which = f"{asked.data.parent.name}/{asked.data.name}, from {asked.inputs}"
    lines = [
        f"{which}, 1 slice in {asked.every}: {len(flips)} pairs.",
        "",
        "| the judge sees j become j', % | shared edges: correlation with the real pair's | their sum, of the real |",
        "|---|---|---|",
        f"| {100 * np.mean(flips):.1f} | {np.mean(kept):.2f} | {np.mean(amount):.2f} |",
    ]
    write_text(asked.out, "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
