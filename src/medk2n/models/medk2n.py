"""Med-K2N: any K modalities of a study in, any N out (arXiv 2510.02815; docs/model.md for how it is built here).

Every frame is encoded once and shared by all targets: K light encodes, K N light fusions, one joint pass for each set
of frames that targets let in (usually one), N light decodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medk2n.errors import ConfigError
from medk2n.models._spec import ModelSpec, Prediction, Query, Statistics
from medk2n.models.parts.base import LinearMaps
from medk2n.models.parts.blocks import scale_for_gelu
from medk2n.models.parts.decoder import Decoder, TaskHeadNet
from medk2n.models.parts.encoder import FUSED_STRIDES, STRIDES
from medk2n.models.parts.encoders import conv
from medk2n.models.parts.joint import JointPass, Proposals, Seen
from medk2n.models.parts.multiscale import MultiScaleNet
from medk2n.models.parts.multiscale import Params as MultiScale
from medk2n.models.parts.sequence import Bounded, Control, Frames, Plan, ProgressiveFusion
from medk2n.models.parts.trunk import SIZES
from medk2n.registry import resolve

MULTIPLE = STRIDES[-1]
"""Frames are padded to multiples of the coarsest stride and cropped back."""

ENCODERS = "models/parts/encoders"


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """Sizes; every field travels with the checkpoint.

    Attributes:
        slices: neighbouring slices of a frame, odd.
        widths: channels of frames and decoder at strides 2, 4, 8, 16; multiples of 8.
        joint: channels of the joint pass at strides 1, 2, 4, 8, 16; multiples of 8.
        embedding: width of the modality embeddings.
        memory_slots: slots L of the memory bank of each target.
        encoder: of frames; one of `parts/encoders` with its own choices.
        multiscale: how the encoder's levels are mixed; None leaves them as they are.
    """

    slices: int = 3
    widths: tuple[int, int, int, int] = (24, 32, 48, 64)
    joint: tuple[int, int, int, int, int] = (24, 40, 72, 112, 144)
    embedding: int = 48
    memory_slots: int = 8
    encoder: Any = field(default=conv.Params(), metadata={"components": ENCODERS})
    multiscale: MultiScale | None = None


class MedK2N(nn.Module):
    """Encoder, progressive fusion, decoder and heads; modalities are indices into the checkpoint's list."""

    def __init__(self, params: Params, m: int, statistics: Statistics) -> None:
        super().__init__()
        channels = dict(zip((*STRIDES, 32), (*params.widths, params.widths[-1]), strict=True))
        self.params = params
        self.embeddings = nn.Parameter(torch.randn(m, params.embedding) * 0.5)
        self.encoder = self._encoder(params, m, channels)
        self.multiscale = None
        if params.multiscale is not None:
            self.multiscale = MultiScaleNet(params.multiscale, self.encoder.strides, channels)
        self.fusion = ProgressiveFusion(m, channels, params.embedding, params.memory_slots)
        self.linear_maps = LinearMaps(statistics)
        self.decoder = Decoder(channels, params.embedding)
        for part in (self.fusion, self.decoder):
            scale_for_gelu(part)
        self.joint = JointPass(params.slices, params.joint, channels, statistics.mean.diagonal())
        self.heads = TaskHeadNet(m, channels)

    @staticmethod
    def _encoder(params: Params, m: int, channels: dict[int, int]) -> nn.Module:
        """The encoder that the params name; what it finds below stride 16 needs the MultiScaleNet to come in."""
        spec = resolve(ENCODERS, params.encoder.name)
        encoder = spec.build(params.encoder, m, params.slices, channels, params.embedding)
        if params.multiscale is None and max(encoder.strides) > MULTIPLE:
            raise ConfigError(
                f"encoder {spec.name}: its level at stride {max(encoder.strides)} comes in by the MultiScaleNet, and "
                "multiscale is null; set multiscale to {scan: none}, {scan: raster} or {scan: spiral}"
            )
        return encoder

    def encode(self, images: Tensor, needed: Tensor) -> Frames:
        """Encode the needed frames of images (b, m, s, h, w); needed (b, m) bool. Others are never read."""
        row = torch.full(needed.shape, -1, dtype=torch.long, device=images.device)
        row[needed] = torch.arange(int(needed.sum()), device=images.device)
        modality = needed.nonzero()[:, 1]
        h, w = images.shape[-2:]
        images = torch.where(needed[:, :, None, None, None], images, 0.0)
        images = functional.pad(images, (0, -w % MULTIPLE, 0, -h % MULTIPLE))
        frames = images[needed]
        centre = frames[:, frames.shape[1] // 2]
        mask = (centre > 0).to(frames.dtype)[:, None]
        pyramid = self.encoder(frames, modality, self.embeddings[modality])
        if self.multiscale is not None:
            pyramid = self.multiscale(pyramid)
        inside = {s: functional.avg_pool2d(mask, s) for s in FUSED_STRIDES}
        return Frames(images, pyramid, centre, inside, modality, row)

    def decode(
        self,
        frames: Frames,
        query: Query,
        *,
        plan: Plan | None = None,
        control: Control | None = None,
        study: bool = False,
        generator: torch.Generator | None = None,
    ) -> Prediction:
        """Fuse and decode; the prediction is on the padded grid of the frames."""
        fused = self.fusion(
            frames,
            query,
            self.embeddings,
            self.linear_maps,
            plan=plan,
            control=control,
            study=study,
            generator=generator,
        )
        seen = self._look_at(frames, query, fused.members, fused.partial)
        features = self.decoder(fused.state, seen.context, self.embeddings[query.target])
        base = fused.base.linear()
        mean, log_variance = self.heads(features, base, seen.proposal, fused.quality, query.target)
        return Prediction(mean, log_variance, {"fused": fused, "seen": seen, "base": base})

    def propose(self, images: Tensor, query: Query) -> Proposals:
        """What the joint pass proposes from all sources of every query: images as for `forward`, proposals padded."""
        h, w = images.shape[-2:]
        images = functional.pad(images, (0, -w % MULTIPLE, 0, -h % MULTIPLE))
        return self.joint.propose(images, query.sample, query.sources)

    def _look_at(self, frames: Frames, query: Query, members: Tensor, partial: Sequence[Bounded]) -> Seen:
        """The joint pass over what every query let in; what it shows is linear in the share of each bounded frame."""
        if not partial:
            return self.joint(frames.images, query.sample, members, query.target)
        (rows, source, share), *others = partial
        more = members.index_put((rows, source), torch.ones_like(source, dtype=torch.bool))
        without = self._look_at(frames, query, members, others)
        return without.blend(rows, self._look_at(frames, query, more, others), share)

    def forward(self, images: Tensor, query: Query, *, generator: torch.Generator | None = None) -> Prediction:
        """images (b, m, s, h, w) scaled, 0 outside the foreground -> one image per query."""
        h, w = images.shape[-2:]
        needed = torch.zeros(images.shape[:2], dtype=torch.long, device=images.device)
        needed = needed.index_add(0, query.sample, query.sources.long()) > 0
        prediction = self.decode(self.encode(images, needed), query, generator=generator)
        return Prediction(prediction.mean[:, :h, :w], prediction.log_variance[:, :h, :w], prediction.extras)

    @torch.no_grad()
    def decide(self, images: Tensor, query: Query, control: Control | None = None) -> Plan:
        """A study's plan from some of its slices: images (slices, m, s, h, w), every target on every slice."""
        needed = torch.zeros(images.shape[:2], dtype=torch.long, device=images.device)
        needed = needed.index_add(0, query.sample, query.sources.long()) > 0
        frames = self.encode(images, needed)
        fused = self.fusion(frames, query, self.embeddings, self.linear_maps, control=control, study=True)
        return self.fusion.plan(fused, query)


_WIDTHS = ((24, 32, 48, 64), (32, 48, 64, 96), (48, 64, 96, 128))
COMPONENT = ModelSpec(name="medk2n", params=Params, build=MedK2N, sizes={"widths": _WIDTHS, "joint": SIZES})
