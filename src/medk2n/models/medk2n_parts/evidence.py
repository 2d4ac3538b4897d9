"""Evidence: what speaks for and against a frame, before it is let in. Everything here is without gradient.

One image hardly tells whether it is damaged, misplaced or another one than its name says; two images of one patient do
(docs/lab-log.md, agreement). So a frame x_i is compared with what the state C expects of it: mu_i(C) and
lambda_i(C), proposed by the synthesizer from the frames in C. Together they are the

- innovation: |x_i - mu_i(C)| against exp(lambda_i(C) / 2), their correlation in values, gradients and Laplacians;
- own look: level, spread, edges, lag-one correlation of x_i, and agreement with its neighbouring slices;
- disagreement about the target: mu_j(C) against mu_j({i}), and how mu_j would move and its error shrink with i.

They are told less their usual values, of whole frames of training subjects (buffers that training alone moves).

Shapes: b samples, m modalities, n rows, q queries, h w voxels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

OWN, INNOVATION, TARGET = 8, 8, 8
"""Numbers told of a frame itself, of it against a state, and of what both say of the target."""
_BETWEEN = (1, 3, 4, 6)  # those of an innovation that are told of every pair of frames
FACTS = 2 * OWN + INNOVATION + 4 * len(_BETWEEN) + 2 + TARGET + 3
OWN_FACTS, AGREEMENT_FACTS, TARGET_FACTS = slice(2 * OWN), slice(2 * OWN, -TARGET - 3), slice(-TARGET - 3, -3)
"""Where the facts of one kind lie; the last three count frames."""
_FLOOR = 1e-5
_WIDEST = 6.0
_BOX = 9


@dataclass(frozen=True, slots=True)
class Looks:
    """The frames of a batch, each by itself and against each other alone.

    Attributes:
        own: (b, m, OWN); 0 where a frame is not there.
        pairs: (b, m, m, INNOVATION), [i, k] of frame i against what frame k alone expects; NaN where one is missing.
    """

    own: Tensor
    pairs: Tensor


class Usual(nn.Module):
    """Running mean and variance of evidence of whole frames; evaluation never moves them.

    Args:
        shape: of the table.
    """

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(shape[:-1]))
        self.register_buffer("total", torch.zeros(shape))
        self.register_buffer("square", torch.zeros(shape))

    @torch.no_grad()
    def observe(self, total: Tensor, square: Tensor, count: Tensor, memory: float = 4000.0) -> None:
        """Add sums, sums of squares and counts; what was seen long ago is forgotten beyond `memory` of a kind."""
        keep = (memory / (self.count + count).clamp_min(memory)).unsqueeze(-1)
        self.total.add_(total).mul_(keep)
        self.square.add_(square).mul_(keep)
        self.count.add_(count).mul_(keep.squeeze(-1))

    def sums(self) -> tuple[Tensor, Tensor, Tensor]:
        """What was observed: sums, sums of squares, counts."""
        return self.total, self.square, self.count

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation; 0 and 1 of what was never seen."""
        n = self.count.unsqueeze(-1)
        mean = self.total / n.clamp_min(1)
        variance = (self.square / n.clamp_min(1) - mean.square()).clamp_min(0)
        seen = n > 1
        return torch.where(seen, mean, 0.0), torch.where(seen, variance.sqrt() + 0.05, 1.0)


