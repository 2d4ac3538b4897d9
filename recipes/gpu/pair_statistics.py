"""What training subjects say before any step, for `train.py --statistics`: one JSON file.

python recipes/gpu/pair_statistics.py OUT.json --modalities t1c,t1n,t2f,t2w --data DIR [--data DIR ...]
        [--exclude ID ...]
"""

import argparse
import json
from pathlib import Path

import numpy as np

from medk2n.config.schema import load_config
from medk2n.data.statistics import StatisticsBuilder
from medk2n.data.working import load_working
from medk2n.io.atomic import write_text
from medk2n.training.reading import learned_from


def main() -> None:
    """Read every subject once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--modalities", required=True)
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--exclude", action="append", default=[])
    asked = parser.parse_args()
    data, left_out = json.dumps(asked.data), json.dumps(asked.exclude)
    settings = [f"modalities=[{asked.modalities}]", "spacing_mm=1.5", f"data={data}", f"exclude={left_out}"]
    config = load_config("tiny", settings)
    builder = StatisticsBuilder(config.modalities)
    for _, _, chosen in learned_from(config):
        for subject in chosen:
            builder.add(load_working(subject, config.spacing_mm))
    found = builder.finish()
    tables = ("slope", "intercept", "residual", "mean", "deviation", "correlation", "variance")
    told = {name: np.asarray(getattr(found, name)).tolist() for name in tables}
    told |= {"modalities": list(found.modalities), "typical": found.typical_scaling}
    write_text(asked.out, json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
