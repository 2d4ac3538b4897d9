"""Med-K2N: any K modalities of a study in, any N out (arXiv 2510.02815; docs/model.md for how it is built here).

Every frame is encoded once and shared by all targets: K encodes, K N light fusions, N light decodes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from medk2n.models._spec import ModelSpec, Prediction, Query, Statistics
from medk2n.models.parts.base import LinearMaps, Proposals, Proposed
from medk2n.models.parts.blocks import scale_for_gelu
from medk2n.models.parts.decoder import Decoder, TaskHeadNet
from medk2n.models.parts.encoder import FUSED_STRIDES, STRIDES, ConvEncoder
from medk2n.models.parts.sequence import Control, Frames, Plan, ProgressiveFusion

MULTIPLE = STRIDES[-1]
"""Frames are padded to multiples of the coarsest stride and cropped back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """Sizes; every field travels with the checkpoint.

    Attributes:
        slices: neighbouring slices of a frame, odd.
        widths: channels at strides 2, 4, 8, 16; multiples of 8.
        embedding: width of the modality embeddings.
        memory_slots: slots L of the memory bank of each target.
    """

    slices: int = 3
    widths: tuple[int, int, int, int] = (40, 64, 96, 128)
    embedding: int = 48
    memory_slots: int = 8


class MedK2N(nn.Module):
    """Encoder, progressive fusion, decoder and heads; modalities are indices into the checkpoint's list."""

    def __init__(self, params: Params, m: int, statistics: Statistics) -> None:
        super().__init__()
        channels = dict(zip(STRIDES, params.widths, strict=True))
        self.params = params
        self.embeddings = nn.Parameter(torch.randn(m, params.embedding) * 0.5)
        self.encoder = ConvEncoder(m, params.slices, channels, params.embedding)
        self.fusion = ProgressiveFusion(m, channels, params.embedding, params.memory_slots)
        self.linear_maps = LinearMaps(statistics)
        self.proposals = Proposals(m, channels[2])
        self.decoder = Decoder(channels, params.embedding)
        scale_for_gelu(self)  # before the heads, which start at zero
        for stem in self.encoder.stem:
            nn.init.uniform_(stem.bias, -1.0, 1.0)  # a reference beside which a channel norm keeps brightness
        self.heads = TaskHeadNet(m, channels, start_log_variance=-4.6)

    def encode(self, images: Tensor, needed: Tensor) -> Frames:
        """Encode the needed frames of images (b, m, s, h, w); needed (b, m) bool. Others are never read."""
        row = torch.full(needed.shape, -1, dtype=torch.long, device=images.device)
        row[needed] = torch.arange(int(needed.sum()), device=images.device)
        modality = needed.nonzero()[:, 1]
        frames = images[needed]
        h, w = frames.shape[-2:]
        frames = functional.pad(frames, (0, -w % MULTIPLE, 0, -h % MULTIPLE))
        centre = frames[:, frames.shape[1] // 2]
        mask = (centre > 0).to(frames.dtype)[:, None]
        pyramid = self.encoder(
            frames.contiguous(memory_format=torch.channels_last), modality, self.embeddings[modality]
        )
        inside = {s: functional.avg_pool2d(mask, s) for s in FUSED_STRIDES}
        return Frames(pyramid, centre, inside, modality, row)

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
        proposed = self._propose(frames, query)
        fused = self.fusion(
            frames,
            query,
            self.embeddings,
            self.linear_maps,
            proposed,
            plan=plan,
            control=control,
            study=study,
            generator=generator,
        )
        features = self.decoder(fused.state, self.embeddings[query.target])
        base = fused.base
        mean, log_variance, gains = self.heads(features, base.linear(), base.correction(), query.target)
        return Prediction(mean, log_variance, {"fused": fused, "gains": gains, "proposed": proposed, "frames": frames})

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
        proposed = self._propose(frames, query)
        fused = self.fusion(frames, query, self.embeddings, self.linear_maps, proposed, control=control, study=True)
        return self.fusion.plan(fused, query)

    def _propose(self, frames: Frames, query: Query) -> Proposed:
        """In training every frame is taught all targets; else only what is asked is proposed."""
        every = torch.arange(len(self.embeddings), device=query.target.device)
        targets = every if self.training else query.target.unique()
        return self.proposals(frames.pyramid[2], frames.centre, frames.modality, targets, self.linear_maps)


COMPONENT = ModelSpec(name="medk2n", params=Params, build=MedK2N)
