"""Progressive fusion: a key frame, then the others one by one, each only as far as it helps (design, section 5).

The order comes from the content: frames are ranked by their first-look weight, in modality
order, rounded, ties by modality, so that permuting the inputs changes nothing. In inference
every decision is taken once per study from features pooled over its slices (`study=True`) and
kept in a `Plan`, so that slices do not flicker.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from medk2n.models._spec import Query
from medk2n.models.parts.base import BaseImage, LinearMaps
from medk2n.models.parts.blocks import mlp, spread
from medk2n.models.parts.encoder import FUSED_STRIDES, Pyramid
from medk2n.models.parts.fusion import (
    EffiWeightNet,
    PreWeightNet,
    Refinement,
    Step,
    ThresholdNet,
    straight_through_gate,
)


@dataclass(frozen=True, slots=True)
class Frames:
    """The encoded frames of a batch; only frames that some query uses are among them.

    Attributes:
        images: (b, m, s, h, w), padded; 0 where a modality was not encoded.
        pyramid: stride -> (f, c, h / stride, w / stride).
        centre: (f, h, w) the middle slice, scaled.
        inside: stride -> (f, 1, h / stride, w / stride) share of foreground.
        modality: (f,) index.
        row: (b, m) frame of a sample's modality, -1 where it was not encoded.
    """

    images: Tensor
    pyramid: Pyramid
    centre: Tensor
    inside: Pyramid
    modality: Tensor
    row: Tensor


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One step of a study's plan for one target: plain numbers and the memory's answer."""

    source: int
    weight: float
    threshold: float
    gate: float
    memory: Tensor


Plan = dict[int, tuple[PlannedStep, ...]]
"""Target index -> its steps, key frame first."""


@dataclass(frozen=True, slots=True)
class Control:
    """What a user laid down; indices as in the query.

    Attributes:
        order: target -> sources in the order they are to be added, key frame first; the content orders all others.
        bounds: (target, source) -> (b, 2, h, w), lowest and highest W_eff per voxel of each sample. Such a source is
            not chosen as key frame, which enters whole.
    """

    order: Mapping[int, Sequence[int]] = field(default_factory=dict)
    bounds: Mapping[tuple[int, int], Tensor] = field(default_factory=dict)

    def candidates(self, query: Query) -> Tensor:
        """Sources that may be key frames, (q, m) bool: what was laid down, as far as a query has such sources."""
        if not self.order and not self.bounds:
            return query.sources
        allowed = query.sources.clone()
        for q, j in enumerate(query.target.tolist()):
            bounded = torch.tensor([(j, i) in self.bounds for i in range(allowed.shape[1])], device=allowed.device)
            if ahead := self._ahead(query, q):
                allowed[q] = torch.arange(allowed.shape[1], device=allowed.device) == ahead[0]
            elif (query.sources[q] & ~bounded).any():
                allowed[q] &= ~bounded
        return allowed

    def reorder(self, rank: Tensor, query: Query) -> None:
        """Lift what was put in an order above every rank (q, m) that the content gives."""
        for q in range(len(rank) if self.order else 0):
            for position, i in enumerate(ahead := self._ahead(query, q)):
                rank[q, i] = 3e4 + len(ahead) - position

    def _ahead(self, query: Query, q: int) -> list[int]:
        return [i for i in self.order.get(int(query.target[q]), ()) if query.sources[q, i]]

    def bounded(self, source: Tensor, target: Tensor) -> Tensor:
        """Which of some steps have bounds, (rows,) bool."""
        pairs = zip(target.tolist(), source.tolist(), strict=True)
        return torch.tensor([pair in self.bounds for pair in pairs], dtype=torch.bool, device=source.device)

    def limits(self, sample: Tensor, source: Tensor, target: Tensor, gate: Tensor, size: torch.Size) -> Tensor | None:
        """Bounds (rows, 2, h, w) of some steps, on the padded grid; None where nothing was laid down.

        What the content closed stays closed but where a lowest weight opens it.
        """
        pairs = list(zip(target.tolist(), source.tolist(), strict=True))
        if not any(pair in self.bounds for pair in pairs):
            return None
        free = gate.new_tensor([0.0, 1.0])[:, None, None].expand(2, *size)
        rows = [self._padded(self.bounds[p][k], size) if p in self.bounds else free
                for p, k in zip(pairs, sample.tolist(), strict=True)]  # fmt: skip
        low, high = torch.stack(rows).unbind(dim=1)
        return torch.stack([low, torch.minimum(high, torch.maximum(gate[:, None, None], low))], dim=1)

    @staticmethod
    def _padded(bounds: Tensor, size: torch.Size) -> Tensor:
        h, w = bounds.shape[-2:]
        return functional.pad(bounds, (0, size[1] - w, 0, size[0] - h), mode="replicate")


