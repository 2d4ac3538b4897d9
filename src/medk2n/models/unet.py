"""The honest baseline: a plain U-Net (Ronneberger 2015) on all modalities concatenated.

Absent modalities are zeros, a presence mask says which; all modalities come out at once.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medk2n.models._spec import ModelSpec, Prediction, Query, Statistics
from medk2n.models.layers.shared_passes import Passes, padded, stacked
from medk2n.models.layers.unet_trunk import SIZES, Trunk


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """Sizes: `widths` at strides 1, 2, 4, 8, 16, multiples of 8."""

    slices: int = 3
    widths: tuple[int, int, int, int, int] = (32, 48, 80, 128, 160)


class UNet(nn.Module):
    """A trunk and a 1 x 1 convolution; an image of every modality comes out, and starts at that modality's mean."""

    def __init__(self, params: Params, m: int, statistics: Statistics) -> None:
        super().__init__()
        self.params = params
        self.trunk = Trunk(m * params.slices + m, params.widths)
        self.out = nn.Conv2d(params.widths[0], m, 1)
        nn.init.zeros_(self.out.weight)
        self.out.bias.data.copy_(statistics.mean.diagonal())

    def images(self, images: Tensor, sources: Tensor) -> Tensor:
        """images (b, m, s, h, w) of which only `sources` (b, m) are read -> all modalities (b, m, h, w)."""
        h, w = images.shape[-2:]
        return self.out(self.trunk(padded(stacked(images, sources), 16)))[..., :h, :w]

    def forward(self, images: Tensor, query: Query, *, generator: torch.Generator | None = None) -> Prediction:
        """One image per query; queries that share sample and sources share one pass."""
        passes = Passes.of(query)
        everything = self.images(images[passes.sample], passes.sources)
        return Prediction(everything[passes.which, query.target])


COMPONENT = ModelSpec(name="unet", params=Params, build=UNet, sizes={"widths": SIZES}, every_target=True)
