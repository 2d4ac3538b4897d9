"""A saved model: a folder of safetensors + JSON, never pickle.

    config.json         what the model is, knows and learned from (no torch needed to read it), hashed itself
    model.safetensors   the weights
    README.md           the model card
    reference/unet/     the plain U-Net that was trained interleaved with it

The ordered modality list belongs to the checkpoint, so that adding a row to the vocabulary
never shifts an index.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from medk2n.config.overrides import complaint
from medk2n.config.params import read_params
from medk2n.errors import CheckpointError, ConfigError, UnknownNameError
from medk2n.io.atomic import atomic_write, sha256_file
from medk2n.io.door import door, read_text
from medk2n.io.sealed import unseal, write_sealed
from medk2n.registry import resolve

if TYPE_CHECKING:
    from torch import Tensor, nn

FORMAT = 3
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
REFERENCE_UNET = Path("reference") / "unet"
BEGUN = "begun_from"
"""In `training`: the model that a run began from, with its own `training`, and so on."""
BUNDLED = Path(__file__).parent / "weights"
_SEAL = "config_sha256"  # in the file alone
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
_LARGEST_SIZE = 8192
_LARGEST_VALUE = 1e12
_LARGEST_WEIGHT = 1e6
_MOST_WEIGHTS = 8 * 2**30


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What the training subjects said, in scaled units inside the foreground.

    Attributes:
        affine_maps: target -> source -> (slope, intercept, mean squared error).
        variance: modality -> error of predicting its mean.
        typical_scaling: modality -> (low, high), the unit of a target that was never acquired.
    """

    affine_maps: Mapping[str, Mapping[str, tuple[float, float, float]]]
    variance: Mapping[str, float]
    typical_scaling: Mapping[str, tuple[float, float]]

    __pydantic_config__: ClassVar = _STRICT


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything about a checkpoint but its weights.

    Attributes:
        model: component name in `medk2n.models`.
        modalities: what the indices of the model mean; sorted by name.
        spacing_mm: in-plane spacing of the working grid.
        params: of the model component.
        statistics: of the training subjects.
        training: data, seed, cost and hardware, as plain data.
        licence: of the weights.
        sha256: of the weight file.
    """

    model: str
    modalities: tuple[str, ...]
    spacing_mm: Annotated[float, Field(gt=0, le=50)]
    params: Mapping[str, Any]
    statistics: Statistics
    training: Mapping[str, Any] = field(default_factory=dict)
    licence: str = "Apache-2.0"
    sha256: str = ""
    format: int = FORMAT

    __pydantic_config__: ClassVar = _STRICT


def learned_from(config: ModelConfig, folder: str) -> set[str]:
    """Ids of the subjects of a data folder, by its name, that a model learned from, or a model that it began from."""
    found: set[str] = set()
    training: Mapping[str, Any] | None = config.training
    while training:
        found |= set(training.get("subject_ids", {}).get(folder, []))
        training = training.get(BEGUN, {}).get("training")
    return found


def bundled() -> list[str]:
    """Names of the checkpoints inside the package."""
    return sorted(p.parent.name for p in BUNDLED.glob(f"*/{CONFIG}"))


def find_model(name_or_folder: str | Path) -> Path:
    """The folder of a bundled model or of a path.

    Raises:
        UnknownNameError: neither a bundled name nor a folder with a config.
    """
    inside = BUNDLED / str(name_or_folder)
    if str(name_or_folder) in bundled():
        return inside
    folder = Path(name_or_folder)
    if (folder / CONFIG).is_file():
        return folder
    if folder.is_dir():
        raise CheckpointError(f"{folder}: no {CONFIG} in it; expected a model folder written by `medk2n train`")
    raise UnknownNameError(
        f"no model {str(name_or_folder)!r}: give a bundled one ({', '.join(bundled()) or 'none installed'}) "
        "or a folder written by `medk2n train`"
    )


def read_config(folder: Path) -> ModelConfig:
    """Read config.json; imports no torch.

    Raises:
        CheckpointError: missing, altered, of another format, or with a field that cannot be.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; expected a model folder written by `medk2n train`")
    with door(CheckpointError, f"{path} is no model's description", "copy the model folder again"):
        text = read_text(path)
        data = json.loads(text)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise CheckpointError(
                f"{path} is not of format {FORMAT}; train again, install the medk2n that wrote it, or, of format 2, "
                "bring it up to date (recipes/upgrade.py)"
            )
        unseal(text, data, _SEAL)
        try:
            config = TypeAdapter(ModelConfig).validate_json(json.dumps(data), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            known = [field.name for kind in (ModelConfig, Statistics) for field in fields(kind)]
            raise ValueError(complaint(first["loc"], first["type"], first["msg"], known)) from error
        _refuse_giants("params", config.params, _LARGEST_SIZE)
        _refuse_giants("statistics", asdict(config.statistics), _LARGEST_VALUE)
    return config


def write_config(folder: Path, config: ModelConfig) -> None:
    """Write config.json with a hash of itself, so that no altered bit of it is taken for what was learned."""
    write_sealed(folder / CONFIG, asdict(config), _SEAL)


def _refuse_giants(name: str, values: Any, most: float) -> None:
    """Numbers that would take the machine, or give no number: none of those that a model needs is so large."""
    if isinstance(values, (int, float)) and not abs(values) <= most:
        raise ValueError(f"{name}: {values:g} is larger than any of a model")
    for part in values.values() if isinstance(values, dict) else values if isinstance(values, (list, tuple)) else ():
        _refuse_giants(name, part, most)


def save(folder: Path, module: "nn.Module", config: ModelConfig, *, half: bool = False) -> ModelConfig:
    """Write weights, then config with their hash and its own; each under a temporary name first.

    Args:
        half: store large tensors in 16 bits (what a package ships); they are read back as float32.

    Returns:
        The config with the hash filled in.
    """
    import torch
    from safetensors.torch import save as to_bytes

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, tensor in module.state_dict().items():
        small = tensor.dtype != torch.float32 or tensor.numel() < 256 or name.startswith("linear_maps")
        tensors[name] = tensor.detach().to("cpu", tensor.dtype if small or not half else torch.float16).contiguous()
    raw = to_bytes(tensors)
    atomic_write(folder / WEIGHTS, lambda path: path.write_bytes(raw))
    config = replace(config, sha256=sha256_file(folder / WEIGHTS))
    write_config(folder, config)
    return config


def build(config: ModelConfig) -> "nn.Module":
    """The module before it learned anything: what training moves requires a gradient, and nothing else does.

    Raises:
        ConfigError: params that the model component does not have.
    """
    import torch

    from medk2n.models._spec import Statistics as Neutral

    spec, m = resolve("models", config.model), len(config.modalities)
    with torch.random.fork_rng(devices=[]):  # the caller's random state is left alone
        return spec.build(read_params(spec.params, config.params), m, Neutral.neutral(m))


def load(folder: Path, *, device: str = "cpu") -> tuple["nn.Module", ModelConfig]:
    """The module in evaluation mode with its weights, verified against the hash in its config.

    Raises:
        CheckpointError: weights missing, altered, not finite, or not fitting the config.
    """
    from safetensors.torch import load as load_bytes

    config = read_config(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; copy the model folder again")
    with door(CheckpointError, f"{path} does not fit its {CONFIG}", "copy the model folder again"):
        if path.stat().st_size > _MOST_WEIGHTS:
            raise ValueError(f"it is larger than {_MOST_WEIGHTS // 2**30} GiB")
        raw = path.read_bytes()
        if hashlib.sha256(raw).hexdigest() != config.sha256:
            raise CheckpointError(f"{path} is not the file that {CONFIG} describes (SHA-256 differs); copy it again")
        tensors = {name: t.float() for name, t in load_bytes(raw).items()}
        _refuse_unsound(tensors)
        try:
            module = build(config)
        except (ConfigError, UnknownNameError) as error:
            raise ValueError(error) from error
        module.load_state_dict(tensors)
    return module.to(device).eval().requires_grad_(False), config


def _refuse_unsound(tensors: Mapping[str, "Tensor"]) -> None:
    """Weights that would give no number."""
    for name, tensor in tensors.items():
        if not (tensor.abs() <= _LARGEST_WEIGHT).all():  # NaN is refused too
            raise ValueError(f"{name} holds values that are not finite, or above {_LARGEST_WEIGHT:g}")