Decision = tuple[Tensor, Tensor, Tensor, Tensor]
"""Weight (q,), threshold (q,), gate (q,), memory (q, d) of one step."""


Bounded = tuple[Tensor, Tensor, Tensor]
"""Rows, source (rows,) and share (rows, h, w) of their effect that frames keep which the user bounded."""


@dataclass(slots=True)
class Fused:
    """The end state of every query.

    Attributes:
        state: pyramid of q rows.
        base: base image of the frames that were let in.
        steps: one `Step` per position in the sequence.
        quality: (q,) log mean squared error that the state predicts for itself.
        members: (q, m) bool, the frames that were let in whole.
        partial: the frames that the user bounded.
        attention: memory attentions seen on the way, with their targets.
    """

    state: Pyramid
    base: BaseImage
    steps: list[Step]
    quality: Tensor
    members: Tensor
    partial: list[Bounded]
    attention: list[tuple[Tensor, Tensor]]


class ProgressiveFusion(nn.Module):
    """Key frame, order, gates and maps for every query; see the module's docstring."""

    def __init__(
        self,
        m: int,
        channels: dict[int, int],
        embedding: int,
        slots: int,
        thresholds: tuple[float, float] = (0.0, 0.04),
        temperature: float = 0.01,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.hard_gates = True
        pooled = sum(channels[s] for s in FUSED_STRIDES)
        self.pool = nn.Sequential(nn.LayerNorm(pooled), nn.Linear(pooled, embedding))
        self.empty = nn.Parameter(torch.zeros(embedding))
        self.pre_weight = PreWeightNet(m, embedding, embedding, slots)
        self.threshold = ThresholdNet(embedding, *thresholds)
        self.effi_weight = EffiWeightNet(channels, embedding, width=16)
        self.refinement = Refinement(channels, embedding)
        self.judge = mlp(2 * embedding, embedding, 1)
        nn.init.constant_(self.judge[-1].bias, -4.6)  # log of 0.01, a usual mean squared error
        self.register_buffer("history", torch.zeros(m, m))

    @torch.no_grad()
    def observe(self, total: Tensor, count: Tensor, momentum: float = 0.98) -> None:
        """Feed measured gains of the training stream into the history p_ij; evaluation never calls it.

        Args:
            total, count: (m, m), sum and number of the gains of source i for target j.
        """
        keep = momentum**count
        self.history.copy_(keep * self.history + (1 - keep) * total / count.clamp_min(1))

    def forward(
        self,
        frames: Frames,
        query: Query,
        embeddings: Tensor,
        maps: LinearMaps,
        *,
        plan: Plan | None = None,
        control: Control | None = None,
        study: bool = False,
        generator: torch.Generator | None = None,
    ) -> Fused:
        """Fuse the frames of every query.

        Args:
            frames: encoded frames.
            query: q queries.
            embeddings: (m, d).
            maps: linear maps of the training subjects.
            plan: decisions to follow instead of taking them.
            control: what the user laid down.
            study: all samples are slices of one study: pool over them before deciding.
            generator: draw the key frame by Gumbel noise (training); None takes the largest weight.
        """
        control = control or Control()
        order, count, first = self._order(frames, query, embeddings, plan, control, study, generator)
        groups = query.target if study else None
        inside = self._inside(frames, query)
        rows = torch.arange(len(count), device=count.device)
        key = order[:, 0]
        frame = frames.row[query.sample, key]
        pair = torch.cat([embeddings[key], embeddings[query.target]], dim=1)
        state = {s: self.refinement.key(frames.pyramid[s][frame], s, pair) for s in FUSED_STRIDES}
        held = first.weight[rows, key]
        ones = torch.ones_like(held)
        base = BaseImage(maps, frames.centre, query.target)
        base.add(rows, frame, key, ones, torch.ones_like(frames.centre[frame]))
        steps = [Step(frame, key, held, torch.zeros_like(held), ones, first.memory[rows, key], ones, {})]
        members = torch.zeros_like(query.sources).index_put((rows, key), torch.ones_like(key, dtype=torch.bool))
        partial: list[Bounded] = []
        attention = [(first.attention, first.target)] if first.attention is not None else []
        for position in range(1, order.shape[1]):
            active = (count > position).nonzero().squeeze(1)
            source, target = order[active, position], query.target[active]
            frame = frames.row[query.sample[active], source]
            if plan is None:
                group = None if groups is None else groups[active]
                pooled = self._pooled({s: state[s][active] for s in FUSED_STRIDES}, inside, active, group)
                pooled_frame = self._pooled_frames(frames, frame, source if study else None)
                decision, seen = self._decide(pooled, pooled_frame, source, target, embeddings)
                attention.append((seen, target))
            else:
                decision = _planned(plan, target, position, embeddings)
            weight, tau, gate, memory = decision
            size = frames.centre.shape[1:]
            limits = control.limits(query.sample[active], source, target, (weight > tau).to(gate.dtype), size)
            if limits is not None:
                gate = (limits[:, 1].amax(dim=(1, 2)) > 0).to(gate.dtype)
            work = torch.arange(len(active), device=order.device)
            if not torch.is_grad_enabled():
                work = (gate > 0).nonzero().squeeze(1)  # a closed gate's work is skipped too
            pair = torch.cat([embeddings[source], embeddings[target]], dim=1)
            facts = torch.cat([weight[:, None], tau[:, None], memory, pair], dim=1)
            bounds = None if limits is None else limits[work]
            maps, let_in = self._advance(
                state, frames, active[work], frame[work], facts[work], gate[work], pair[work], bounds
            )
            effective, shown = torch.zeros_like(weight), frames.centre[:0]
            if len(work):
                here = inside[4][active[work]]
                effective = effective.index_add(0, work, _mean((let_in[4] * here).sum((1, 2, 3)), here.sum((1, 2, 3))))
                shown = gate[work][:, None, None].expand(-1, *size)
                if bounds is not None:
                    shown = _share(_fine(maps[4]), bounds)
            bounded = control.bounded(source, target)
            members = members.index_put((active, source), (gate > 0) & ~bounded)
            if limits is not None:
                share = limits[:, 1].index_put((work,), shown)
                partial.append((active[bounded], source[bounded], share[bounded]))
            base.add(active[work], frame[work], source[work], gate[work], shown)
            wide = {s: spread(x, active[work], len(count)) for s, x in maps.items()}
            values = (spread(x, active, len(count)) for x in (weight, tau, gate, memory, effective))
            absent = torch.full_like(query.target, -1)
            steps.append(Step(absent.index_put((active,), frame), absent.index_put((active,), source), *values, wide))
        e_j = embeddings[query.target].detach()
        pooled = self._pooled(state, inside, rows, groups).detach()
        quality = self.judge(torch.cat([pooled, e_j], dim=1)).squeeze(1).float()
        return Fused(state, base, steps, quality, members, partial, attention)

    def _decide(
        self, state: Tensor, frame: Tensor, source: Tensor, target: Tensor, embeddings: Tensor
    ) -> tuple[Decision, Tensor]:
        """Weight, threshold, gate and memory of adding a frame to a state (both pooled); and the attention."""
        e_i, e_j = embeddings[source], embeddings[target]
        quality = self.judge(torch.cat([state, e_j], dim=1)).squeeze(1).float().detach()
        # a log error of -5 (about 22 dB) is a usual one: near 0 after this
        weight, memory, attention = self.pre_weight(state, frame, e_i, e_j, quality / 5 + 1, target)
        tau = self.threshold(state, frame, e_i, e_j, self.history[source, target])
        # W is a measurement's prediction and nothing else: the image may move tau, but not W
        gate = straight_through_gate(weight.detach(), tau, self.temperature, self.hard_gates)
        return (weight, tau, gate, memory), attention

    def plan(self, fused: Fused, query: Query) -> Plan:
        """Read a study's decisions out of a pass with `study=True`."""
        plan: Plan = {}
        for j in query.target.unique().tolist():
            rows = (query.target == j).nonzero().squeeze(1)
            q = int(rows[0])
            plan[j] = tuple(
                PlannedStep(
                    int(step.source[q]),
                    float(step.weight[q]),
                    float(step.threshold[q]),
                    float(step.gate[rows].max()),  # a mask of the user's may let a frame into some slices alone
                    step.memory[q].clone(),
                )
                for step in fused.steps
                if int(step.source[q]) >= 0
            )
        return plan

    def _order(
        self,
        frames: Frames,
        query: Query,
        embeddings: Tensor,
        plan: Plan | None,
        control: Control,
        study: bool,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor, "_FirstLook"]:
        """Sources of every query in the order they are added: (q, k) indices, (q,) how many, first look."""
        count = query.sources.sum(dim=1)
        if plan is not None:
            order = torch.zeros(len(count), int(count.max()), dtype=torch.long, device=count.device)
            for q, j in enumerate(query.target.tolist()):
                order[q, : len(plan[j])] = torch.tensor([step.source for step in plan[j]])
            return order, count, _FirstLook.of_plan(plan, query, embeddings)
        first = self._first_look(frames, query, embeddings, control, study, generator)
        rank = (first.weight.detach() * 1e4).round().masked_fill(~query.sources, -1.0)
        rank[torch.arange(len(count)), first.key] = 2e4
        control.reorder(rank, query)
        order = rank.argsort(dim=1, descending=True, stable=True)[:, : int(count.max())]
        return order, count, first

    def _first_look(
        self,
        frames: Frames,
        query: Query,
        embeddings: Tensor,
        control: Control,
        study: bool,
        generator: torch.Generator | None,
    ) -> "_FirstLook":
        """Weigh every source of every query against an empty state and choose the key frame."""
        q, i = query.sources.nonzero().unbind(dim=1)
        frame = frames.row[query.sample[q], i]
        pooled = self._pooled_frames(frames, frame, i if study else None)
        target = query.target[q]
        weight, memory, attention = self.pre_weight(
            self.empty.expand(len(q), -1),
            pooled,
            embeddings[i],
            embeddings[target],
            torch.zeros_like(pooled[:, 0]),
            target,
        )
        table = torch.zeros(query.sources.shape, dtype=weight.dtype, device=weight.device).index_put((q, i), weight)
        memories = torch.zeros(*query.sources.shape, memory.shape[1], dtype=memory.dtype, device=memory.device)
        memories = memories.index_put((q, i), memory)
        choice = (table.detach() * 1e4).round()
        if generator is not None:
            uniform = torch.rand(table.shape, generator=generator).to(table.device)
            gumbel = -(-uniform.clamp(1e-6, 1 - 1e-6).log()).log()
            choice = torch.logit(table.detach(), eps=1e-4) + 0.5 * gumbel
        key = choice.masked_fill(~control.candidates(query), torch.finfo(choice.dtype).min).argmax(dim=1)
        return _FirstLook(table, memories, key, attention, target)

    def _pooled(self, state: Pyramid, inside: Pyramid, rows: Tensor, group: Tensor | None) -> Tensor:
        """State of the given rows pooled over the foreground -> (rows, p).

        Detached: the weighting networks read what the image needs, they do not bend it to their needs.
        """
        parts = []
        for s in FUSED_STRIDES:
            mask = inside[s][rows]
            parts.append(_mean((state[s] * mask).sum(dim=(2, 3)), mask.sum(dim=(2, 3)), group))
        return self.pool(torch.cat(parts, dim=1).detach())

    def _pooled_frames(self, frames: Frames, frame: Tensor, group: Tensor | None) -> Tensor:
        """Frames pooled over their foreground -> (rows, p)."""
        return self._pooled({s: frames.pyramid[s][frame] for s in FUSED_STRIDES}, frames.inside, frame, group)

    def _inside(self, frames: Frames, query: Query) -> Pyramid:
        """Foreground of a query: the union over its sources."""
        rows = frames.row[query.sample]  # (q, m)
        masks = {}
        for s in FUSED_STRIDES:
            padded = torch.cat([frames.inside[s], torch.zeros_like(frames.inside[s][:1])])
            masks[s] = torch.stack(
                [padded[torch.where(query.sources[:, i], rows[:, i], -1)] for i in range(rows.shape[1])]
            ).amax(dim=0)
        return masks

    def _advance(
        self,
        state: Pyramid,
        frames: Frames,
        rows: Tensor,
        frame: Tensor,
        facts: Tensor,
        gate: Tensor,
        pair: Tensor,
        bounds: Tensor | None,
    ) -> tuple[Pyramid, Pyramid]:
        """f <- f + W_eff * R(F_i, f) at every stride; replaces the tensors in `state`.

        Returns the maps as they were predicted, and W_eff: gated, within the bounds, and not taught by the image.
        """
        if not len(rows):
            return {}, {}
        here = {s: state[s][rows] for s in FUSED_STRIDES}
        there = {s: frames.pyramid[s][frame] for s in FUSED_STRIDES}
        maps = self.effi_weight(here, there, facts)
        let_in = {s: gate[:, None, None, None] * maps[s].detach() for s in maps}
        if bounds is not None:
            for s in let_in:
                let_in[s] = let_in[s].clamp(*functional.avg_pool2d(bounds, s).split(1, dim=1))
        for s in FUSED_STRIDES:
            step = let_in[s] * self.refinement(here[s], there[s], s, pair)
            state[s] = state[s].index_add(0, rows, step.to(state[s].dtype))
        return maps, let_in


def _planned(plan: Plan, target: Tensor, position: int, like: Tensor) -> Decision:
    steps = [plan[j][position] for j in target.tolist()]
    facts = like.new_tensor([[step.weight, step.threshold, step.gate] for step in steps])
    return facts[:, 0], facts[:, 1], facts[:, 2], torch.stack([step.memory for step in steps])


@dataclass(frozen=True, slots=True)
class _FirstLook:
    """Weights (q, m) and memories (q, m, d) against an empty state, and the key frame (q,)."""

    weight: Tensor
    memory: Tensor
    key: Tensor
    attention: Tensor | None
    target: Tensor

    @classmethod
    def of_plan(cls, plan: Plan, query: Query, embeddings: Tensor) -> "_FirstLook":
        weight = embeddings.new_zeros(query.sources.shape)
        memory = embeddings.new_zeros(*query.sources.shape, embeddings.shape[1])
        key = torch.zeros_like(query.target)
        for q, j in enumerate(query.target.tolist()):
            head = plan[j][0]
            weight[q, head.source], memory[q, head.source], key[q] = head.weight, head.memory, head.source
        return cls(weight, memory, key, None, query.target)


def _fine(maps: Tensor) -> Tensor:
    """The finest maps (rows, 1, h / 4, w / 4) -> (rows, h, w)."""
    return functional.interpolate(maps, scale_factor=4.0, mode="bilinear").squeeze(1)


def _share(free: Tensor, bounds: Tensor) -> Tensor:
    """How much of its effect a frame keeps, (rows, h, w): W_eff within bounds (rows, 2, h, w) over the free one.

    At most 1: so a bound that changes nothing changes nothing here, and 0 leaves nothing.
    """
    return (free.clamp(*bounds.unbind(dim=1)) / free.clamp_min(1e-6)).clamp_max(1.0)


def _mean(total: Tensor, mass: Tensor, group: Tensor | None = None) -> Tensor:
    """total / mass, both summed over rows of one group first where groups are given."""
    if group is not None:
        size = int(group.max()) + 1
        total = total.new_zeros(size, total.shape[1]).index_add(0, group, total)[group]
        mass = mass.new_zeros(size, mass.shape[1]).index_add(0, group, mass)[group]
    return total / mass.clamp_min(1e-3)
