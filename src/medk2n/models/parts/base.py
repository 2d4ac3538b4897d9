"""The base image: a linear map of the frames that were let in (design, section 6).

L_S is the least-squares map from the sources S to the target, solved from what training subjects say about pairs.
Frame by frame the base moves from L_(S without i) to L_S, at each voxel as far as gate and user let frame i in: with
all gates open it is L_S itself, with all closed the key frame's own map. (A precision-weighted mean of the pairs'
maps, which takes their errors for independent, was 0.5 dB worse than the better of two: docs/lab-log.md.)
"""

import torch
from torch import Tensor, nn

from medk2n.models._spec import Statistics


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


class BaseImage:
    """The base image of q queries while their frames are let in one by one.

    Args:
        maps: of the training subjects.
        centre: (f, h, w), middle slices of all frames.
        target: (q,).
    """

    def __init__(self, maps: LinearMaps, centre: Tensor, target: Tensor) -> None:
        self._maps, self._centre, self._target = maps, centre, target
        q, m = len(target), len(maps.mean)
        self._members = torch.zeros(q, m, dtype=torch.bool, device=target.device)
        self._slope, self._offset = centre.new_zeros(q, m), centre.new_zeros(q)
        self._shares: list[Tensor] = []
        self._frames: list[Tensor] = []
        self._sources: list[Tensor] = []
        self._level = centre.new_zeros(q, *centre.shape[1:])

    def add(self, rows: Tensor, frame: Tensor, source: Tensor, gate: Tensor, shown: Tensor) -> None:
        """Let a frame into some rows, or none: gate (rows,), shown (rows, h, w) how far, 1 for the key frame.

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

    def linear(self) -> Tensor:
        """The linear map (q, h, w)."""
        image = self._level
        for frame, share in zip(self._frames, self._shares, strict=True):
            image = image + share * self._centre[frame]
        return image

    def shares(self) -> list[Tensor]:
        """Per step (q, h, w): what a change of its frame adds to the linear map."""
        return self._shares
