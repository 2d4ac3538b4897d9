"""The reference row "copy the nearest input": the least a method must beat."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from medk2n.errors import CheckpointError
from medk2n.inference._spec import Answer

if TYPE_CHECKING:
    from medk2n.checkpoint import ModelConfig


class CopyPredictor:
    """The best linear map of one input: target = a * source + b, clipped to [0, 1].

    Of the inputs given, the one whose map had the smallest mean squared error is taken. Maps
    were fitted inside the foreground of the training subjects and travel with the model
    (`statistics.affine_maps`), so nothing is learned from the subject under test.

    Like every other predictor it says nothing about the background: `evaluate` clears that of
    all methods by one rule (`background.inside_inputs`).
    """

    name = "copy"

    def __init__(self, config: "ModelConfig") -> None:
        self.modalities = tuple(config.modalities)
        self._maps = config.statistics.affine_maps

    def predict(self, images: Mapping[str, np.ndarray], targets: Sequence[str]) -> dict[str, Answer]:
        """Each target as (s, h, w) float32 in [0, 1], and no word on its error.

        Raises:
            CheckpointError: if the model has no map from any input to a target.
        """
        return {target: Answer(self._copy(images, target)) for target in targets}

    def _copy(self, images: Mapping[str, np.ndarray], target: str) -> np.ndarray:
        maps = {source: fit for source, fit in self._maps.get(target, {}).items() if source in images}
        if not maps:
            raise CheckpointError(
                f"copy row: the model's statistics.affine_maps has no map from {', '.join(images)} to {target} "
                "(no training subject had both); leave one out with --modalities"
            )
        source = min(maps, key=lambda name: maps[name][2])
        slope, offset, _ = maps[source]
        return np.clip(slope * images[source] + offset, 0, 1).astype(np.float32)
