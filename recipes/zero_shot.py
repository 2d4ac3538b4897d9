"""What the texts are worth for a modality that V never saw: it is left out while V learns, then its text looks for it.

    python recipes/zero_shot.py OUT.md --data DATA/cohort-40 --held-out DATA/cohort-identity \\
        --leave-out t1c,t2w,ct,dwi --steps 120 --set batch.crop=64

The two cohorts are of different seeds: subjects of one seed are the same, however many there are.
Each modality left out has a network of its own, taught as `medk2n train` teaches V, from the others alone. Of subjects
held out: how often its images are named by its text among all texts, and how often other images are; how often its text
finds its image among those of the study; and how well the images of the others are named.
"""

import argparse
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from identity_figures import volumes
from torch import Tensor

from medk2n.config.schema import TrainConfig, load_config
from medk2n.identity.identity import V, spread
from medk2n.identity.network import IdentityNet
from medk2n.identity.table import table_of
from medk2n.identity.texts import NOTHING
from medk2n.io.atomic import write_text
from medk2n.training.identity import IdentityPhase
from medk2n.training.reading import REST, TrainingData, read_data
from medk2n.training.world import World

Volumes = list[tuple[str, str, np.ndarray]]


class Without(IdentityPhase):
    """V alone, which never sees the image nor the text of one modality of the data."""

    def __init__(self, config: TrainConfig, data: TrainingData, left_out: str) -> None:
        self._kept = [j for j, name in enumerate([*config.modalities, NOTHING]) if name != left_out]
        others = [name for name in config.modalities if name != left_out]
        super().__init__(config.model_copy(update={"modalities": others}), data, torch.device("cpu"))
        self.nets = {V: self.nets[V]}

    def _drawn(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        images, there = super()._drawn(rng)
        return images[:, self._kept], there[:, self._kept]


def learned(config: TrainConfig, data: TrainingData, left_out: str) -> tuple[IdentityNet, tuple[str, ...]]:
    """V of all modalities but one, now with all texts, that one's last; and their names."""
    phase, world = Without(config, data, left_out), World("cpu", config.precision)
    while phase.progress < 1:
        phase.step(world)
    net, known = phase.nets[V].eval().requires_grad_(False), phase.table
    left = table_of([left_out]).vectors - known.vectors.mean(axis=0)  # as `TextTable.apart`, of the others' mean
    text = left / np.linalg.norm(left, axis=1, keepdims=True)
    net.texts = torch.cat([net.texts, torch.from_numpy(text.astype(np.float32))])
    return net, (*known.names, left_out)


def row(net: IdentityNet, names: tuple[str, ...], held_out: Volumes) -> list[str]:
    """Cells of the table for one modality left out, the last of the names."""
    new, logits = names[-1], {}
    with torch.inference_mode():
        for subject, name, slices in held_out:
            logits[subject, name] = net(torch.from_numpy(slices[spread(slices)])).mean(dim=0).numpy()
    named = {key: names[int(told.argmax())] for key, told in logits.items()}
    own, others = ([key for key in named if (key[1] == new) is ours] for ours in (True, False))
    text_places = [1 + int((logits[key] > logits[key][-1]).sum()) for key in own]
    image_places = [
        1 + sum(logits[other][-1] > logits[key][-1] for other in others if other[0] == key[0]) for key in own
    ]
    return [
        new,
        f"{sum(named[key] == key[1] for key in others)} of {len(others)}",
        f"{sum(named[key] == new for key in own)} of {len(own)}",
        f"{np.mean(text_places):.1f}",
        f"{sum(named[key] == new for key in others)} of {len(others)}",
        f"{sum(place == 1 for place in image_places)} of {len(own)}",
        f"{np.mean(image_places):.1f}",
        ", ".join(f"{name} {count}" for name, count in Counter(named[key] for key in own).most_common()),
    ]


def main() -> None:
    """Leave one after the other out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--config", default="recipes/default.yaml")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--leave-out", required=True, help="modalities: a comma list")
    parser.add_argument("--steps", type=int, required=True, help="that each network learns")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(asked.config, asked.overrides)
    update = {
        "data": asked.data,
        "budget": type(config.budget)(steps=asked.steps),
        "identity": config.identity.model_copy(update={"share": 1.0}),
    }
    config = config.model_copy(update=update)
    data = read_data(config, lambda *told: None)
    held_out = [v for v in volumes(asked.held_out, config.spacing_mm, 1, []) if v[1] in config.modalities]
    learned_from = sum(len(store.studies) for store in data.parts[REST][0])
    n = len(config.modalities)
    lines = [
        f"{asked.steps} steps of {config.identity.slices} slices of {learned_from} subjects, crops of "
        f"{config.batch.crop}; held out: {len({subject for subject, *_ in held_out})} subjects.",
        f"Texts: {n} modalities and that of no scan, so by chance its place is {(n + 2) / 2:g}; images: {n} a study, "
        f"by chance {(n + 1) / 2:g}.",
        "",
        "| left out | others named right | it is named by its text | place of that text | others named so "
        "| its text finds it in the study | its place | it is named |",
        "|---" * 8 + "|",
    ]
    for left_out in asked.leave_out.split(","):
        started = time.process_time()
        net, names = learned(config, data, left_out)
        spent = time.process_time() - started
        lines.append("| " + " | ".join(row(net, names, held_out)) + " |")
        print(lines[-1], f"{spent:.0f} s of learning", flush=True)
    write_text(asked.out, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