class Evidence(nn.Module):
    """The usual values, and evidence told against them.

    Args:
        m: modalities.
    """

    def __init__(self, m: int) -> None:
        super().__init__()
        self.own = Usual(m, OWN)
        self.pairs = Usual(m, m, INNOVATION)

    @torch.no_grad()
    def sums(self, looks: Looks, whole: Tensor) -> tuple[Tensor, ...]:
        """What `observe` is to add for a batch: whole (b, m) bool, frames that are there and not damaged."""
        both = whole[:, :, None] & whole[:, None] & ~looks.pairs[..., 0].isnan()
        pairs = looks.pairs.nan_to_num() * both.unsqueeze(-1)
        own = looks.own * whole.unsqueeze(-1)
        return (
            *(own.sum(0), own.square().sum(0), whole.float().sum(0)),
            *(pairs.sum(0), pairs.square().sum(0), both.float().sum(0)),
        )

    def observe(self, sums: tuple[Tensor, ...]) -> None:
        """Feed the sums of a training step."""
        self.own.observe(*sums[:3])
        self.pairs.observe(*sums[3:])

    @torch.no_grad()
    def facts(
        self,
        looks: Looks,
        sample: Tensor,
        sources: Tensor,
        members: Tensor,
        i: Tensor,
        innovation: Tensor,
        target: Tensor,
    ) -> Tensor:
        """All that is told of frame i for a state, (q, FACTS).

        Args:
            sample, i: (q,).
            sources, members: (q, m) bool, all frames of the query and those in the state; none in a first look.
            innovation: (q, INNOVATION) of frame i against the state; NaN in a first look.
            target: (q, TARGET).
        """
        rows = torch.arange(len(i), device=i.device)
        others = sources & ~functional.one_hot(i, sources.shape[1]).bool()
        first = ~members.any(dim=1)
        state = torch.where(first[:, None], others, members)
        own = _against(looks.own, *self.own.moments())[sample]
        mean, spread = self.pairs.moments()
        pairs = _against(looks.pairs, mean, spread)[sample]
        into, out_of = pairs[rows, i], pairs[rows, :, i]  # i expected by each other; each other expected by i
        average, typical = (_mean(x[i], state) for x in (mean, spread))
        against = _against(innovation, average, typical)
        against = torch.where(first[:, None], _mean(into, others), against)
        rest = pairs[..., 1].masked_fill(~(others[:, :, None] & others[:, None]), torch.nan)
        told = [
            own[rows, i],
            _mean(own, state),
            against,
            *(_mean(x[..., _BETWEEN], others) for x in (into, out_of)),
            *(_best(x[..., _BETWEEN], others) for x in (into, out_of)),
            torch.stack([_extreme(rest, torch.amin), _extreme(rest, torch.amax)], dim=1),
            target,
            torch.stack([first.float(), state.sum(1) / 4, sources.sum(1) / 4], dim=1),
        ]
        return torch.cat(told, dim=1).nan_to_num().clamp(-_WIDEST, _WIDEST)


