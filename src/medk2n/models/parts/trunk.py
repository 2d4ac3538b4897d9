"""The trunk: inputs seen together, voxel by voxel; features at every stride and an image of every modality."""

from torch import Tensor, nn
from torch.nn import functional

from medk2n.models.parts.blocks import ChannelNorm, FaintConv2d
from medk2n.models.parts.encoder import Pyramid

TRUNK_STRIDES = (1, 2, 4, 8, 16)


class Block(nn.Module):
    """Two 3 x 3 convolutions beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = FaintConv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x (d, c, h, w) -> the same shape."""
        return x + self.conv2(functional.gelu(self.conv1(functional.gelu(self.norm(x)))))


class Trunk(nn.Module):
    """Down and up again with residual blocks; stride 1, where a U-Net spends most time, gets few channels.

    Sub-pixels of stride 2 are laid out beside what stride 1 itself saw.
    """

    def __init__(self, inputs: int, outputs: int, channels: dict[int, int]) -> None:
        super().__init__()
        coarse, finer = TRUNK_STRIDES[2:], TRUNK_STRIDES[-2:0:-1]
        self.fine = nn.Conv2d(inputs, channels[1], 3, padding=1)
        self.stem = nn.Conv2d(channels[1], channels[2], 4, stride=2, padding=1)
        self.down = nn.ModuleDict(
            {str(s): nn.Conv2d(channels[s // 2], channels[s], 3, stride=2, padding=1) for s in coarse}
        )
        self.stage = nn.ModuleDict({str(s): Block(channels[s]) for s in TRUNK_STRIDES[1:]})
        self.reduce = nn.ModuleDict({str(s): FaintConv2d(channels[2 * s], channels[s], 1) for s in finer})
        self.block = nn.ModuleDict({str(s): Block(channels[s]) for s in finer})
        self.norm0 = ChannelNorm(channels[1])
        self.norm2, self.norm1 = ChannelNorm(channels[2]), ChannelNorm(channels[1])
        self.lay_out = nn.Conv2d(channels[2], 4 * channels[1], 1)
        self.last = nn.Conv2d(channels[1], channels[1], 3, padding=1)
        self.out = nn.Conv2d(channels[1], outputs, 1)

    def forward(self, x: Tensor) -> tuple[Pyramid, Tensor]:
        """x (d, inputs, h, w), h and w multiples of 16 -> features at strides 2 to 16, images (d, outputs, h, w)."""
        fine = self.fine(x)
        pyramid = {2: self.stage["2"](self.stem(functional.gelu(self.norm0(fine))))}
        for s in TRUNK_STRIDES[2:]:
            pyramid[s] = self.stage[str(s)](self.down[str(s)](pyramid[s // 2]))
        x = pyramid[16]
        features = {16: x}
        for s in TRUNK_STRIDES[-2:0:-1]:
            key = str(s)
            x = self.block[key](functional.interpolate(self.reduce[key](x), scale_factor=2.0) + pyramid[s])
            features[s] = x
        x = functional.pixel_shuffle(self.lay_out(self.norm2(x)), 2) + fine
        return features, self.out(functional.gelu(self.last(functional.gelu(self.norm1(x)))))
