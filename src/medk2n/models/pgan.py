"""pGAN (Dar 2019): a conditional adversarial network with pixel-wise and perceptual losses.

A residual generator (Johnson 2016) on neighbouring slices and a discriminator that sees the condition beside the
image, with least-squares adversarial, pixel-wise and perceptual losses (losses/papers/pgan.py). The paper trains one
network a task; here one serves all: absent modalities are zeros, a presence mask says which, and all modalities come
out at once. No VGG16 is used: the perceptual loss compares the discriminator's own features (docs/baselines.md).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from medk2n.models._spec import ModelSpec, Prediction, Query, Statistics
from medk2n.models.layers.blocks import ChannelNorm
from medk2n.models.layers.patch_critic import PatchCritic
from medk2n.models.layers.shared_passes import Passes, padded, stacked


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """Sizes.

    Attributes:
        slices: neighbouring slices of a frame, odd.
        width: channels of the generator at stride 1 (64 in the paper), twice as many at 2, four times at 4.
        blocks: residual blocks at stride 4, as many as in the paper.
        critic: channels of the discriminator at stride 2 (64 in the paper).
    """

    slices: int = 3
    width: int = 24
    blocks: int = 9
    critic: int = 24


class Step(nn.Sequential):
    """Convolution, norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1) -> None:
        conv = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2)
        super().__init__(conv, ChannelNorm(outputs), nn.ReLU())


class Residual(nn.Module):
    """Two convolutions beside the identity, no activation after the sum (Johnson 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        second = nn.Conv2d(channels, channels, 3, padding=1)
        self.body = nn.Sequential(Step(channels, channels, 3), second, ChannelNorm(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class PGAN(nn.Module):
    """The generator: what is saved."""

    def __init__(self, params: Params, m: int, statistics: Statistics) -> None:
        super().__init__()
        self.params = params
        c = params.width
        self.down = nn.Sequential(
            Step(m * params.slices + m, c, 7), Step(c, 2 * c, 3, stride=2), Step(2 * c, 4 * c, 3, stride=2)
        )
        self.blocks = nn.Sequential(*(Residual(4 * c) for _ in range(params.blocks)))
        self.up = nn.ModuleList([Step(4 * c, 2 * c, 3), Step(2 * c, c, 3)])
        self.out = nn.Conv2d(c, m, 7, padding=3)
        nn.init.zeros_(self.out.weight)
        self.out.bias.data.copy_(statistics.mean.diagonal())

    def images(self, images: Tensor, sources: Tensor) -> Tensor:
        """images (p, m, s, h, w) of which only `sources` (p, m) are read -> all modalities (p, m, h, w)."""
        h, w = images.shape[-2:]
        x = padded(stacked(images, sources), 4)
        x = self.blocks(self.down(x.contiguous(memory_format=torch.channels_last)))
        for stage in self.up:
            x = stage(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.out(x)[..., :h, :w]

    def forward(self, images: Tensor, query: Query, *, generator: torch.Generator | None = None) -> Prediction:
        """One image per query; queries that share sample and sources share one pass."""
        passes = Passes.of(query)
        return Prediction(self.images(images[passes.sample], passes.sources)[passes.which, query.target])


class Critic(nn.Module):
    """D(x, y): sees the sources that the generator was given beside the image."""

    def __init__(self, params: Params, m: int) -> None:
        super().__init__()
        self.patches = PatchCritic(m, m * params.slices + m, params.critic)

    def forward(self, images: Tensor, query: Query, image: Tensor) -> list[Tensor]:
        """images (b, m, s, h, w), image (q, h, w), real or synthetic -> features of all levels, the scores last."""
        return self.patches(image, query.target, stacked(images[query.sample], query.sources))


COMPONENT = ModelSpec(name="pgan", params=Params, build=PGAN, every_target=True, objective="pgan", adversary=Critic)
