"""The joint pass: all frames that were let in, at once (docs/model.md, "Why a joint pass").

Frames that are encoded one by one can only be compared through what the encoder kept of them, and K frames cost K
passes. So one pass sees the frames of a set together. It proposes an image of every modality, is taught by all of them
at once, and is shared by all targets that let in the same frames. What is done per target builds on it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from medk2n.models.parts.blocks import ChannelNorm, scale_for_gelu
from medk2n.models.parts.encoder import STRIDES, Pyramid
from medk2n.models.parts.trunk import TRUNK_STRIDES, Trunk


@dataclass(frozen=True, slots=True)
class Proposals:
    """An image of every modality by every pass that was made.

    Attributes:
        passes: (d, 1 + m), sample and members.
        images: (d, m, h, w).
    """

    passes: Tensor
    images: Tensor


@dataclass(frozen=True, slots=True)
class Seen:
    """What the joint pass shows q queries.

    Attributes:
        context: stride -> (q, c, h / stride, w / stride), for the decoder.
        proposal: (q, h, w), of the query's target.
        proposals: what they are taken from.
    """

    context: Pyramid
    proposal: Tensor
    proposals: Proposals

    def blend(self, rows: Tensor, other: "Seen", share: Tensor) -> "Seen":
        """Some rows moved towards what another sight of all rows shows, as far as share (rows, h, w) says."""
        context = {}
        for s, mine in self.context.items():
            step = functional.avg_pool2d(share[:, None], s) * (other.context[s] - mine)[rows]
            context[s] = mine.index_add(0, rows, step)
        proposal = self.proposal.index_add(0, rows, share * (other.proposal - self.proposal)[rows])
        return Seen(context, proposal, self.proposals)


class JointPass(nn.Module):
    """A trunk over the images of all modalities, 0 where one is no member, and a channel each that says which are.

    Args:
        slices: of a frame.
        widths: channels of the trunk at strides 1, 2, 4, 8, 16.
        channels: stride -> channels that the decoder wants.
        mean: (m,), scaled, of each modality.
    """

    def __init__(self, slices: int, widths: tuple[int, ...], channels: dict[int, int], mean: Tensor) -> None:
        super().__init__()
        m = len(mean)
        self.trunk = Trunk(m * slices + m, widths, mean)
        of = dict(zip(TRUNK_STRIDES, widths, strict=True))
        self.project = nn.ModuleDict(
            {str(s): nn.Sequential(ChannelNorm(of[s]), nn.Conv2d(of[s], channels[s], 1)) for s in STRIDES}
        )
        scale_for_gelu(self.project)

    def forward(self, images: Tensor, sample: Tensor, members: Tensor, target: Tensor) -> Seen:
        """images (b, m, s, h, w), h and w multiples of 16; sample, target (q,), members (q, m) bool.

        The trunk learns from its own proposals alone: what is built on it reads its features without a gradient.
        With the gradients of the heads it learned more slowly (docs/lab-log.md).
        """
        features, proposals, which = self._run(images, sample, members)
        context = {s: self.project[str(s)](features[s].detach())[which] for s in STRIDES}
        return Seen(context, proposals.images[which, target], proposals)

    def propose(self, images: Tensor, sample: Tensor, members: Tensor) -> Proposals:
        """The trunk alone; shapes as for `forward`."""
        return self._run(images, sample, members)[1]

    def _run(self, images: Tensor, sample: Tensor, members: Tensor) -> tuple[Pyramid, Proposals, Tensor]:
        """Features and images of every pass, and the pass (q,) of every query."""
        passes, which = torch.cat([sample[:, None], members.long()], dim=1).unique(dim=0, return_inverse=True)
        present = passes[:, 1:] > 0
        seen = torch.where(present[:, :, None, None, None], images[passes[:, 0]], 0.0)
        mask = present[:, :, None, None].to(images.dtype).expand(-1, -1, *images.shape[-2:])
        features, proposed = self.trunk(torch.cat([seen.flatten(1, 2), mask], dim=1))
        return features, Proposals(passes, proposed), which
