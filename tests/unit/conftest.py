"""Small untrained models in folders, as `medk2n train` leaves them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from medk2n import checkpoint, registry
from medk2n.config.params import read_params
from medk2n.models._spec import Statistics

SMALL = {
    "medk2n": {"slices": 3, "widths": [8] * 5, "embedding": 8},
    "unet": {"slices": 3, "widths": [8] * 5},
}


@pytest.fixture
def save_model() -> Callable[[Path, str, tuple[str, ...]], Path]:
    """Write a model of that name and those modalities to a folder; its gates count."""

    def save(folder: Path, name: str, modalities: tuple[str, ...]) -> Path:
        spec, m = registry.resolve("models", name), len(modalities)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = spec.build(read_params(spec.params, SMALL[name]), m, Statistics.neutral(m))
            for parameter in module.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
        if name == "medk2n":
            module.fusion.taught.fill_(1)
        maps = {t: {s: (0.5, 0.2, 0.1) for s in modalities if s != t} for t in modalities}
        statistics = checkpoint.Statistics(
            affine_maps=maps, variance=dict.fromkeys(modalities, 0.05), typical_scaling={}
        )
        about = {"model": name, "modalities": modalities, "spacing_mm": 2.0, "params": SMALL[name]}
        checkpoint.save(folder, module, checkpoint.ModelConfig(**about, statistics=statistics))
        return folder

    return save
