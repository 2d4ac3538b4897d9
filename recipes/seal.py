"""Bring a model folder of format 1, whose config.json had no hash of itself, up to date; its references too.

    python recipes/seal.py FOLDER

What is sealed is taken for what was learned: look at it first if you do not know where it has been.
"""

import json
import sys
from pathlib import Path

from medk2n import checkpoint


def seal(folder: Path) -> None:
    """Write every config.json of format 1 in a run or model folder anew."""
    for path in sorted(folder.rglob(checkpoint.CONFIG)):
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.get("format") != 1:
            continue
        data |= {
            "format": checkpoint.FORMAT,
            "modalities": tuple(data["modalities"]),
            "statistics": checkpoint.Statistics(**data["statistics"]),
        }
        checkpoint.write_config(path.parent, checkpoint.ModelConfig(**data))
        checkpoint.load(path.parent)
        print(f"{path}: sealed")


if __name__ == "__main__":
    seal(Path(sys.argv[1]))
