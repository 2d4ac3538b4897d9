"""The base image: a linear map of the frames that were let in, and what each proposes beyond (design, section 6).

L_S is the least-squares map from the sources S to the target, solved from what training subjects say about pairs.
Frame by frame the base moves from L_(S without i) towards L_S, at each voxel as far as W_eff lets frame i in: with
every map at 1 it is L_S itself, with all gates closed the key frame's own map. (A precision-weighted mean of the pairs'
maps, which takes their errors for independent, was 0.5 dB worse than the better of two: docs/lab-log.md.)

Beside it stands the mean of the frames' corrections. What a frame alone proposes for a target is read from its own
features, once per frame and target, and taught every image that its sample has: a frame learns from all targets at
once. Its correction is what its proposal adds to its own map; W_eff times the predicted precision is its weight in the
mean. The heads decide per voxel how far to follow the linear map, and how far the corrections.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medk2n.models._spec import Statistics

LOG_VARIANCE = (-9.0, 1.0)
"""Bounds of a proposal's log-variance: 39 dB is better than any scan is repeated."""


class LinearMaps(nn.Module):
    """L_S for any S and target, from means, deviations and correlations of pairs."""

    def __init__(self, statistics: Statistics) -> None:
        super().__init__()
        for name in ("mean", "deviation", "correlation"):
            self.register_buffer(name, getattr(statistics, name).clone())

    def forward(self, members: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """members (q, m) bool, target (q,) -> slopes (q, m), 0 where not a member, and intercepts (q,)."""
        inside = members.to(self.correlation.dtype)
        both = inside[:, :, None] * inside[:, None, :]
        system = self.correlation * both + torch.diag_embed(1 - inside)
        beta = torch.linalg.solve(system, inside * self.correlation[target])
        # moments of the sources, and of the target, among the subjects that have both
        centre, spread = self.mean.T[target], self.deviation.T[target]
        share = inside / inside.sum(dim=1, keepdim=True)
        height, width = (share * self.mean[target]).sum(dim=1), (share * self.deviation[target]).sum(dim=1)
        slope = width[:, None] * beta / spread
        return slope, height - (slope * centre).sum(dim=1)

    def pair(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """source, target (q,) -> slope, intercept and mean squared error of the map of one source, (q,) each."""
        slope, intercept = self(nn.functional.one_hot(source, len(self.mean)).bool(), target)
        error = self.deviation[target, source].square() * (1 - self.correlation[source, target].square())
        return slope.gather(1, source[:, None]).squeeze(1), intercept, error


@dataclass(frozen=True, slots=True)
class Proposed:
    """What f frames propose for n targets.

    Attributes:
        targets: (n,) indices, ascending.
        mean: (f, n, h, w), the proposals.
        correction: (f, n, h, w), what a proposal adds to the pair's linear map.
        slope: (f, n, h, w), what a change of the frame adds to its correction.
        log_variance: (f, n, h, w), of the proposals.
    """

    targets: Tensor
    mean: Tensor
    correction: Tensor
    slope: Tensor
    log_variance: Tensor

    def of(self, frame: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """frame, target (q,) -> correction, its slope, the proposal's precision, (q, h, w) each, without gradient."""
        column = torch.searchsorted(self.targets, target)
        correction, slope, log_variance = (
            x.detach()[frame, column] for x in (self.correction, self.slope, self.log_variance)
        )
        return correction, slope, (-log_variance).exp()


class Proposals(nn.Module):
    """One 1 x 1 convolution for all targets: a gain of the pair's map, an image, a log-variance.

    The gain starts at 0 and the image at the target's mean: learned as what to add to the pair's map, every pair would
    be a task of its own; so there is one task per source, to see the anatomy, and one per target, to paint it. For its
    own modality a frame proposes itself.
    """

    def __init__(self, m: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(m, 3 * 4, channels))  # four sub-pixels each
        self.bias = nn.Parameter(torch.zeros(m, 3 * 4))

    def forward(
        self, features: Tensor, centre: Tensor, modality: Tensor, targets: Tensor, maps: LinearMaps
    ) -> Proposed:
        """features (f, c, h / 2, w / 2), centre (f, h, w), modality (f,), targets (n,) ascending."""
        f, n = len(modality), len(targets)
        out = nn.functional.linear(
            features.permute(0, 2, 3, 1), self.weight[targets].flatten(0, 1), self.bias[targets].flatten()
        )
        out = nn.functional.pixel_shuffle(out.permute(0, 3, 1, 2), 2)
        gain, image, log_variance = out.unflatten(1, (n, 3)).unbind(dim=2)
        source, target = modality.repeat_interleave(n), targets.repeat(f)
        slope, intercept, error = (x.view(f, n, 1, 1) for x in maps.pair(source, target))
        other = (source != target).view(f, n, 1, 1)
        linear, level = slope * centre[:, None] + intercept, maps.mean.diagonal()[targets][:, None, None]
        mean = torch.where(other, gain * linear + image + level, linear)
        log_variance = (log_variance + error.clamp_min(1e-3).log()).clamp(*LOG_VARIANCE)
        return Proposed(targets, mean, mean - linear, other * (gain - 1) * slope, log_variance)


class BaseImage:
    """The base image of q queries while their frames are let in one by one.

    Args:
        maps: of the training subjects.
        proposed: by all frames.
        centre: (f, h, w), middle slices of all frames.
        target: (q,).
    """

    def __init__(self, maps: LinearMaps, proposed: Proposed, centre: Tensor, target: Tensor) -> None:
        self._maps, self._proposed, self._centre, self._target = maps, proposed, centre, target
        q, m = len(target), len(maps.mean)
        self._members = torch.zeros(q, m, dtype=torch.bool, device=target.device)
        self._slope, self._offset = centre.new_zeros(q, m), centre.new_zeros(q)
        self._shares: list[Tensor] = []
        self._own: list[Tensor] = []
        self._frames: list[Tensor] = []
        self._sources: list[Tensor] = []
        self._level = centre.new_zeros(q, *centre.shape[1:])
        self._corrections, self._mass = torch.zeros_like(self._level), torch.zeros_like(self._level)

    def add(self, rows: Tensor, frame: Tensor, source: Tensor, gate: Tensor, shown: Tensor) -> None:
        """Let a frame into some rows, or none: gate (rows,), shown (rows, h, w) is W_eff, 1 for the key frame.

        A closed gate's frame does not become a member (`shown` is 0 there, and carries the gate's gradient).
        """
        q = len(self._target)
        members = self._members[rows].scatter(1, source[:, None], True)
        slope, offset = self._maps(members, self._target[rows])
        change, rise = slope - self._slope[rows], offset - self._offset[rows]
        self._frames.append(frame.new_zeros(q).index_put((rows,), frame))
        self._sources.append(torch.full_like(self._target, -1).index_put((rows,), source))
        self._shares.append(torch.zeros_like(self._level))
        for k, of in enumerate(self._sources):
            known = of[rows] >= 0  # a row whose gate was closed at step k has no source there
            step = (change.gather(1, of[rows].clamp_min(0)[:, None]) * known[:, None])[:, :, None] * shown
            self._shares[k] = self._shares[k].index_add(0, rows, step)
        self._level = self._level.index_add(0, rows, rise[:, None, None] * shown)
        let_in = gate > 0
        self._members = self._members.index_put((rows[let_in],), members[let_in])
        self._slope = self._slope.index_put((rows[let_in],), slope[let_in])
        self._offset = self._offset.index_put((rows[let_in],), offset[let_in])
        correction, steepness, precision = self._proposed.of(frame, self._target[rows])
        weight = shown * precision
        self._corrections = self._corrections.index_add(0, rows, weight * correction)
        self._mass = self._mass.index_add(0, rows, weight)
        self._own.append(torch.zeros_like(self._level).index_add(0, rows, weight * steepness))

    def linear(self) -> Tensor:
        """The linear map (q, h, w)."""
        image = self._level
        for frame, share in zip(self._frames, self._shares, strict=True):
            image = image + share * self._centre[frame]
        return image

    def correction(self) -> Tensor:
        """The weighted mean of the corrections (q, h, w)."""
        return self._corrections / self._mass

    def shares(self) -> list[tuple[Tensor, Tensor]]:
        """Per step (q, h, w): what a change of its frame adds to the linear map, and what to the correction."""
        return [(linear, own / self._mass) for linear, own in zip(self._shares, self._own, strict=True)]
