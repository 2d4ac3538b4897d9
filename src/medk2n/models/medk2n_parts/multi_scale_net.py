"""MultiScaleNet: a top-down pyramid whose coarse levels are read as sequences.

It runs on every frame once, after the encoder, so all targets share what it finds.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from medk2n.errors import ConfigError
from medk2n.models.layers.blocks import ChannelNorm, FaintConv2d, scale_for_gelu
from medk2n.models.layers.unet_trunk import Pyramid
from medk2n.models.medk2n_parts.frame_encoder import CONTEXT_STRIDES
from medk2n.models.medk2n_parts.mamba import Backend, BothWays, resolve_backend
from medk2n.models.medk2n_parts.spiral import order

SCANNED = (8, 16, 32)
"""Where a scan pays: stride 4 has four times as many voxels as all of these together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """How levels are mixed.

    Attributes:
        scan: how a level is read as a sequence; "none" leaves the plain top-down pyramid (FPN, Lin 2017).
        backend: what runs the scan, "kernels" (CUDA), "torch" or "auto", which takes the kernels where they can run.
        state: size of the hidden state of every channel.
        head: channels that share a decay; divides twice the width of every level.
        ran: the backend that training ran on; recorded.
    """

    scan: Literal["none", "raster", "spiral"] = "spiral"
    backend: Backend = "auto"
    state: int = 16
    head: int = 16
    ran: str = ""


class MultiScaleNet(nn.Module):
    """From the coarsest stride to the finest: what is coarser is added, then the level is scanned.

    Args:
        strides: of the encoder's levels.
        channels: stride -> channels.

    Raises:
        ConfigError: widths that heads do not divide.
    """

    def __init__(self, params: Params, strides: tuple[int, ...], channels: dict[int, int]) -> None:
        super().__init__()
        self.params = params
        self.strides = strides
        finer = sorted(strides)[:-1]
        self.down = nn.ModuleDict({str(s): FaintConv2d(channels[2 * s], channels[s], 1) for s in finer})
        scanned = [s for s in reversed(SCANNED) if s in strides and params.scan != "none"]
        for s in scanned:
            if 2 * channels[s] % params.head:
                twice = f"{2 * channels[s]}, twice the width at stride {s}"
                raise ConfigError(f"multiscale: head: {params.head} does not divide {twice}")
        self.before = nn.ModuleDict({str(s): ChannelNorm(channels[s]) for s in scanned})
        self.scan = nn.ModuleDict({str(s): BothWays(channels[s], params.state, params.head) for s in scanned})
        self.norm = nn.ModuleDict({str(s): ChannelNorm(channels[s]) for s in CONTEXT_STRIDES})
        scale_for_gelu(self)

    def forward(self, pyramid: Pyramid) -> Pyramid:
        """Levels at the encoder's strides -> levels at 4, 8, 16, normalised."""
        mixed: Pyramid = {}
        for stride in sorted(self.strides, reverse=True):
            x = pyramid[stride]
            if 2 * stride in mixed:
                above = functional.interpolate(self.down[str(stride)](mixed[2 * stride]), scale_factor=2.0)
                x = x + above[..., : x.shape[2], : x.shape[3]]
            if str(stride) in self.scan:
                x = x + self._read(x, stride)
            mixed[stride] = x
        return {s: self.norm[str(s)](mixed[s]) for s in CONTEXT_STRIDES}

    def _read(self, x: Tensor, stride: int) -> Tensor:
        """What the sequence blocks of a level say, (f, c, h, w)."""
        forth, back = order(self.params.scan, x.shape[2], x.shape[3], x.device)
        backend = resolve_backend(self.params.backend, x.device)
        sequence = self.before[str(stride)](x).flatten(2).transpose(1, 2)[:, forth]
        said = self.scan[str(stride)](sequence, backend)[:, back]
        return said.transpose(1, 2).unflatten(2, x.shape[2:])
