"""Med-K2N's lesson: first the synthesizer and its heads, then the weighting networks beside them.

The synthesizer learns from random sets of frames, mostly whole, a small share with regions hidden, some damaged. In
the last part of the budget it stands still, as its moving average, and the networks that weigh frames learn what each
is really worth: gains are measured on the proposals that the fusion looks at anyway, on subjects that the synthesizer
never learned from (errors on fitted data flatter), with damage in four inputs of ten. The error's own estimate is
calibrated there too, and has to differ between sets as the true errors do.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from medk2n.data.batches import Batch
from medk2n.identity.network import IdentityNet
from medk2n.losses.gains import gain_db, presence_error, set_error, weight_error
from medk2n.losses.identity import causal_error, metric_error
from medk2n.losses.likelihood import gaussian_nll
from medk2n.losses.reconstruction import edge_error, log_mse
from medk2n.models._spec import Query
from medk2n.models.layers.shared_passes import padded
from medk2n.models.medk2n import MULTIPLE
from medk2n.models.medk2n_parts.evidence import Looks
from medk2n.models.medk2n_parts.progressive_fusion import Guidance, Scene
from medk2n.training.lesson import Pupil
from medk2n.training.queries import as_query, draw_sources, every_target, focused
from medk2n.training.reading import FOLD, REST
from medk2n.training.world import World


class MedK2NLesson:
    """See the module's docstring; `observed` adds up what the buffers are to know of the step at hand."""

    def __init__(self, pupil: Pupil) -> None:
        self.pupil, self.module = pupil, pupil.module
        self.teaching = pupil.config.teaching
        self._observed: list[Tensor] | None = None
        self._v: IdentityNet | None = None
        if self.kind(0.0) == FOLD:  # the whole budget is theirs: nothing else learns from the first step on
            self.enter(self.module)

    def recognised_by(self, v: IdentityNet) -> None:
        """See `Lesson`."""
        self._v = v.to(next(self.module.parameters()).device)

    def kind(self, progress: float) -> str:
        """See `Lesson`."""
        return REST if progress < 1 - self.teaching.weighing else FOLD

    def span(self, progress: float) -> tuple[float, float]:
        """See `Lesson`."""
        begin = 1 - self.teaching.weighing
        return (0.0, begin) if progress < begin else (begin, 1.0)

    def enter(self, averaged: nn.Module) -> None:
        """From here on the weighting networks alone learn, and the path to the variance."""
        self.module.load_state_dict(averaged.state_dict())
        self.module.fusion.taught.fill_(1)
        self.resumed()

    def resumed(self) -> None:
        """Leave gradients to what the second kind of step trains."""
        learning = {id(p) for part in self._weighing() for p in part.parameters()}
        for p in self.module.parameters():
            p.requires_grad_(id(p) in learning)

    def _weighing(self) -> list[nn.Module]:
        return [self.module.fusion, self.module.heads.doubt, self.module.heads.doubted]

    def loss(self, batch: Batch, seed: int, progress: float, world: World) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Lesson`."""
        rng = np.random.default_rng(seed)
        batch = focused(batch, self.pupil.config, rng)
        if self.kind(progress) == REST:
            loss, parts = self._paint(batch, rng, progress, world)
        else:
            loss, parts = self._weigh(batch, rng, seed, world)
        return loss, {name: value.detach() for name, value in (parts | {"loss": loss}).items()}

    def _paint(
        self, batch: Batch, rng: np.random.Generator, progress: float, world: World
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The synthesizer: every image that a crop has, from random sets of frames."""
        shape = self.pupil.config.batch
        acquired = batch.acquired.cpu().numpy()
        samples, subsets = draw_sources(acquired, rng, draws=shape.draws, most=self.most_frames(progress))
        subsets = without_damaged(subsets, batch.severity.cpu().numpy()[samples], rng)
        presence = hidden(subsets, batch.foreground.shape[-2:], rng, self.teaching.hide)
        sets = torch.from_numpy(samples), torch.from_numpy(subsets)
        judged = batch.askable(*(x.to(batch.acquired.device) for x in sets)).nonzero()  # where the batch was drawn
        sample, sources, presence, judged = (x.to(world.device) for x in (*sets, presence, judged))
        asked = self._v is not None and rng.random() < self.pupil.config.identity.asked
        return self.paint(batch.to(world.device), sample, presence, sources, world, judged=judged, asked=asked)

    def most_frames(self, progress: float) -> int:
        """Of a set that the synthesizer learns from: one at first, then ever more, where a curriculum is asked for."""
        most, begun = self.pupil.config.batch.most_sources, self.teaching.curriculum
        return most if progress >= begun else 1 + int(progress / begun * (most - 1))

    def paint(
        self,
        batch: Batch,
        sample: Tensor,
        presence: Tensor,
        sources: Tensor,
        world: World,
        *,
        judged: Tensor | None = None,
        asked: bool = False,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of some passes, all on the device of the model.

        Args:
            sample: (p,).
            presence: (p, m, h, w).
            sources: (p, m) bool, frames that are there at least in part.
            judged: (r, 2) pass and modality of every image that counts; None is all that may be asked for, which
                the host has to wait for.
            asked: whether V is asked what the images are.
        """
        judged = batch.askable(sample, sources).nonzero() if judged is None else judged
        module, losses = self.module, self.pupil.config.losses
        h, w = batch.foreground.shape[-2:]
        everything = torch.arange(module.m, device=sample.device)
        with world.autocast():
            images = padded(batch.images, MULTIPLE)
            encoded = module.encode(images, Query(sample, sources, sample).needed(len(images)))
            made = module.propose(images, sample, padded(presence, MULTIPLE), everything, encoded)
        row, target = judged.unbind(dim=1)
        mean, log_variance = (x[row, target, :h, :w] for x in made)
        truth, inside = batch.targets[sample[row], target], batch.foreground[sample[row]]
        share = torch.where(sources[row, target], losses.remade, 1.0)
        share = share / share.sum()
        parts = {
            "log_mse": losses.log_mse * (share * log_mse(mean, truth, inside)).sum(),
            "edges": losses.edges * (share * edge_error(mean, truth, inside)).sum(),
            "likelihood": losses.likelihood * (share * gaussian_nll(mean, log_variance, truth, inside)).sum(),
        }
        if self._v is not None:  # told by every part of a step and every process alike, whoever asked
            parts |= {"causal": made[0].new_zeros(()), "metric": made[0].new_zeros(())}
        if asked and self._v is not None:
            there = batch.askable(sample, sources)
            shown = made[0][..., :h, :w].float(), batch.targets[sample], batch.foreground[sample], there
            parts["causal"] = losses.causal * causal_error(self._v, *shown)
            parts["metric"] = losses.metric * metric_error(self._v.see, *shown)
        return torch.stack(list(parts.values())).sum(), parts

    def _weigh(
        self, batch: Batch, rng: np.random.Generator, seed: int, world: World
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighting networks and the variance: what every frame is worth, measured."""
        shape = self.pupil.config.batch
        samples, subsets = draw_sources(
            batch.acquired.cpu().numpy(), rng, draws=shape.draws, most=shape.most_sources, least=2
        )
        batch = batch.to(world.device)
        sets = (torch.from_numpy(x).to(world.device) for x in (samples, subsets))
        askable = batch.askable(*sets).cpu().numpy()
        query = as_query(*every_target(askable, samples, subsets))
        query = query.only(~query.remade).to(world.device)
        losses, module = self.pupil.config.losses, self.module
        nothing = sum(p.sum() for part in self._weighing() for p in part.parameters()) * 0.0
        self._observed = self._observed or self._nothing_observed()
        if not len(query.target):  # crops of which nothing is missing teach nothing here
            return nothing, dict.fromkeys(("weights", "presence", "sets", "likelihood"), nothing)
        with world.autocast():
            scene = module.scene(batch.images, query.needed(len(batch.images)))
            generator = torch.Generator().manual_seed(seed)
            fused = module.fuse(scene, query, Guidance(generator=generator))
        truth = padded(batch.targets[query.sample, query.target], MULTIPLE)
        inside = padded(batch.foreground[query.sample], MULTIPLE)
        first = self._first_gains(scene, query, truth, inside)
        weigh = [weight_error(fused.first[query.sources], first[query.sources])]
        presence, sets, likelihood = [], [], []
        for step in fused.steps[1:]:
            told, y, area = query.only(step.rows), truth[step.rows], inside[step.rows]
            before, after = (scene.proposals.of(at, told.target) for at in (step.before, step.after))
            gain = gain_db(before[0].detach(), after[0].detach(), y, area)
            share = module.fusion.effi_weight(step.weight, told.target)
            weigh.append(weight_error(step.weight, gain))
            presence.append(presence_error(share, before[0].detach(), after[0].detach(), y, area))
            sets.append(set_error(before[1], after[1], gain, area))
            likelihood.append(gaussian_nll(after[0], after[1], y, area).mean())
        self._observe(batch, query, fused.looks)

        def mean(values: list[Tensor]) -> Tensor:  # of single inputs there is nothing to add
            return torch.stack(values).mean() if values else nothing

        parts = {
            "weights": losses.weights * mean(weigh),
            "presence": losses.presence * mean(presence),
            "sets": losses.sets * mean(sets),
            "likelihood": losses.likelihood * mean(likelihood),
        }
        return torch.stack(list(parts.values())).sum(), parts

    @torch.no_grad()
    def _first_gains(self, scene: Scene, query: Query, truth: Tensor, inside: Tensor) -> Tensor:
        """What each frame alone gains over predicting the target's mean: (q, m) in dB; 0 where it is no source."""
        gains = truth.new_zeros(query.sources.shape)
        mean = self.module.linear_maps.mean.diagonal()[query.target][:, None, None].expand_as(truth)
        row, i = query.sources.nonzero().unbind(dim=1)
        alone = scene.proposals.rows(query.sample[row], functional.one_hot(i, query.sources.shape[1]).bool())
        image = scene.proposals.of(alone, query.target[row])[0]
        return gains.index_put((row, i), gain_db(mean[row], image, truth[row], inside[row]))

    @torch.no_grad()
    def _observe(self, batch: Batch, query: Query, looks: Looks) -> None:
        """Add up what whole frames looked like."""
        seen = (batch.severity == 0) & batch.acquired & query.needed(len(batch.images))
        sums = self.module.fusion.evidence.sums(looks, seen)
        self._observed = [a + b for a, b in zip(self._observed, sums, strict=True)]

    def _nothing_observed(self) -> list[Tensor]:
        """What `_observe` adds to; every process has it, whatever its crops are."""
        evidence = self.module.fusion.evidence
        return [torch.zeros_like(x) for usual in (evidence.own, evidence.pairs) for x in usual.sums()]

    def learned(self, world: World) -> None:
        """Usual evidence: what whole inputs of the training stream look like."""
        if self._observed is not None:
            self.module.fusion.evidence.observe(tuple(world.summed(x) for x in self._observed))
            self._observed = None

    def apart(self) -> list[list[nn.Parameter]]:
        """The variance reads without a gradient to the rest, and the weighting networks learn by themselves."""
        doubt = [p for part in self._weighing()[1:] for p in part.parameters()]
        own = {id(p) for p in (*doubt, *self.module.fusion.parameters())}
        rest = [p for p in self.module.parameters() if id(p) not in own]
        return [rest, doubt, list(self.module.fusion.parameters())]


def hidden(subsets: np.ndarray, size: tuple[int, int], rng: np.random.Generator, share: float) -> Tensor:
    """Presence maps (p, m, h, w) of sets (p, m): 1 of a member, but for a share of them, of which a region is hidden.

    A region is where a smooth random field is high, about a third of the image; inside it P is 0, or anything below 1.
    """
    presence = torch.from_numpy(subsets).float()[:, :, None, None].repeat(1, 1, *size)
    several = subsets.sum(axis=1) > 1
    for p, i in np.argwhere(subsets & (rng.random(subsets.shape) < share) & several[:, None]):
        coarse = torch.from_numpy(rng.standard_normal((1, 1, 4, 4)).astype(np.float32))
        field = functional.interpolate(coarse, size=size, mode="bicubic", align_corners=True)[0, 0]
        outside = torch.sigmoid(8 * (rng.uniform(0.0, 0.8) - field))
        left = 0.0 if rng.random() < 0.7 else rng.uniform()
        presence[p, i] = left + (1 - left) * outside
    return presence


def without_damaged(subsets: np.ndarray, severity: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Leave half of the damaged members out where another is left: how a set looks once the fusion has judged it."""
    drop = subsets & (severity > 0) & (rng.random(subsets.shape) < 0.5)
    kept = subsets & ~drop
    return np.where(kept.any(axis=1)[:, None], kept, subsets)


COMPONENT = MedK2NLesson
