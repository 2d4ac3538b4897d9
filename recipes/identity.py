"""Teach a model that has none its identity module: V, and the judge V' (`medk2n train` does it by itself).

    python recipes/identity.py MODEL --config recipes/brain.yaml --data DIR:0.5 --data DIR:0.5 --minutes 20

MODEL is a model folder, to which `identity/` is added; --begin goes on from the networks of another. Data, modalities
(often more than the model's: all that may come by mistake), seed and texts are those of the configuration, with --set
on top.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch

from medk2n.config.schema import load_config
from medk2n.errors import OutputExistsError
from medk2n.identity.identity import FOLDER, Identity
from medk2n.training.identity import IdentityPhase
from medk2n.training.reading import read_data
from medk2n.training.world import World


def main() -> None:
    """Read, learn, find the temperatures, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--config", required=True)
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--begin", type=Path, help="a folder with an identity of the same modalities")
    parser.add_argument("--acquired", help="modalities of which the data hold real scans: a comma list (all)")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    if (asked.model / FOLDER).exists():
        raise OutputExistsError(f"{asked.model / FOLDER} is there already; remove it first")
    config = load_config(asked.config, asked.overrides)
    budget, identity = {"minutes": asked.minutes}, config.identity.model_copy(update={"share": 1.0})
    config = config.model_copy(
        update={"data": asked.data, "budget": type(config.budget)(**budget), "identity": identity}
    )
    if config.threads:
        torch.set_num_threads(config.threads)
    data = read_data(config, lambda *told: None)
    phase, world = IdentityPhase(config, data, torch.device(asked.device)), World(asked.device, config.precision)
    if asked.begin:
        for who, net in Identity.load(asked.begin).nets.items():
            phase.nets[who].load_state_dict(net.state_dict())
    told = time.monotonic()
    while phase.progress < 1:
        losses = phase.step(world)
        if time.monotonic() - told > 30:
            told = time.monotonic()
            print(f"{phase.progress:.0%} step {phase.steps} {losses}", flush=True)
    made = phase.finish(world)
    if asked.acquired:
        training = {**made.described.training, "acquired": asked.acquired.split(",")}
        made = Identity(replace(made.described, training=training), made.nets)
    made.save(asked.model)
    print(made.described.training, made.described.calibration)


if __name__ == "__main__":
    main()