@torch.no_grad()
def own_look(frames: Tensor, inside: Tensor, group: Tensor | None = None) -> Tensor:
    """Frames (n, s, h, w) by themselves inside (n, h, w) bool -> (n, OWN); rows of one group are pooled first."""
    x = frames[:, frames.shape[1] // 2]
    dx, dy, lap = _differences(x)
    beside = frames[:, [0, -1]].mean(dim=1)
    maps = [
        x,
        x * x,
        dx * dx + dy * dy,
        lap * lap,
        beside,
        beside * beside,
        x * beside,
        ((x < 0.02) | (x > 0.98)).float(),
    ]
    e = _pooled(torch.stack(maps, dim=1), inside, group)
    spread = (e[:, 1] - e[:, 0] ** 2).clamp_min(_FLOOR)
    edges, fine = e[:, 2].clamp_min(_FLOOR), e[:, 3].clamp_min(_FLOOR)
    next_to = (e[:, 6] - e[:, 0] * e[:, 4]) / (spread * (e[:, 5] - e[:, 4] ** 2).clamp_min(_FLOOR)).sqrt()
    lag = 1 - edges / (4 * spread)  # lag-one correlation, from the mean squared step
    return torch.stack(
        [e[:, 0], spread.log(), edges.log(), fine.log(), fine.log() - edges.log(), lag, next_to, e[:, 7]], 1
    )


@torch.no_grad()
def innovation(
    x: Tensor, expected: Tensor, log_variance: Tensor, inside: Tensor, group: Tensor | None = None
) -> Tensor:
    """Images x against what was expected of them, all (n, h, w) -> (n, INNOVATION)."""
    error = (x - expected).square()
    variance = log_variance.exp()
    dx, dy, lap = _differences(x)
    ex, ey, elap = _differences(expected)
    local = local_correlation(x, expected)
    maps = [error, variance, (error / variance).clamp_max(50), x, expected, x * x, expected**2, x * expected]
    maps += [dx * ex + dy * ey, dx**2 + dy**2, ex**2 + ey**2, lap * elap, lap**2, elap**2, local, (x - expected).abs()]
    e = _pooled(torch.stack(maps, dim=1), inside, group)
    squared = e[:, 0] + _FLOOR
    both = (e[:, 5] - e[:, 3] ** 2).clamp_min(_FLOOR) * (e[:, 6] - e[:, 4] ** 2).clamp_min(_FLOOR)
    correlation = (e[:, 7] - e[:, 3] * e[:, 4]) / both.sqrt()
    edges = e[:, 8] / (e[:, 9] * e[:, 10]).sqrt().clamp_min(_FLOOR)
    fine = e[:, 11] / (e[:, 12] * e[:, 13]).sqrt().clamp_min(_FLOOR)
    ratio = squared.log() - (e[:, 1] + _FLOOR).log()
    return torch.stack([squared.log(), ratio, (1 + e[:, 2]).log(), correlation, edges, fine, e[:, 14], e[:, 15]], dim=1)


@torch.no_grad()
def target_facts(
    so_far: tuple[Tensor, Tensor],
    alone: tuple[Tensor, Tensor],
    after: tuple[Tensor, Tensor],
    inside: Tensor,
    group: Tensor | None,
) -> Tensor:
    """What state, frame alone and both together propose for the target, mean and log-variance (q, h, w) each.

    Returns (q, TARGET).
    """
    (y, of_y), (z, of_z), (w, of_w) = so_far, alone, after
    maps = [(y - z) ** 2, of_y.exp(), of_z.exp(), of_w.exp(), (w - y) ** 2, local_correlation(y, z), (w - z) ** 2]
    e = _pooled(torch.stack(maps, dim=1), inside, group)
    apart, a, b, c, moved, from_alone = (e[:, [0, 1, 2, 3, 4, 6]] + _FLOOR).log().unbind(dim=1)
    told = [apart - torch.logaddexp(a, b), apart / 3 + 2, a - c, b - c, a / 3 + 2, moved - a, e[:, 5], from_alone - b]
    return torch.stack(told, dim=1)


def local_correlation(x: Tensor, y: Tensor) -> Tensor:
    """Correlation of two images (n, h, w) in 9 x 9 voxels around each."""

    def mean(z: Tensor) -> Tensor:
        rows = functional.avg_pool2d(z[:, None], (_BOX, 1), 1, (_BOX // 2, 0))  # one axis after the other: a box
        return functional.avg_pool2d(rows, (1, _BOX), 1, (0, _BOX // 2)).squeeze(1)

    a, b = mean(x), mean(y)
    both = (mean(x * x) - a * a).clamp_min(0) * (mean(y * y) - b * b).clamp_min(0)
    return ((mean(x * y) - a * b) / (both + 1e-8).sqrt()).clamp(-1, 1)


def _differences(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Steps along both axes, and the Laplacian, of (n, h, w)."""
    p = functional.pad(x[:, None], (1, 1, 1, 1), mode="replicate").squeeze(1)
    dx, dy = p[:, 2:, 1:-1] - x, p[:, 1:-1, 2:] - x
    return dx, dy, p[:, 2:, 1:-1] + p[:, :-2, 1:-1] + p[:, 1:-1, 2:] + p[:, 1:-1, :-2] - 4 * x


def _pooled(maps: Tensor, inside: Tensor, group: Tensor | None) -> Tensor:
    """Means (n, k) of maps (n, k, h, w) inside (n, h, w), over all rows of a group where groups are given."""
    weight = inside.to(maps.dtype)
    total, mass = torch.einsum("nkhw,nhw->nk", maps, weight), weight.sum(dim=(1, 2))[:, None]
    if group is not None:
        size = int(group.max()) + 1
        total = total.new_zeros(size, total.shape[1]).index_add(0, group, total)[group]
        mass = mass.new_zeros(size, 1).index_add(0, group, mass)[group]
    return total / mass.clamp_min(1)


def _against(x: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    return ((x - mean) / spread).clamp(-_WIDEST, _WIDEST)


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x (q, m, k) over the frames of a mask (q, m) that are known; 0 where there are none."""
    known = mask[:, :, None] & ~x.isnan()
    return torch.where(known, x, 0.0).sum(dim=1) / known.sum(dim=1).clamp_min(1)


def _best(x: Tensor, mask: Tensor) -> Tensor:
    """x (q, m, k) of the frame that agrees best, that of the least first fact."""
    first = x[..., 0].masked_fill(~mask | x[..., 0].isnan(), torch.inf)
    best = x.gather(1, first.argmin(dim=1)[:, None, None].expand(-1, 1, x.shape[2])).squeeze(1)
    return torch.where(mask.any(dim=1)[:, None], best, 0.0)


def _extreme(x: Tensor, of: object) -> Tensor:
    """Least or largest (`of`) of x (q, m, m) where it is known; 0 where nothing is."""
    least = of is torch.amin
    found = of(torch.where(x.isnan(), torch.inf if least else -torch.inf, x), dim=(1, 2))
    return torch.where(found.isinf(), 0.0, found)
