"""Progressive fusion: a key frame, then the others one by one, each only as far as it helps.

The state after k frames is the set of those let in; the synthesizer's pass on it says what it expects of the target
and of every frame that is still to come (`evidence.py`). From that, PreWeightNet predicts what the next frame would
gain, and EffiWeightNet how far it is let in. The order comes from the content: frames are ranked by their weight in a
first look, rounded, ties by modality, so that permuting the inputs changes nothing. In inference every decision is
taken once per study from evidence pooled over its slices (`study=True`) and kept in a `Plan`, so that slices do not
flicker.

Shapes: b samples, m modalities, q queries, r rows of a step.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from medk2n.models._spec import Query
from medk2n.models.layers.unet_trunk import Pyramid
from medk2n.models.medk2n_parts.control import Control, Plan, PlannedStep
from medk2n.models.medk2n_parts.effi_weight_net import EffiWeightNet, settled
from medk2n.models.medk2n_parts.evidence import (
    FACTS,
    INNOVATION,
    OWN,
    Evidence,
    Looks,
    innovation,
    own_look,
    target_facts,
)
from medk2n.models.medk2n_parts.pre_weight_net import PreWeightNet
from medk2n.models.medk2n_parts.proposals import Proposals

_WANDER_DB = 1.0
_IN_DOUBT = 2
"""Frames of a query that may be in by half: each doubles the passes. Others are then in or out."""
_ROWS_AT_ONCE = 48


@dataclass(frozen=True, slots=True)
class Scene:
    """What the fusion looks at.

    Attributes:
        images: (b, m, s, h, w), padded; 0 where no query reads.
        inside: (b, h, w) bool, where any frame that is read shows the patient.
        proposals: of the synthesizer, from sets of these frames.
        encoded: what a frame encoder found in them, and the row (b, m) of each frame there; None without an encoder.
    """

    images: Tensor
    inside: Tensor
    proposals: Proposals
    encoded: tuple[Pyramid, Tensor] | None = None


@dataclass(frozen=True, slots=True)
class FusionStep:
    """What the networks thought of one frame for some queries.

    Attributes:
        rows: (r,) the queries that have such a step.
        source: (r,) modality index.
        weight: (r,) W_ij in dB.
        gate: (r,) P_ij; 1 for the key frame.
        entered: (r,) bool, whether the next frames are held against a state with it: where P is more than one half, but
            where training tries things out.
        before, after: (r,) rows of the proposals without the frame and with it; None for the key frame, and where a
            plan is followed.
    """

    rows: Tensor
    source: Tensor
    weight: Tensor
    gate: Tensor
    entered: Tensor
    before: Tensor | None = None
    after: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """What speaks for and against one frame for some queries (`evidence.py`), pooled over a study where it is decided.

    Attributes:
        facts: (r, FACTS).
        before, after: (r,) rows of the proposals without the frame and with it.
    """

    facts: Tensor
    before: Tensor
    after: Tensor


@dataclass(frozen=True, slots=True)
class Fused:
    """What was let in for every query.

    Attributes:
        presence: (q, m, h, w), the share of the answer that sees each frame.
        steps: one `FusionStep` per position in the sequence, key frame first.
        first: (q, m) weights in dB of a first look; 0 where a plan is followed.
        looks: the evidence that frames gave by themselves; None where a plan is followed.
    """

    presence: Tensor
    steps: list[FusionStep]
    first: Tensor
    looks: Looks | None = None


@dataclass(frozen=True, slots=True)
class Guidance:
    """How decisions are taken: by a plan, within a user's control, once for a study, or wandering while training."""

    plan: Plan | None = None
    control: Control = field(default_factory=Control)
    study: bool = False
    generator: torch.Generator | None = None


