"""The synthesizer's body: one pass at full resolution over all frames, each as far as its presence map lets it in.

Frame i enters as P_i x_i, three neighbouring slices, and P_i itself, a map in [0, 1]. Absent, left out and gated out
are all P_i = 0, bit for bit: what such a frame holds is never read. (Frames that are encoded one by one and met as
features lose 0.9 dB to one pass that sees them together: docs/lab-log.md.)

Shapes: p passes, m modalities, s slices.
"""

import torch
from torch import Tensor, nn

from medk2n.models.layers.blocks import FaintConv2d, scale_for_gelu
from medk2n.models.layers.unet_trunk import Pyramid, Trunk


class PresenceTrunk(nn.Module):
    """A U-Net trunk over P_i x_i and P_i.

    Args:
        m: modalities.
        slices: of a frame.
        widths: channels at strides 1, 2, 4, 8, 16.
        context: stride -> channels of what a frame encoder adds there; empty without one.
    """

    def __init__(self, m: int, slices: int, widths: tuple[int, ...], context: dict[int, int]) -> None:
        super().__init__()
        self.trunk = Trunk(m * slices + m, widths)
        of = dict(zip((1, 2, 4, 8, 16), widths, strict=True))
        self.join = nn.ModuleDict({str(s): FaintConv2d(c, of[s], 1) for s, c in context.items()})
        scale_for_gelu(self.join)

    def forward(self, images: Tensor, presence: Tensor, context: Pyramid | None = None) -> Tensor:
        """images (p, m, s, h, w), presence (p, m, h, w), h and w multiples of 16 -> features (p, c, h, w)."""
        there = presence[:, :, None]
        seen = torch.where(there > 0, images, 0.0) * there
        beside = {int(s): join(context[int(s)]) for s, join in self.join.items()} if context else None
        return self.trunk(torch.cat([seen.flatten(1, 2), presence], dim=1), beside)
