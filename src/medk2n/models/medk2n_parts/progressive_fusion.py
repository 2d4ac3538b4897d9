"""Progressive fusion: a key frame, then the others one by one, each only as far as it helps.

The state after k frames is their presence maps; the synthesizer's pass on it says what it expects of the target and of
every frame that is still to come (`evidence.py`). From that, PreWeightNet predicts what the next frame would gain,
ThresholdNet how much is enough, EffiWeightNet where. The order comes from the content: frames are ranked by their
weight in a first look, rounded, ties by modality, so that permuting the inputs changes nothing. In inference
every decision is taken once per study from evidence pooled over its slices (`study=True`) and kept in a `Plan`, so that
slices do not flicker.

Shapes: b samples, m modalities, q queries, r rows of a step.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from medk2n.models._spec import Query
from medk2n.models.layers.unet_trunk import Pyramid
from medk2n.models.medk2n_parts.control import Control, Plan, PlannedStep
from medk2n.models.medk2n_parts.effi_weight_net import EffiWeightNet, as_map
from medk2n.models.medk2n_parts.evidence import (
    FACTS,
    INNOVATION,
    LOCAL,
    OWN,
    Evidence,
    Looks,
    innovation,
    local_evidence,
    own_look,
    target_facts,
)
from medk2n.models.medk2n_parts.pre_weight_net import PreWeightNet
from medk2n.models.medk2n_parts.proposals import Proposals
from medk2n.models.medk2n_parts.threshold_net import ThresholdNet, gate_logit

_MAPPED_FROM = 0.05
"""Share of the patient that has to be in doubt before a frame's map is worked out."""
_WANDER_DB = 1.0
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
        threshold: (r,) tau_ij in dB; 0 for the key frame.
        logit: (r,) of the gate; 0 for the key frame.
        gate: (r,) bool, whether W passed tau; True for the key frame.
        entered: (r,) bool, whether the frame was let in: as the gate says, but where training tries things out.
        mapped: (r,) bool, whether P is a map; else the frame counts whole.
        memory: (r, d) what the memory bank answered.
        attention: (r, L) over its slots; None where a plan is followed.
        before, after: (r,) rows of the proposals without the frame and with it; -1 where a plan was followed without.
        map_logit: (r, 1, h / 8, w / 8) of P before the gate; None for the key frame, and where no map is worked out.
    """

    rows: Tensor
    source: Tensor
    weight: Tensor
    threshold: Tensor
    logit: Tensor
    gate: Tensor
    entered: Tensor
    mapped: Tensor
    memory: Tensor
    attention: Tensor | None = None
    before: Tensor | None = None
    after: Tensor | None = None
    map_logit: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """What speaks for and against one frame for some queries (`evidence.py`), pooled over a study where it is decided.

    Attributes:
        facts: (r, FACTS).
        quality: (r,) of the state: its predicted error for the target.
        before, after: (r,) rows of the proposals without the frame and with it.
        local, mass: (r, LOCAL, h / 8, w / 8) evidence of each window, and (r, 1, ...) the share of the patient in it.
    """

    facts: Tensor
    quality: Tensor
    before: Tensor
    after: Tensor
    local: Tensor
    mass: Tensor

    @property
    def agreement(self) -> Tensor:
        """(r,) how far the frame lies from what is expected of it, beside its usual distance."""
        return self.facts[:, 2 * OWN + 1]


@dataclass(frozen=True, slots=True)
class Fused:
    """What was let in for every query.

    Attributes:
        presence: (q, m, h, w) maps.
        whole: (q,) bool, no map is anything but all 0 or all 1: queries of the same sets share a pass.
        steps: one `FusionStep` per position in the sequence, key frame first.
        first: (q, m) weights in dB of a first look; 0 where a plan is followed.
        looks: the evidence that frames gave by themselves; None where a plan is followed.
        first_attention: (n, L) and its targets (n,), of the first look.
    """

    presence: Tensor
    whole: Tensor
    steps: list[FusionStep]
    first: Tensor
    looks: Looks | None = None
    first_attention: list[tuple[Tensor, Tensor]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Guidance:
    """How decisions are taken: by a plan, within a user's control, once for a study, or wandering while training.

    Attributes:
        blend: (b, n) how much every sample takes of the maps of each of the n slices on which a plan was made; None
            where the samples are those slices.
    """

    plan: Plan | None = None
    control: Control = field(default_factory=Control)
    study: bool = False
    generator: torch.Generator | None = None
    blend: Tensor | None = None


class ProgressiveFusion(nn.Module):
    """The three weighting networks and the loop around them; see the module's docstring."""

    def __init__(self, m: int, embedding: int, slots: int) -> None:
        super().__init__()
        self.evidence = Evidence(m)
        self.pre_weight = PreWeightNet(m, FACTS, embedding, slots)
        self.threshold = ThresholdNet(embedding)
        self.effi_weight = EffiWeightNet(LOCAL, embedding)
        self.register_buffer("gained", torch.zeros(m, m))
        self.register_buffer("measured", torch.zeros(m, m))
        self.register_buffer("taught", torch.zeros(()))

    @property
    def history(self) -> Tensor:
        """p_ij in dB, (m, m): mean gain of whole frame i for target j, corrected for having started at 0."""
        return self.gained / self.measured.clamp_min(1e-6)

    @torch.no_grad()
    def observe(self, total: Tensor, count: Tensor, momentum: float = 0.98) -> None:
        """Feed measured gains of the training stream into the history p_ij; evaluation never calls it.

        Args:
            total, count: (m, m), sum and number of the gains in dB of source i for target j.
        """
        keep = momentum**count
        self.gained.copy_(keep * self.gained + (1 - keep) * total / count.clamp_min(1))
        self.measured.copy_(keep * self.measured + (1 - keep))

    def forward(self, scene: Scene, query: Query, embeddings: Tensor, guidance: Guidance) -> Fused:
        """Let the frames of every query in, one by one."""
        if guidance.plan is None:
            looks = self.look(scene, query, guidance.study)
            first, attention = self._first_look(scene, looks, query, embeddings, guidance)
            order = self._order(first, query, guidance)
        else:
            looks, first, attention = None, torch.zeros(query.sources.shape, device=query.target.device), []
            order = _planned_order(guidance.plan, query)
        count = (order >= 0).sum(dim=1)
        state = _State.starting(scene, query, order[:, 0])
        steps = [_key_step(order[:, 0], first, embeddings.shape[1])]
        for position in range(1, order.shape[1]):
            rows = (count > position).nonzero().squeeze(1)
            i = order[rows, position]
            if guidance.plan is None:
                step = self._decide(scene, looks, query, embeddings, guidance, state.members, rows, i)
            else:
                step = self._follow(query, embeddings, guidance, rows, i, position)
            steps.append(step)
            state.add(step, guidance.control)
        return Fused(state.presence, state.whole, steps, first, looks, attention)

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

    def _first_look(
        self, scene: Scene, looks: Looks, query: Query, embeddings: Tensor, guidance: Guidance
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """What every frame is worth by itself, weighed against all others: W (q, m) in dB, and attentions."""
        weights = embeddings.new_full(query.sources.shape, -torch.inf)
        attention = []
        for i in query.sources.any(dim=0).nonzero().squeeze(1).tolist():
            rows = query.sources[:, i].nonzero().squeeze(1)
            source, asked = torch.full_like(rows, i), query.only(rows)
            facts = self._first_facts(scene, looks, asked, i, study=guidance.study)
            w, _, seen = self.pre_weight(facts, embeddings[source], embeddings[asked.target], asked.target)
            weights = weights.index_put((rows, source), w.float())
            attention.append((seen, asked.target))
        return weights, attention

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
        facts = self.evidence.facts(looks, asked.sample, asked.sources, state, i, surprise, target)
        local, mass = local_evidence(frames, expected, so_far, with_it[0], inside)
        return Told(facts, target[:, 4], before, after, local, mass)

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
        asked, m = query.only(rows), query.sources.shape[1]
        told = self._told(scene, looks, asked, members[rows], i, study=guidance.study)
        e_i, e_j = embeddings[i], embeddings[asked.target]
        weight, memory, attention = self.pre_weight(told.facts, e_i, e_j, asked.target)
        tau = self.threshold(e_i, e_j, self.history[i, asked.target], told.agreement, told.quality)
        if guidance.study:
            lead = _leader(asked.target)
            weight, tau, memory = weight[lead], tau[lead], memory[lead]
        logit = gate_logit(weight, tau)
        gate = (logit > 0) | (self.taught == 0)  # until it was taught, the fusion lets everything in
        said = torch.cat([weight[:, None], tau[:, None], memory, e_i, e_j], dim=1)
        map_logit = self.effi_weight(told.local, told.mass, said)
        doubt = ((map_logit < 0) * told.mass).sum(dim=(1, 2, 3)), told.mass.sum(dim=(1, 2, 3))
        if guidance.study:
            doubt = tuple(torch.zeros(m, device=x.device).index_add(0, asked.target, x)[asked.target] for x in doubt)
        mapped = (doubt[0] > _MAPPED_FROM * doubt[1]) & (self.taught > 0)
        entered = gate
        if guidance.generator is not None:
            tried = torch.rand(len(gate), generator=guidance.generator).to(gate.device)
            entered = torch.where(tried < 0.5, tried < 0.35, gate)
        passes = told.before, told.after
        return FusionStep(rows, i, weight, tau, logit, gate, entered, mapped, memory, attention, *passes, map_logit)

    def _follow(
        self, query: Query, embeddings: Tensor, guidance: Guidance, rows: Tensor, i: Tensor, position: int
    ) -> FusionStep:
        """A planned step; its maps lie between those of the slices on which the study was decided."""
        plan = guidance.plan
        steps = [plan[j][position] for j in query.target[rows].tolist()]
        facts = embeddings.new_tensor([[s.weight, s.threshold, s.gate, float(s.mapped)] for s in steps])
        weight, tau, gate, mapped = facts.unbind(dim=1)
        memory = torch.stack([s.memory for s in steps]).to(embeddings.device)
        gate, mapped = gate > 0, (mapped > 0) & (gate > 0)
        map_logit = None
        if mapped.any():
            like = next(s.logit for s in steps if s.logit is not None)
            logits = torch.stack([like.new_zeros(like.shape) if s.logit is None else s.logit for s in steps])
            blend = torch.eye(len(like), device=like.device) if guidance.blend is None else guidance.blend
            map_logit = torch.einsum("rn,rn...->r...", blend[query.sample[rows]].to(like.dtype), logits)
        return FusionStep(
            rows, i, weight, tau, gate_logit(weight, tau), gate, gate, mapped, memory, map_logit=map_logit
        )

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
                    steps.append(
                        PlannedStep(
                            int(step.source[k]),
                            float(step.weight[k]),
                            float(step.threshold[k]),
                            float(step.gate[k]),
                            bool(step.mapped[k]),
                            step.memory[k].clone(),
                            step.map_logit[query.target[step.rows] == j].clone() if step.mapped[k] else None,
                        )
                    )
            plan[j] = tuple(steps)
        return plan


@dataclass(slots=True)
class _State:
    """Presence maps (q, m, h, w) while frames are let in, and the frames (q, m) that are."""

    query: Query
    presence: Tensor
    members: Tensor
    whole: Tensor

    @classmethod
    def starting(cls, scene: Scene, query: Query, key: Tensor) -> "_State":
        """With the key frame, whole."""
        members = functional.one_hot(key, query.sources.shape[1]).bool()
        presence = members[:, :, None, None].to(scene.images.dtype)
        return cls(query, presence.repeat(1, 1, *scene.images.shape[-2:]), members, torch.ones_like(members[:, 0]))

    def add(self, step: FusionStep, control: Control) -> None:
        """Let a step's frames in as far as gates, maps and the user's bounds say."""
        size = self.presence.shape[-2:]
        shown = step.entered[:, None, None].to(self.presence.dtype).expand(-1, *size)
        if step.map_logit is not None:
            shown = torch.where(step.mapped[:, None, None], shown * as_map(step.map_logit, size), shown)
        bounded = control.bound(shown, self.query, step.rows, step.source)
        self.presence = self.presence.index_put((step.rows, step.source), bounded)
        some = (bounded > 0).any(dim=(1, 2))  # what a user bounds to nothing is no member, and what is fixed is one
        self.members = self.members.index_put((step.rows, step.source), some)
        even = (bounded == bounded[:, :1, :1]).all(dim=(1, 2)) & ((bounded[:, 0, 0] == 0) | (bounded[:, 0, 0] == 1))
        self.whole = self.whole.index_put((step.rows,), self.whole[step.rows] & even)


def _key_step(key: Tensor, first: Tensor, width: int) -> FusionStep:
    rows = torch.arange(len(key), device=key.device)
    weight = first[rows, key]
    zero, yes = torch.zeros_like(weight), torch.ones_like(key, dtype=torch.bool)
    return FusionStep(rows, key, weight, zero, zero, yes, yes, ~yes, zero[:, None].repeat(1, width))


def _planned_order(plan: Plan, query: Query) -> Tensor:
    order = torch.full((len(query.target), max(map(len, plan.values()))), -1, device=query.target.device)
    for j in query.target.unique().tolist():
        sequence = torch.tensor([step.source for step in plan[j]], device=order.device)
        order[query.target == j, : len(sequence)] = sequence
    return order


def _leader(group: Tensor) -> Tensor:
    """(q,) the first row of every row's group."""
    return (group[:, None] == group[None]).int().argmax(dim=1)
