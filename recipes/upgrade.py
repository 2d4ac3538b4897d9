"""Bring a model folder of format 2 up to date, its references too.

    python recipes/upgrade.py FOLDER [--threshold -0.1] [--softness 0.2]

Of Med-K2N, what was worth nothing goes (docs/lab-log.md): memory bank, history, the threshold's network, maps. What
PreWeightNet says is what it said of an empty memory; threshold and softness, in dB, are set for all targets. The
synthesizer's weights stay as they are.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from medk2n import checkpoint
from medk2n.io.atomic import atomic_write, sha256_file

GONE = ("effi_weight.", "threshold.", "pre_weight.query", "pre_weight.keys", "pre_weight.values",
        "pre_weight.sharpness", "gained", "measured")  # fmt: skip


def upgrade(folder: Path, *, threshold: float, softness: float) -> None:
    """Weights first, then the description with their hash."""
    data = json.loads((folder / checkpoint.CONFIG).read_text(encoding="utf-8"))
    if data.pop("format") != 2:
        return
    data.pop("config_sha256")
    if data["model"] == "medk2n":
        m = len(data["modalities"])
        tensors = load_file(folder / checkpoint.WEIGHTS)
        kept = {k: t for k, t in tensors.items() if not k.startswith(tuple(f"fusion.{name}" for name in GONE))}
        first, width = "fusion.pre_weight.weigh.0.weight", len(tensors["fusion.pre_weight.encode.2.bias"])
        kept[first] = kept[first][:, :width].contiguous()
        kept["fusion.effi_weight.threshold.level"] = torch.full((m,), threshold)
        kept["fusion.effi_weight.threshold.softness"] = torch.full((m,), math.log(softness))
        atomic_write(folder / checkpoint.WEIGHTS, lambda path: path.write_bytes(save(kept)))
        data["sha256"] = sha256_file(folder / checkpoint.WEIGHTS)
        del data["params"]["memory_slots"]
    statistics = checkpoint.Statistics(**data.pop("statistics"))
    modalities = tuple(data.pop("modalities"))
    config = checkpoint.ModelConfig(**data, modalities=modalities, statistics=statistics)
    checkpoint.write_config(folder, config)
    checkpoint.load(folder)
    print(f"{folder}: format {checkpoint.FORMAT}")


def main() -> None:
    """The model and what lies in its folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threshold", type=float, default=-0.1, help="tau in dB")
    parser.add_argument("--softness", type=float, default=0.2, help="T in dB")
    asked = parser.parse_args()
    for path in sorted(asked.folder.rglob(checkpoint.CONFIG)):
        if (path.parent / checkpoint.WEIGHTS).is_file():
            upgrade(path.parent, threshold=asked.threshold, softness=asked.softness)


if __name__ == "__main__":
    main()
