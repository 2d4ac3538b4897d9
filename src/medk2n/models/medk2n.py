"""Med-K2N: any K modalities of a study in, any N out (arXiv 2510.02815; docs/model.md for how it is built here).

Modalities are frames. One pass of the synthesizer sees all frames at full resolution, each through its presence map;
progressive fusion decides frame by frame how far each is let in (`medk2n_parts/progressive_fusion.py`), and the heads
make every target from the pass. So what the weights let in is what the image is made of.

A decided study costs one pass for each set of frames that targets let in (usually one; two where a frame is in doubt),
whatever the number of targets.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrize import register_parametrization

from medk2n.errors import ConfigError
from medk2n.models._spec import ModelSpec, Prediction, Query, Statistics
from medk2n.models.layers.shared_passes import padded
from medk2n.models.layers.unet_trunk import SIZES, Pyramid
from medk2n.models.medk2n_parts.base_image import LinearMaps
from medk2n.models.medk2n_parts.control import Control, Plan
from medk2n.models.medk2n_parts.frame_encoder import CONTEXT_STRIDES, STRIDES
from medk2n.models.medk2n_parts.modality_embedding import ModalityEmbedding
from medk2n.models.medk2n_parts.multi_scale_net import MultiScaleNet
from medk2n.models.medk2n_parts.multi_scale_net import Params as MultiScale
from medk2n.models.medk2n_parts.presence_trunk import PresenceTrunk
from medk2n.models.medk2n_parts.progressive_fusion import Fused, Guidance, ProgressiveFusion, Scene
from medk2n.models.medk2n_parts.proposals import Proposals
from medk2n.models.medk2n_parts.task_head_net import TaskHeadNet
from medk2n.registry import resolve

MULTIPLE = STRIDES[-1]
"""Frames are padded to multiples of the coarsest stride and cropped back."""

ENCODERS = "models/medk2n_parts/encoders"
_PASS_PIXELS = {"cpu": 120_000}
"""Of one call of the trunk without gradient, by device: more passes are made in several calls, to spare memory."""
_ELSEWHERE = 8_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """Sizes and choices; every field travels with the checkpoint.

    Attributes:
        slices: neighbouring slices of a frame, odd.
        widths: channels of the synthesizer at strides 1, 2, 4, 8, 16; multiples of 8.
        embedding: width of the modality embeddings.
        text: width of the frozen text embeddings that they begin from; 0 has them learned alone.
        encoder: of frames, one of `medk2n_parts/encoders` with its own choices, whose features join the synthesizer at
            strides 4, 8 and 16; None has none.
        multiscale: how the encoder's levels are mixed; None leaves them as they are.
        channels: of the encoder at strides 2, 4, 8, 16; multiples of 8.
    """

    slices: int = 3
    widths: tuple[int, int, int, int, int] = (32, 48, 80, 128, 160)
    embedding: int = 32
    text: int = 0
    encoder: Any = field(default=None, metadata={"components": ENCODERS})
    multiscale: MultiScale | None = None
    channels: tuple[int, int, int, int] = (24, 32, 48, 64)


@dataclass(frozen=True, slots=True)
class MedK2NPrediction(Prediction):
    """Beside the images: how they came about.

    Attributes:
        fused: what was let in of every frame.
        slope: (q, m, h, w) what a change of each frame adds to the base image.
    """

    fused: Fused | None = None
    slope: Tensor | None = None


class MedK2N(nn.Module):
    """Synthesizer, heads and progressive fusion; modalities are indices into the checkpoint's list."""

    def __init__(self, params: Params, m: int, statistics: Statistics) -> None:
        super().__init__()
        self.params, self.m = params, m
        self.embeddings = nn.Parameter(torch.randn(m, params.embedding) * 0.5)
        if params.text:
            texts = torch.zeros(m, params.text) if statistics.texts is None else statistics.texts
            register_parametrization(self, "embeddings", ModalityEmbedding(texts, params.embedding))
        self.encoder, self.multiscale, context = None, None, {}
        if params.encoder is not None:
            channels = dict(zip((*STRIDES, 32), (*params.channels, params.channels[-1]), strict=True))
            context = {s: channels[s] for s in CONTEXT_STRIDES}
            self.encoder, self.multiscale = self._encoder(params, m, channels)
        self.trunk = PresenceTrunk(m, params.slices, params.widths, context)
        self.heads = TaskHeadNet(params.widths[0], params.embedding, statistics.mean.diagonal())
        self.fusion = ProgressiveFusion(m, params.embedding)
        self.linear_maps = LinearMaps(statistics)

    @staticmethod
    def _encoder(params: Params, m: int, channels: dict[int, int]) -> tuple[nn.Module, nn.Module | None]:
        """The encoder that the params name; what it finds below stride 16 needs the MultiScaleNet to come in."""
        spec = resolve(ENCODERS, params.encoder.name)
        encoder = spec.build(params.encoder, m, params.slices, channels, params.embedding)
        if params.multiscale is not None:
            return encoder, MultiScaleNet(params.multiscale, encoder.strides, channels)
        if max(encoder.strides) > MULTIPLE:
            raise ConfigError(
                f"encoder {spec.name}: its level at stride {max(encoder.strides)} comes in by the MultiScaleNet, and "
                "multiscale is null; set multiscale to {scan: none}, {scan: raster} or {scan: spiral}"
            )
        return encoder, None

    def scene(self, images: Tensor, needed: Tensor) -> Scene:
        """What is decided upon: images (b, m, s, h, w), of which only the needed (b, m) bool are ever read."""
        images = padded(torch.where(needed[:, :, None, None, None], images, 0.0), MULTIPLE)
        inside = (images[:, :, images.shape[2] // 2] > 0).any(dim=1)
        encoded = self.encode(images, needed)
        everything, kind = torch.arange(self.m, device=images.device), images.device.type
        reduced, precision = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

        def propose(sample: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
            presence = members[:, :, None, None].to(images.dtype).expand(-1, -1, *images.shape[-2:])
            with torch.autocast(kind, precision, enabled=reduced):  # of the scene, whoever asks
                made = self.propose(images, sample, presence, everything, encoded)
            return made[0].clamp(0, 1), made[1]

        return Scene(images, inside, Proposals(propose), encoded)

    def encode(self, images: Tensor, needed: Tensor) -> tuple[Pyramid, Tensor] | None:
        """Each needed frame once, and the row (b, m) of each among them; None without an encoder."""
        if self.encoder is None:
            return None
        row = torch.full(needed.shape, -1, dtype=torch.long, device=images.device)
        row[needed] = torch.arange(int(needed.sum()), device=images.device)
        modality = needed.nonzero()[:, 1]
        pyramid = self.encoder(images[needed], modality, self.embeddings[modality])
        return (pyramid if self.multiscale is None else self.multiscale(pyramid)), row

    def propose(
        self,
        images: Tensor,
        sample: Tensor,
        presence: Tensor,
        target: Tensor,
        encoded: tuple[Pyramid, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Passes of the synthesizer: mean and log-variance, (p, n, h, w) each.

        Args:
            images: (b, m, s, h, w), h and w multiples of 16.
            sample: (p,) of every pass.
            presence: (p, m, h, w) in [0, 1].
            target: (n,) modalities to make from each pass.
            encoded: as of `encode`.
        """
        e = self.embeddings[target]
        size = len(sample)
        if not torch.is_grad_enabled():  # in the way of memory alone: what is made is the same
            pixels = _PASS_PIXELS.get(images.device.type, _ELSEWHERE)
            size = max(1, pixels // (images.shape[-2] * images.shape[-1]))
        made = []
        for at in torch.arange(len(sample), device=sample.device).split(size):
            beside = None if encoded is None else _context(*encoded, sample[at], presence[at])
            features = self.trunk(images[sample[at]], presence[at], beside)
            made.append(self.heads(features, e, target))
        mean, log_variance = zip(*made, strict=True)
        return torch.cat(mean), torch.cat(log_variance)

    def fuse(self, scene: Scene, query: Query, guidance: Guidance | None = None) -> Fused:
        """Which frames every query lets in, and how far; without gradient to the synthesizer.

        In 32 bits, under autocast too: evidence is small differences of large sums.
        """
        with torch.autocast(scene.images.device.type, enabled=False):
            return self.fusion(scene, query, self.embeddings, guidance or Guidance())

    def decode(self, scene: Scene, query: Query, guidance: Guidance | None = None) -> MedK2NPrediction:
        """Fuse, then one pass for each set of frames; the prediction is on the padded grid of the scene."""
        with torch.no_grad():
            fused = self.fuse(scene, query, guidance)
        rows, shown, share = mixture(fused.presence)
        sample, asked = query.sample[rows], query.target[rows]
        members = shown[:, :, 0, 0]
        even = (shown == members[:, :, None, None]).all(dim=(1, 2, 3))
        apart = torch.where(even, -1, torch.arange(len(rows), device=rows.device))
        kinds, which = torch.cat([sample[:, None], members.long(), apart[:, None]], dim=1).unique(
            dim=0, return_inverse=True
        )
        lead = torch.full((len(kinds),), len(which), device=which.device)
        lead = lead.scatter_reduce(0, which, torch.arange(len(which), device=which.device), "amin")
        target, column = asked.unique(return_inverse=True)
        made = self.propose(scene.images, sample[lead], shown[lead].to(share.dtype), target, scene.encoded)
        with torch.autocast(scene.images.device.type, enabled=False):
            slope = self.linear_maps(shown.any(dim=(2, 3)), asked)[0][:, :, None, None] * shown
            parts = *(x[which, column].float() for x in made), slope
            if len(rows) > len(query.target):
                mean, log_variance, slope = parts
                parts = (
                    _mean_of(share * mean, rows, query),
                    _mean_of(share * log_variance.exp(), rows, query).log(),
                    _mean_of(share[:, None] * slope, rows, query),
                )
        return MedK2NPrediction(parts[0], parts[1], fused, parts[2])

    def forward(self, images: Tensor, query: Query, *, generator: torch.Generator | None = None) -> MedK2NPrediction:
        """images (b, m, s, h, w) scaled, 0 outside the foreground -> one image per query; each sample by itself.

        Args:
            generator: unused; decisions are taken by content.
        """
        h, w = images.shape[-2:]
        made = self.decode(self.scene(images, query.needed(len(images))), query)
        return MedK2NPrediction(made.mean[:, :h, :w], made.log_variance[:, :h, :w], made.fused, made.slope[..., :h, :w])

    @torch.no_grad()
    def decide(self, scene: Scene, query: Query, control: Control | None = None) -> Plan:
        """A study's plan from some of its slices, which are the samples of the scene; every target on every slice."""
        guidance = Guidance(control=control or Control(), study=True)
        return self.fusion.plan(self.fuse(scene, query, guidance), query)


def mixture(presence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The sets of frames that an answer is the mean of: a frame of presence P is in for a share P of it.

    Voxel by voxel, whatever the other frames do; so an answer of two frames in part is one of four passes. What a pass
    sees of a frame is where P is above 0.

    Args:
        presence: (q, m, h, w) in [0, 1].

    Returns:
        The query (t,) of every set, what it shows (t, m, h, w) bool, and its share (t, h, w); 1 in sum over a query.
    """
    rows, shown = torch.arange(len(presence), device=presence.device), presence > 0
    share = torch.ones_like(presence[:, 0])
    partly = (presence.amin(dim=(2, 3)) < 1) & shown.any(dim=(2, 3))
    for i in partly.any(dim=0).nonzero().squeeze(1).tolist():
        at = partly[rows, i].nonzero().squeeze(1)
        own = presence[rows[at], i]
        without = shown[at].clone()
        without[:, i] = False
        rest = share[at] * (1 - own)
        rows, shown = torch.cat([rows, rows[at]]), torch.cat([shown, without])
        share = torch.cat([share.index_put((at,), share[at] * own), rest])
    return rows, shown, share


def _mean_of(terms: Tensor, rows: Tensor, query: Query) -> Tensor:
    """Sums of terms (t, ...) over the queries (q, ...) whose rows (t,) they are."""
    return terms.new_zeros(len(query.target), *terms.shape[1:]).index_add(0, rows, terms)


def _context(pyramid: Pyramid, row: Tensor, sample: Tensor, presence: Tensor) -> Pyramid:
    """What the encoder says of all frames of a pass, each by its presence: stride -> (p, c, h / s, w / s)."""
    rows = row[sample]  # (p, m)
    out: Pyramid = {}
    for s, level in pyramid.items():
        share = functional.avg_pool2d(presence, s)
        share = share * (rows >= 0)[:, :, None, None]
        total = 0.0
        for i in range(rows.shape[1]):
            total = total + share[:, i, None] * level[rows[:, i].clamp_min(0)]
        out[s] = total / share.sum(dim=1, keepdim=True).clamp_min(1.0)
    return out


COMPONENT = ModelSpec(
    name="medk2n",
    params=Params,
    build=MedK2N,
    sizes={"widths": SIZES},
    every_target=True,
    described=True,
    lesson="medk2n",
)
"""Quality-driven selective fusion."""
