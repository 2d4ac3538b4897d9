"""How well a plan foretells memory: the estimate against the peak of a short training on the CPU.

    medk2n phantom DATA --subjects 4 --spacing 2 --seed 1
    python recipes/plan_memory.py DATA

Prints a row a setting: widths of the synthesizer, crop, crops a batch, estimate and peak in MB.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from medk2n.config.draft import read_draft
from medk2n.models.layers.unet_trunk import SIZES
from medk2n.registry import resolve
from medk2n.training.memory import Need, cost
from medk2n.training.plan import make_plan

SETTINGS = ((0, 96, 2), (0, 160, 4), (1, 128, 4), (2, 96, 2))  # level, crop, size


def main(data: str) -> None:
    """Measure every setting in a process of its own."""
    print("widths | crop | size | estimate MB | peak MB | ratio")
    for level, crop, size in SETTINGS:
        wanted = [f"data={json.dumps([data])}", f"batch.crop={crop}", f"batch.size={size}", "budget={steps: 3}"]
        for model in ("medk2n", "unet"):
            for name, values in resolve("models", model).sizes.items():
                wanted.append(f"models.{model}.params.{name}={list(values[level])}")
        plan = make_plan(read_draft("plus", wanted), "cpu")
        config = plan.config
        costs = [cost(choice, len(config.modalities), config.batch, config.losses) for choice in config.models]
        need = Need.of(costs, size, crop, plan.fingerprint.voxels(config.spacing_mm))
        estimate, peak = need.main(plan.machine) / 2**20, measured(wanted)
        print(f"{SIZES[level]} | {crop} | {size} | {estimate:.0f} | {peak:.0f} | {estimate / peak:.2f}", flush=True)


def measured(wanted: list[str]) -> float:
    """Peak resident memory of `medk2n train` in MB."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "run.json"
        settings = [word for each in wanted for word in ("--set", each)]
        command = [sys.executable, "-m", "medk2n.cli.main", "train", "--preset", "plus", "--device", "cpu", *settings]
        subprocess.run(
            [*command, "--out", str(Path(folder) / "run"), "--manifest", str(manifest)], check=True, capture_output=True
        )
        return float(json.loads(manifest.read_text(encoding="utf-8"))["peak_memory_mb"])


if __name__ == "__main__":
    main(sys.argv[1])
