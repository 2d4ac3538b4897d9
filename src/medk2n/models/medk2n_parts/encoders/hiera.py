"""SAM2's image encoder: Hiera (Ryali 2023; Ravi 2024), trained whole or adapted by LoRA (Hu 2021), LoRA+ (Hayou 2024).

The trunk is that of `transformers`, so its weights come and go in the Hugging Face format. A frame's three slices are
the three channels that it expects; which modality they show is said by FiLM on its patch embeddings.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from medk2n.errors import ConfigError
from medk2n.models.layers.blocks import ChannelNorm, Film
from medk2n.models.layers.unet_trunk import Pyramid
from medk2n.models.medk2n_parts.frame_encoder import EncoderSpec

if TYPE_CHECKING:
    from transformers import Sam2HieraDetConfig

LEVELS = (4, 8, 16, 32)
SLICES = 3
MEAN, DEVIATION = 0.449, 0.226
"""What SAM2 was trained on was brought to mean 0 and deviation 1 by these (means over its three colours)."""

ADAPTED = r".*\.(attn\.(qkv|proj)|mlp\.(proj_in|proj_out))"
"""The linear layers that get an adapter."""


@dataclass(frozen=True, slots=True)
class Size:
    """Of a trunk: channels and heads of the first stage (they double at each), blocks of the four stages, which blocks
    see the whole image, the windows of the others, and the grid of the learned positions."""

    width: int
    heads: int
    blocks: tuple[int, int, int, int]
    everywhere: tuple[int, ...]
    windows: tuple[int, int, int, int] = (8, 4, 14, 7)
    grid: tuple[int, int] = (7, 7)


SIZES = {
    "nano": Size(32, 1, (1, 2, 3, 1), (4, 5), windows=(8, 4, 8, 4)),  # ours, for a CPU
    "tiny": Size(96, 1, (1, 2, 7, 2), (5, 7, 9)),
    "small": Size(96, 1, (1, 2, 11, 2), (7, 10, 13)),
    "base_plus": Size(112, 2, (2, 3, 16, 3), (12, 16, 20), grid=(14, 14)),
    "large": Size(144, 2, (2, 6, 36, 4), (23, 33, 43), windows=(8, 4, 16, 8)),
}
"""Published with SAM2, but for the first (sam2/configs of facebookresearch/sam2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """Which Hiera, where its weights come from and how they are trained.

    Attributes:
        size: one of `SIZES`.
        weights: folder or hub id in the Hugging Face format; null starts from nothing.
        adapt: "full" trains every weight, "lora" adapters alone, "lora_plus" those with B learning faster than A.
        rank: of the adapters; what they add is scaled by 2.
        rate: learning rate of the trunk, or of A, relative to the run's.
        ratio: learning rate of B relative to A's, for "lora_plus" (Hayou 2024 advise 16).
        sha256: of the weight file that was read; recorded, and verified where it is given.
    """

    name: Literal["hiera"] = "hiera"
    size: Literal["nano", "tiny", "small", "base_plus", "large"] = "nano"
    weights: str | None = None
    adapt: Literal["full", "lora", "lora_plus"] = "full"
    rank: int = 8
    rate: float = 1.0
    ratio: float = 16.0
    sha256: str = ""

    def __post_init__(self) -> None:
        if self.adapt != "full" and not self.weights:
            raise ValueError(
                f"adapt: {self.adapt} needs weights to adapt, and random ones hold nothing; set weights to a folder or "
                "hub id in the Hugging Face format (SAM2's, or made by recipes/pretrain.py), or adapt: full"
            )
        if self.rank < 1 or self.rate <= 0 or self.ratio < 1:
            raise ValueError("expected rank and ratio of at least 1 and a rate above 0")


class HieraEncoder(nn.Module):
    """Hiera's four stages, each projected to the channels asked for.

    Weights that are to be read are NaN until `adopt` was called (or a checkpoint loaded): forgetting it shows.
    """

    strides = LEVELS

    def __init__(self, params: Params, m: int, slices: int, channels: dict[int, int], embedding: int) -> None:
        super().__init__()
        if slices != SLICES:
            raise ConfigError(f"slices: Hiera takes frames of {SLICES} slices, found {slices}")
        self.params = params
        self.trunk = build_trunk(params.size)
        widths = self.trunk.config.embed_dim_per_stage
        self.film = Film(embedding, widths[0])
        self.project = nn.ModuleDict(
            {
                str(s): nn.Sequential(nn.Conv2d(width, channels[s], 1), ChannelNorm(channels[s]))
                for s, width in zip(LEVELS, widths, strict=True)
            }
        )
        if params.weights:
            for parameter in self.trunk.parameters():
                nn.init.constant_(parameter, torch.nan)
        if params.adapt != "full":
            add_adapters(self.trunk, params.rank)

    def forward(self, frames: Tensor, modality: Tensor, e: Tensor) -> Pyramid:
        """As the contract says; frames are padded to multiples of 32, and all levels but stride 32 cropped back."""
        h, w = frames.shape[-2:]
        pixels = functional.pad(frames, (0, -w % LEVELS[-1], 0, -h % LEVELS[-1]))
        patches = self.trunk.patch_embed((pixels - MEAN) / DEVIATION)
        patches = self.film(patches.permute(0, 3, 1, 2), e).permute(0, 2, 3, 1)
        stages = run_blocks(self.trunk, patches)
        pyramid = {s: self.project[str(s)](x.permute(0, 3, 1, 2)) for s, x in zip(LEVELS, stages, strict=True)}
        return {s: x[..., : -(-h // s), : -(-w // s)] for s, x in pyramid.items()}

    def adopt(self, weights: Mapping[str, Tensor], sha256: str = "") -> None:
        """Take over the weights of a trunk, named as in `transformers`, and record the hash of their file.

        Raises:
            ConfigError: a weight missing, left over, or of another shape.
        """
        own = {
            name.replace(".base_layer.", "."): p for name, p in self.trunk.named_parameters() if ".lora_" not in name
        }
        wrong = sorted(own.keys() ^ weights.keys()) or [n for n, p in own.items() if p.shape != weights[n].shape]
        if wrong:
            raise ConfigError(
                f"weights: {len(wrong)} missing, left over or of another shape, {wrong[0]} the first; "
                f"give those of a whole Hiera of size {self.params.size}"
            )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(weights[name])
        self.params = replace(self.params, sha256=sha256)

    def adapters(self) -> dict[str, nn.Parameter]:
        """The adapters' matrices by their names in the trunk; none once they are merged, or where all is trained."""
        return {name: p for name, p in self.trunk.named_parameters() if ".lora_" in name}

    def merge(self) -> None:
        """Put what the adapters learned into the layers that they adapt, and drop them: they cost nothing any more."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = [(name, part) for name, part in self.trunk.named_modules() if isinstance(part, BaseTunerLayer)]
        for name, layer in layers:
            layer.merge()
            parent, _, leaf = name.rpartition(".")
            setattr(self.trunk.get_submodule(parent), leaf, layer.get_base_layer())

    def parameter_groups(self) -> Iterator[dict[str, Any]]:
        """The trunk's parameters as groups of an optimiser; `scale` is relative to the run's learning rate."""
        rate = self.params.rate
        if self.params.adapt == "full":
            trunk = list(self.trunk.parameters())
            yield {"params": [p for p in trunk if p.ndim > 1], "scale": rate}
            yield {"params": [p for p in trunk if p.ndim == 1], "scale": rate, "weight_decay": 0.0}
            return
        ratio = self.params.ratio if self.params.adapt == "lora_plus" else 1.0
        for letter, scale in (("A", rate), ("B", rate * ratio)):
            matrices = [p for name, p in self.adapters().items() if f".lora_{letter}." in name]
            yield {"params": matrices, "scale": scale, "weight_decay": 0.0}


def trunk_config(size: str) -> "Sam2HieraDetConfig":
    """Of a size, as `transformers` has it."""
    from transformers import Sam2HieraDetConfig

    choice = SIZES[size]
    return Sam2HieraDetConfig(
        hidden_size=choice.width,
        num_attention_heads=choice.heads,
        blocks_per_stage=list(choice.blocks),
        embed_dim_per_stage=[choice.width * 2**k for k in range(4)],
        num_attention_heads_per_stage=[choice.heads * 2**k for k in range(4)],
        window_size_per_stage=list(choice.windows),
        global_attention_blocks=list(choice.everywhere),
        window_positional_embedding_background_size=list(choice.grid),
    )


def build_trunk(size: str) -> nn.Module:
    """A `Sam2HieraDetModel` with random weights."""
    from transformers.models.sam2.modeling_sam2 import Sam2HieraDetModel

    return Sam2HieraDetModel(trunk_config(size))


def run_blocks(trunk: nn.Module, patches: Tensor) -> list[Tensor]:
    """Patch embeddings (f, h / 4, w / 4, c) -> what each stage ends with, (f, h / s, w / s, c_s) for s in `LEVELS`.

    `Sam2HieraDetModel.forward` without its first line, since that is where the modality comes in.
    """
    h, w = patches.shape[1:3]
    window = trunk.pos_embed_window
    positions = functional.interpolate(trunk.pos_embed, size=(h, w), mode="bicubic")
    positions = positions + window.tile(1, 1, h // window.shape[2], w // window.shape[3])
    x = patches + positions.permute(0, 2, 3, 1)
    stages = []
    for k, block in enumerate(trunk.blocks):
        x = block(x)
        if k in trunk.stage_ends:
            stages.append(x)
    return stages


def add_adapters(trunk: nn.Module, rank: int) -> None:
    """Give the `ADAPTED` layers of a trunk low-rank adapters, which add nothing at first; all else is frozen."""
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=ADAPTED), trunk)


COMPONENT = EncoderSpec(name="hiera", params=Params, build=HieraEncoder)
