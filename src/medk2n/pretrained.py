"""Weights of an encoder's trunk, and adapters to it, as folders in the Hugging Face format.

    config.json              what the trunk is            adapter_config.json          rank and layers
    model.safetensors        its weights                  adapter_model.safetensors    what was learned on top

A trunk may lie inside a larger model (SAM2 as it is published). Nothing is downloaded: a hub id is looked up among what
was downloaded before.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medk2n.errors import ConfigError
from medk2n.io.atomic import atomic_write, sha256_file, write_json
from medk2n.io.door import door, read_text
from medk2n.models.medk2n_parts.encoders.hiera import ADAPTED, SIZES, HieraEncoder, Params, trunk_config

if TYPE_CHECKING:
    from torch import Tensor, nn

CONFIG, WEIGHTS = "config.json", "model.safetensors"
ADAPTER_CONFIG, ADAPTER = "adapter_config.json", "adapter_model.safetensors"
_FIRST = "patch_embed.projection.weight"
_SHAPE = (
    "embed_dim_per_stage",
    "blocks_per_stage",
    "num_attention_heads_per_stage",
    "window_size_per_stage",
    "global_attention_blocks",
    "window_positional_embedding_background_size",
)


def find_trunk(params: Params) -> Path:
    """The weight file that `params` name, of which no more than its config.json is read.

    Raises:
        ConfigError: not there, or of another size.
    """
    folder = _folder(params.weights or "")
    _check_size(folder / CONFIG, params.size)
    path = folder / WEIGHTS
    if not path.is_file():
        raise ConfigError(f"weights: {path} is missing; copy the folder again, or convert its weights to safetensors")
    return path


def read_trunk(params: Params) -> tuple[dict[str, "Tensor"], str]:
    """The weights that `params` name, as a trunk names them, and the SHA-256 of their file.

    Raises:
        ConfigError: not there, of another size, altered, or not such weights.
    """
    from safetensors.torch import load_file

    path = find_trunk(params)
    digest = sha256_file(path)
    if params.sha256 not in ("", digest):
        raise ConfigError(f"weights: {path} has SHA-256 {digest}, expected {params.sha256}; give the file of that hash")
    with door(ConfigError, f"weights: {path} is not a safetensors file", "copy it again"):
        tensors = load_file(path)
    prefix = next((name.removesuffix(_FIRST) for name in tensors if name.endswith(_FIRST)), None)
    if prefix is None:
        raise ConfigError(f"weights: {path} holds no Hiera trunk (no {_FIRST}); give SAM2's, or recipes/pretrain.py's")
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}, digest


def save_trunk(folder: Path, trunk: "nn.Module") -> str:
    """Write a trunk so that `weights:` and `transformers` can read it; returns the SHA-256 of its weights."""
    from safetensors.torch import save as to_bytes

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in trunk.state_dict().items()}
    raw = to_bytes(tensors, metadata={"format": "pt"})
    atomic_write(folder / WEIGHTS, lambda path: path.write_bytes(raw))
    write_json(folder / CONFIG, trunk.config.to_dict() | {"architectures": [type(trunk).__name__]})
    return sha256_file(folder / WEIGHTS)


def save_adapter(folder: Path, encoder: HieraEncoder) -> None:
    """Write the adapters of an encoder alone, as `peft` has them.

    Raises:
        ConfigError: it has none.
    """
    from safetensors.torch import save as to_bytes

    params, adapters = encoder.params, encoder.adapters()
    if not adapters:
        raise ConfigError(f"no adapter to save: the encoder was trained with adapt: {params.adapt}, or they are merged")
    tensors = {f"base_model.model.{_plain(name)}": p.detach().cpu().contiguous() for name, p in adapters.items()}
    raw = to_bytes(tensors, metadata={"format": "pt", "base_sha256": params.sha256})
    atomic_write(folder / ADAPTER, lambda path: path.write_bytes(raw))
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": params.weights,
        "r": params.rank,
        "lora_alpha": 2 * params.rank,
        "target_modules": ADAPTED,
        "inference_mode": True,
    }
    write_json(folder / ADAPTER_CONFIG, config)


def load_adapter(folder: Path, encoder: HieraEncoder) -> None:
    """Put saved adapters into an encoder that has the trunk they were learned on.

    Raises:
        ConfigError: not there, of another rank or size, or learned on other weights.
    """
    import torch
    from safetensors import safe_open

    path = folder / ADAPTER
    refused = door(ConfigError, f"{path}: no adapter can be read", "give a folder that save_adapter wrote")
    with refused, safe_open(path, "pt") as file:
        base = (file.metadata() or {}).get("base_sha256", "")
        tensors = {name.removeprefix("base_model.model."): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if base != encoder.params.sha256:
        raise ConfigError(f"{path} was learned on weights of SHA-256 {base}, the encoder has {encoder.params.sha256}")
    own = {_plain(name): p for name, p in encoder.adapters().items()}
    if {n: p.shape for n, p in own.items()} != {n: t.shape for n, t in tensors.items()}:
        raise ConfigError(f"{path}: its matrices are not those of the encoder; give the same size and rank")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


def _plain(name: str) -> str:
    """Without the name that an adapter has while it is in memory."""
    return name.replace(".default.", ".")


def _folder(weights: str) -> Path:
    """Where weights lie: a folder, or what a hub id was downloaded to."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if Path(weights).is_dir():
        return Path(weights)
    try:
        found = [try_to_load_from_cache(weights, name) for name in (CONFIG, WEIGHTS)]
    except HFValidationError:
        found = [None]
    if all(isinstance(path, str) for path in found):
        return Path(str(found[0])).parent
    raise ConfigError(
        f"weights: {weights!r} is neither a folder nor a hub id that was downloaded before, and nothing is downloaded "
        f"here; where there is a network, `hf download {weights} --local-dir FOLDER` fetches it; then give that folder"
    )


def _check_size(path: Path, size: str) -> None:
    """Hold the trunk that a config.json describes against a size."""
    from transformers import Sam2HieraDetConfig

    with door(ConfigError, f"weights: {path} cannot be read", "expected a Hugging Face config.json"):
        trunk = _inside(json.loads(read_text(path)))
        if trunk is None:
            raise ConfigError(
                f"weights: {path} describes no Hiera trunk; give SAM2's, or what recipes/pretrain.py made"
            )
        found = Sam2HieraDetConfig(**{name: trunk[name] for name in (*_SHAPE, "hidden_size") if name in trunk})
    fits = [name for name in SIZES if all(getattr(found, s) == getattr(trunk_config(name), s) for s in _SHAPE)]
    if size not in fits:
        held = f"size {fits[0]}" if fits else f"no known size ({found.blocks_per_stage} blocks)"
        raise ConfigError(f"weights: {path} describes a Hiera of {held}, expected size {size}; set encoder.size to it")


def _inside(described: Any) -> dict[str, Any] | None:
    """The trunk's part of a model's configuration."""
    if not isinstance(described, dict):
        return None
    if described.get("model_type") == "sam2_hiera_det_model":
        return described
    return next((found for part in described.values() if (found := _inside(part)) is not None), None)
