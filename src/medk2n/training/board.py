"""What metrics.csv and `samples` hold, for TensorBoard too: a run of its own for each model."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from medk2n.errors import ConfigError

FOLDER = "tensorboard"


class Board:
    """Event files in `out/tensorboard/<model>`.

    Args:
        steps: model -> steps it has made; what was written after that is hidden, since it will be written again.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    def __init__(self, out: Path, steps: Mapping[str, int]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                f"tensorboard: true, but it is not installed ({error}); pip install 'medk2n[tensorboard]', or set it "
                "to false"
            ) from error
        self._writers = {
            model: SummaryWriter(str(out / FOLDER / model), purge_step=done + 1 if done else None)
            for model, done in steps.items()
        }

    def numbers(self, model: str, step: int, numbers: Mapping[str, float]) -> None:
        """A point of each number."""
        for name, value in numbers.items():
            self._writers[model].add_scalar(name, value, step)
        self._writers[model].flush()

    def picture(self, model: str, step: int, path: Path) -> None:
        """A PNG."""
        with Image.open(path) as image:
            self._writers[model].add_image("samples", np.asarray(image.convert("RGB")), step, dataformats="HWC")
        self._writers[model].flush()

    def close(self) -> None:
        """Write what is left."""
        for writer in self._writers.values():
            writer.close()
