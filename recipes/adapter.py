"""Write the adapters of a trained model's encoder alone, as `peft` reads them.

    python recipes/adapter.py RUN FOLDER

They are small, and worth nothing without the weights they were learned on, whose SHA-256 is
kept beside them.
"""

import sys
from pathlib import Path

from medk2n import checkpoint
from medk2n.errors import CheckpointError
from medk2n.models.medk2n_parts.encoders.hiera import HieraEncoder
from medk2n.pretrained import ADAPTER, save_adapter


def main(run: Path, folder: Path) -> None:
    """Read the run's model, write its adapters."""
    module, _ = checkpoint.load(run)
    encoder = getattr(module, "encoder", None)
    if not isinstance(encoder, HieraEncoder):
        raise CheckpointError(f"{run}: its encoder is no Hiera and has no adapters")
    save_adapter(folder, encoder)
    print(f"{folder}: {(folder / ADAPTER).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