class ProgressiveFusion(nn.Module):
    """The weighting networks and the loop around them; see the module's docstring."""

    def __init__(self, m: int, embedding: int) -> None:
        super().__init__()
        self.evidence = Evidence(m)
        self.pre_weight = PreWeightNet(FACTS, embedding)
        self.effi_weight = EffiWeightNet(m)
        self.register_buffer("taught", torch.zeros(()))

    def forward(self, scene: Scene, query: Query, embeddings: Tensor, guidance: Guidance) -> Fused:
        """Let the frames of every query in, one by one."""
        if guidance.plan is None:
            looks = self.look(scene, query, guidance.study)
            first = self._first_look(scene, looks, query, embeddings, guidance)
            order = self._order(first, query, guidance)
        else:
            looks, first = None, torch.zeros(query.sources.shape, device=query.target.device)
            order = _planned_order(guidance.plan, query)
        count = (order >= 0).sum(dim=1)
        state = _State.starting(scene, query, order[:, 0])
        steps = [_key_step(order[:, 0], first)]
        for position in range(1, order.shape[1]):
            rows = (count > position).nonzero().squeeze(1)
            i = order[rows, position]
            if guidance.plan is None:
                step = self._decide(scene, looks, query, embeddings, guidance, state.members, rows, i)
            else:
                step = _follow(guidance.plan, query, rows, i, position)
            steps.append(step)
            state.add(step, guidance.control)
        return Fused(state.presence, steps, first, looks)

    @torch.no_grad()
    def look(self, scene: Scene, query: Query, study: bool) -> Looks:
        """Every frame by itself, and against what each other frame of its sample expects of it alone."""
        b, m = scene.images.shape[:2]
        needed = query.needed(b)
        sample, i = needed.nonzero().unbind(dim=1)
        own = scene.images.new_zeros(b, m, OWN)
        own[sample, i] = own_look(scene.images[sample, i], scene.inside[sample], i if study else None)
        both = needed[:, :, None] & needed[:, None, :] & ~torch.eye(m, dtype=torch.bool, device=needed.device)
        pairs = scene.images.new_full((b, m, m, INNOVATION), torch.nan)
        sample, i, k = both.nonzero().unbind(dim=1)
        if len(sample):
            alone = scene.proposals.rows(sample, functional.one_hot(k, m).bool())
            x = scene.images[:, :, scene.images.shape[2] // 2]
            # rows of a pair are pooled in a study, so they have to come together
            parts = [(i * m + k == c).nonzero().squeeze(1) for c in (i * m + k).unique()] if study else torch.arange(
                len(i), device=i.device).split(_ROWS_AT_ONCE)  # fmt: skip
            for at in parts:
                expected = scene.proposals.of(alone[at], i[at])
                group = torch.zeros_like(at) if study else None
                told = innovation(x[sample[at], i[at]], *expected, scene.inside[sample[at]], group)
                pairs[sample[at], i[at], k[at]] = told
        return Looks(own, pairs)

    def _first_look(self, scene: Scene, looks: Looks, query: Query, embeddings: Tensor, guidance: Guidance) -> Tensor:
        """What every frame is worth by itself, weighed against all others: W (q, m) in dB."""
        weights = embeddings.new_full(query.sources.shape, -torch.inf)
        for i in query.sources.any(dim=0).nonzero().squeeze(1).tolist():
            rows = query.sources[:, i].nonzero().squeeze(1)
            source, asked = torch.full_like(rows, i), query.only(rows)
            facts = self._first_facts(scene, looks, asked, i, study=guidance.study)
            w = self.pre_weight(facts, embeddings[source], embeddings[asked.target])
            weights = weights.index_put((rows, source), w.float())
        return weights

    def _first_facts(self, scene: Scene, looks: Looks, asked: Query, i: int, *, study: bool) -> Tensor:
        """(q, FACTS) of frame i, one of the sources of all these queries, beside all their others."""
        m = asked.sources.shape[1]
        source = torch.full_like(asked.target, i)
        one = functional.one_hot(source, m).bool()
        alone = scene.proposals.of(scene.proposals.rows(asked.sample, one), asked.target)
        others = self._others(scene, asked, i, alone)
        target = target_facts(others, alone, alone, scene.inside[asked.sample], asked.target if study else None)
        nothing = target.new_full((len(source), INNOVATION), torch.nan)
        none = torch.zeros_like(asked.sources)
        return self.evidence.facts(looks, asked.sample, asked.sources, none, source, nothing, target)

    def _told(self, scene: Scene, looks: Looks, asked: Query, state: Tensor, i: Tensor, *, study: bool) -> Told:
        """Frame i (r,) against the states (r, m) bool of some queries."""
        one, p = functional.one_hot(i, state.shape[1]).bool(), scene.proposals
        before, after, alone = (p.rows(asked.sample, s) for s in (state, state | one, one))
        inside, group = scene.inside[asked.sample], asked.target if study else None
        frames, expected, so_far = scene.images[asked.sample, i], p.of(before, i), p.of(before, asked.target)
        with_it = p.of(after, asked.target)
        surprise = innovation(frames[:, frames.shape[1] // 2], *expected, inside, group)
        target = target_facts(so_far, p.of(alone, asked.target), with_it, inside, group)
        return Told(self.evidence.facts(looks, asked.sample, asked.sources, state, i, surprise, target), before, after)

    def _others(self, scene: Scene, asked: Query, i: int, alone: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """What the other frames propose for the target, each alone, on average; where there are none, frame i's own."""
        rest = asked.sources.clone()
        rest[:, i] = False
        row, k = rest.nonzero().unbind(dim=1)
        found = tuple(torch.zeros_like(x) for x in alone)
        if len(row):
            at = scene.proposals.rows(asked.sample[row], functional.one_hot(k, rest.shape[1]).bool())
            for out, x in zip(found, scene.proposals.of(at, asked.target[row]), strict=True):
                out.index_add_(0, row, x.to(out.dtype))
        count = rest.sum(dim=1)[:, None, None]
        return tuple(torch.where(count > 0, x / count.clamp_min(1), y) for x, y in zip(found, alone, strict=True))

    def _order(self, first: Tensor, query: Query, guidance: Guidance) -> Tensor:
        """Sources of every query in the order they are added, (q, k); -1 where there are no more."""
        rank = torch.where(query.sources, first.detach(), -torch.inf)
        if guidance.generator is not None:
            noise = torch.rand(rank.shape, generator=guidance.generator).to(rank.device)
            rank = rank - _WANDER_DB * (-(noise.clamp(1e-6, 1 - 1e-6)).log()).log()
        rank = (rank * 100).round() / 100
        if guidance.study:  # all slices of a study follow its first
            rank = rank[_leader(query.target)]
        guidance.control.reorder(rank, query)
        may = guidance.control.candidates(query)
        key = torch.where(may, rank, -torch.inf).argmax(dim=1)
        rank = rank.scatter(1, key[:, None], torch.inf)
        order = rank.argsort(dim=1, descending=True, stable=True)
        there = query.sources.gather(1, order)
        return torch.where(there, order, -1)[:, : int(query.sources.sum(dim=1).max())]

    def _decide(
        self,
        scene: Scene,
        looks: Looks,
        query: Query,
        embeddings: Tensor,
        guidance: Guidance,
        members: Tensor,
        rows: Tensor,
        i: Tensor,
    ) -> FusionStep:
        """Weigh frame i for some queries against their states."""
        asked = query.only(rows)
        told = self._told(scene, looks, asked, members[rows], i, study=guidance.study)
        weight = self.pre_weight(told.facts, embeddings[i], embeddings[asked.target])
        if guidance.study:
            weight = weight[_leader(asked.target)]
        gate = self.effi_weight(weight, asked.target)
        gate = torch.where(self.taught > 0, gate, 1.0)  # until it was taught, the fusion lets everything in
        entered = gate > 0.5
        if guidance.generator is not None:
            tried = torch.rand(len(entered), generator=guidance.generator).to(entered.device)
            entered = torch.where(tried < 0.5, tried < 0.35, entered)
        return FusionStep(rows, i, weight, gate, entered, told.before, told.after)

    def plan(self, fused: Fused, query: Query) -> Plan:
        """Read a study's decisions out of a pass with `study=True`."""
        plan: Plan = {}
        for j in query.target.unique().tolist():
            q = int((query.target == j).nonzero()[0])
            steps = []
            for step in fused.steps:
                at = (step.rows == q).nonzero().squeeze(1)
                if len(at):
                    k = int(at[0])
                    tau = float(self.effi_weight.threshold.level[j]) if steps else 0.0
                    gate = float(settled(step.gate[k]))
                    steps.append(PlannedStep(int(step.source[k]), float(step.weight[k]), tau, gate))
            plan[j] = tuple(steps)
        return plan


@dataclass(slots=True)
class _State:
    """Presence (q, m, h, w) while frames are let in, the frames (q, m) that the next ones are held against, and how
    many are in doubt (q,)."""

    query: Query
    presence: Tensor
    members: Tensor
    doubts: Tensor

    @classmethod
    def starting(cls, scene: Scene, query: Query, key: Tensor) -> "_State":
        """With the key frame, whole."""
        members = functional.one_hot(key, query.sources.shape[1]).bool()
        presence = members[:, :, None, None].to(scene.images.dtype)
        return cls(query, presence.repeat(1, 1, *scene.images.shape[-2:]), members, torch.zeros_like(key))

    def add(self, step: FusionStep, control: Control) -> None:
        """Let a step's frames in as far as their weights and the user's bounds say."""
        size = self.presence.shape[-2:]
        share = settled(step.gate).to(self.presence.dtype)
        share = torch.where(self.doubts[step.rows] < _IN_DOUBT, share, share.round())
        self.doubts = self.doubts.index_add(0, step.rows, (share != share.round()).long())
        shown = share[:, None, None].expand(-1, *size)
        bounded = control.bound(shown, self.query, step.rows, step.source)
        self.presence = self.presence.index_put((step.rows, step.source), bounded)
        # what a user bounds to nothing is no member, and what is fixed is one
        moved = (bounded != shown).any(dim=(1, 2))
        some = torch.where(moved, (bounded > 0).any(dim=(1, 2)), step.entered)
        self.members = self.members.index_put((step.rows, step.source), some)


def _key_step(key: Tensor, first: Tensor) -> FusionStep:
    rows = torch.arange(len(key), device=key.device)
    weight = first[rows, key]
    return FusionStep(rows, key, weight, torch.ones_like(weight), torch.ones_like(key, dtype=torch.bool))


def _follow(plan: Plan, query: Query, rows: Tensor, i: Tensor, position: int) -> FusionStep:
    """A planned step."""
    steps = [plan[j][position] for j in query.target[rows].tolist()]
    told = torch.tensor([[s.weight, s.gate] for s in steps], device=i.device)
    weight, gate = told.unbind(dim=1)
    return FusionStep(rows, i, weight, gate, gate > 0.5)


def _planned_order(plan: Plan, query: Query) -> Tensor:
    order = torch.full((len(query.target), max(map(len, plan.values()))), -1, device=query.target.device)
    for j in query.target.unique().tolist():
        sequence = torch.tensor([step.source for step in plan[j]], device=order.device)
        order[query.target == j, : len(sequence)] = sequence
    return order


def _leader(group: Tensor) -> Tensor:
    """(q,) the first row of every row's group."""
    return (group[:, None] == group[None]).int().argmax(dim=1)
