"""Put a finished run into the package: half-precision weights, the U-Net reference, the card.

    python recipes/bundle.py RUN NAME

Writes src/medk2n/weights/NAME/{config.json,model.safetensors,reference/unet/...}; the model card
(README.md) and, where the licence is not Apache-2.0, WEIGHTS_LICENSE are written by hand beside them.
"""

import sys
from dataclasses import replace
from pathlib import Path

from medk2n import checkpoint
from medk2n.errors import CheckpointError


def bundle(run: Path, name: str) -> None:
    """Copy the model and its reference as 16-bit weights."""
    for part in (Path(), checkpoint.REFERENCE_UNET):
        module, config = checkpoint.load(run / part)
        if not config.training.get("finished"):
            raise CheckpointError(f"{run / part}: the run is not finished; let it end before bundling it")
        folder = checkpoint.BUNDLED / name / part
        saved = checkpoint.save(folder, module, replace(config, sha256=""), half=True)
        size = (folder / checkpoint.WEIGHTS).stat().st_size / 1e6
        print(f"{folder}: {size:.1f} MB, SHA-256 {saved.sha256[:12]}")


if __name__ == "__main__":
    bundle(Path(sys.argv[1]), sys.argv[2])
