"""What a run on a card leaves: its state in files of at most 15 MB, and model folders."""

import argparse
import copy
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from learner import Learner, read_statistics
from loaded import Data

import medk2n
from medk2n import checkpoint
from medk2n.errors import ConfigError

MOST_BYTES, MOST_TOGETHER = 15_000_000, 60_000_000


def save_state(out: Path, learners: Sequence[Learner], facts: dict[str, Any]) -> None:
    """Write the state beside the old one, then in its place; files of at most 15 MB, 60 MB together where it can be.

    32-bit weights and averages where they fit, else 16-bit ones, else the averages alone.
    """
    kinds = {"weights": [one.module for one in learners], "averaged": [one.averaged for one in learners]}
    numbers = sum(p.numel() for modules in kinds.values() for m in modules for p in m.state_dict().values())
    half = 4 * numbers > MOST_TOGETHER
    if 2 * numbers > MOST_TOGETHER:
        del kinds["weights"]
    tensors = {
        f"{learner.name}.{kind}.{name}": (tensor.half() if half else tensor.float()).cpu().contiguous()
        for kind, modules in kinds.items()
        for learner, module in zip(learners, modules, strict=True)
        for name, tensor in module.state_dict().items()
    }
    out.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Tensor]] = [{}]
    for name, tensor in _pieces(tensors):
        if shards[-1] and sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes > MOST_BYTES - 100_000:
            shards.append({})
        shards[-1][name] = tensor
    parts = []
    for k, shard in enumerate(shards, 1):
        parts.append(out / f".state-{k}.part")
        save_file(shard, parts[-1])
    for old in out.glob("state-*.safetensors"):
        old.unlink()
    for k, part in enumerate(parts, 1):
        part.rename(out / f"state-{k}.safetensors")
    (out / "state.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _pieces(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Tensors by name, those that no file can hold in pieces: NAME#0, NAME#1 and so on, along the first axis."""
    for name, tensor in tensors.items():
        parts = tensor.chunk(math.ceil(tensor.nbytes / (MOST_BYTES // 2))) if tensor.nbytes > MOST_BYTES // 2 else ()
        yield from ((f"{name}#{k}", part.contiguous()) for k, part in enumerate(parts))
        if not parts:
            yield name, tensor


def _joined(pieces: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `_pieces` took apart."""
    found: dict[str, list[tuple[int, Tensor]]] = {}
    for name, tensor in pieces.items():
        whole, _, k = name.partition("#")
        found.setdefault(whole, []).append((int(k or 0), tensor))
    return {name: torch.cat([part for _, part in sorted(parts, key=lambda p: p[0])]) if len(parts) > 1 else parts[0][1]
            for name, parts in found.items()}  # fmt: skip


def load_state(folder: Path, learners: Sequence[Learner]) -> dict[str, Any]:
    """Weights and averages back; returns the facts.

    Raises:
        ConfigError: no state there, or of other networks.
    """
    try:
        facts = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder}: expected state.json and state-K.safetensors of an earlier run ({error})"
        ) from error
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("state-*.safetensors")):
        tensors |= load_file(path)
    tensors = _joined(tensors)
    for learner in learners:
        for kind, module in (("averaged", learner.averaged), ("weights", learner.module)):
            prefix = f"{learner.name}.{kind}."
            mine = {n.removeprefix(prefix): t.float() for n, t in tensors.items() if n.startswith(prefix)}
            mine = mine or {n: t for n, t in learner.averaged.state_dict().items()}  # a large state has no weights
            try:
                module.load_state_dict(mine)
            except RuntimeError as error:
                what = " ".join(str(error).split())[:160]
                raise ConfigError(f"{folder}: no weights of {learner.name} of these sizes ({what})") from error
    return facts


def save_models(asked: argparse.Namespace, data: Data, learners: Sequence[Learner], facts: Mapping[str, Any]) -> None:
    """Med-K2N in OUT/model and the U-Net in its reference/unet, as `medk2n train` leaves them, in 16 bits."""
    told = {k: str(v) if isinstance(v, Path) else v for k, v in vars(asked).items()}
    device = data.feed.device
    training = {
        "finished": True,
        "seed": asked.seed,
        "subjects": data.learned | {"digital": len(data.taken)},
        "steps": facts["steps"],
        "crops": facts["steps"] * asked.batch,
        "wall_minutes": round(facts["seconds"] / 60, 2),
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": asked.precision,
        "torch": torch.__version__,
        "medk2n": medk2n.__version__,
        "settings": told,
    }
    for one in learners:
        net = copy.deepcopy(one.averaged.net).cpu()
        config = checkpoint.ModelConfig(
            model=one.name,
            modalities=tuple(data.modalities),
            spacing_mm=1.5,
            params=json.loads(json.dumps(asdict(net.params))),
            statistics=read_statistics(asked.statistics, data.modalities)[1],
            licence=asked.licence,
            training=training | {"parameters": sum(p.numel() for p in net.parameters())},
        )
        folder = asked.out / "model" / (checkpoint.REFERENCE_UNET if one.name == "unet" else "")
        checkpoint.save(folder, net, config, half=True)
