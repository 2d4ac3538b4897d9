"""CMIM's image side: V and the judge V' learn to name acquired images by the texts of their modalities.

A phase at the beginning of a run, a few per cent of its budget, on the run's own training subjects. A batch holds every
modality of the same slices, so that what is told apart is the contrast and never the anatomy; grey scales are random
as those of scanners are. The two differ in seed and in what is drawn, learn in turns, and are frozen afterwards.
"""

import copy
import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from medk2n.config.schema import TrainConfig
from medk2n.data.batches import Augmentation, Batch, draw_batch
from medk2n.data.stored import ENOUGH, Stored
from medk2n.identity.identity import JUDGE, LOOKED_AT, Described, Identity, V, calibrated
from medk2n.identity.network import IdentityNet, naming_error
from medk2n.identity.table import TextTable, table_of
from medk2n.identity.texts import NOTHING
from medk2n.training.reading import FOLD, REST, TrainingData
from medk2n.training.world import World

_SEEDS = {V: 101, JUDGE: 202}
_WARM_UP, _DECAY = 0.05, 0.05
_KNOTS = 8
_MOST_STUDIES = 40  # of a data folder, that the temperatures are found on


class IdentityPhase:
    """The phase at work; `steps` and `seconds` are its cost, of both networks together."""

    def __init__(self, config: TrainConfig, data: TrainingData, device: torch.device) -> None:
        self.config, self.data, self.device = config, data, device
        self.table = told_of(config)
        self.nets, self.optimisers = {}, {}
        self.steps, self.seconds = 0, 0.0
        for who, seed in _SEEDS.items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed * 1000 + seed)
                net = IdentityNet(self.table.apart())
            self.nets[who] = net.to(device, memory_format=torch.channels_last)
            self.optimisers[who] = torch.optim.AdamW(net.parameters(), weight_decay=_DECAY)

    @property
    def wanted(self) -> bool:
        """Whether the budget gives it a step."""
        return self.steps > 0 or self.progress < 1

    @property
    def progress(self) -> float:
        """Share of the phase's budget that is spent; 1 where it has none."""
        budget, share = self.config.budget, self.config.identity.share
        if budget.steps:
            whole = round(share * budget.steps)
            return min(1.0, self.steps / whole) if whole else 1.0
        seconds = share * (budget.minutes or 0.0) * 60
        return min(1.0, self.seconds / seconds) if seconds else 1.0

    def step(self, world: World) -> dict[str, float]:
        """One step of each network, on batches of its own."""
        started, losses = time.perf_counter(), {}
        at = self.progress
        rate = min(1.0, at / _WARM_UP + 0.02) * (0.5 * (1 + math.cos(math.pi * at)) * 0.99 + 0.01)
        for who, net in self.nets.items():
            rng = np.random.default_rng([self.config.seed, _SEEDS[who], self.steps])
            images, there = self._drawn(rng)
            images, there = images.to(self.device), there.to(self.device)
            net.train()
            with world.autocast():
                loss = naming_error(net, images, there)
            self.optimisers[who].zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            for group in self.optimisers[who].param_groups:
                group["lr"] = self.config.identity.learning_rate * rate
            self.optimisers[who].step()
            losses[who] = float(loss.detach())
        self.steps += 1
        self.seconds += world.agreed(time.perf_counter() - started)
        return losses

    def _drawn(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Images (b, m + 1, h, w) of b slices in every modality and, last, of nothing; and which of them are there."""
        stores, shares = self.data.parts[REST]
        shape = self.config.batch
        as_acquired = Augmentation(gamma=0.0, noise=0.0, strip=shape.strip, restyle=shape.restyle)
        batch = draw_batch(
            stores, shares, rng, batch_size=self.config.identity.slices, crop=shape.crop, slices=1,
            augmentation=as_acquired,
        )  # fmt: skip
        return with_nothing(batch, torch.Generator().manual_seed(int(rng.integers(2**62))))

    def finish(self, world: World) -> Identity:
        """Both networks, frozen, with temperatures found on the fold of subjects that neither learned from.

        Of several processes all have the first one's.
        """
        for net in self.nets.values():
            for tensor in net.state_dict().values():
                tensor.copy_(world.summed(tensor if world.leads else torch.zeros_like(tensor)))
        held_out = self.data.parts[FOLD][0]
        apart = held_out is not self.data.stores
        calibration, right = {}, {}
        for who, net in self.nets.items():
            net.eval()
            slices, labels = self._known(net, [study for s in held_out for study in s.studies[:_MOST_STUDIES]])
            calibration[who] = calibrated(slices, labels, volumes=len(labels) if apart else 0)
            named = np.concatenate([volume.argmax(axis=1) == j for volume, j in zip(slices, labels, strict=True)])
            right[who] = round(float(named.mean()), 4)
        described = Described(
            modalities=tuple(self.config.modalities),
            texts=self.table.about,
            calibration=calibration,
            training=self._told() | {"held_out_slices_named_right": right},
        )
        return Identity(described, {who: copy.deepcopy(net).cpu() for who, net in self.nets.items()})

    def _told(self) -> dict[str, Any]:
        folders = {root.rstrip("/").rsplit("/", 1)[-1]: len(ids) for root, ids in self.data.subjects.items()}
        cost = {"steps": self.steps, "minutes": round(self.seconds / 60, 2), "subjects": folders}
        return {"seed": self.config.seed} | cost

    @torch.no_grad()
    def _known(self, net: IdentityNet, studies: list[Stored]) -> tuple[list[np.ndarray], list[int]]:
        """Logits of slices of volumes, each as it is and at another grey scale, and what each volume is."""
        slices, labels = [], []
        generator = torch.Generator().manual_seed(self.config.seed)
        for study in studies:
            inside = np.flatnonzero(study.foreground_share > ENOUGH)
            at = inside[np.linspace(0, len(inside) - 1, min(LOOKED_AT, len(inside))).round().astype(int)]
            crops = [study.crop(z, 1) for z in np.unique(at)]
            for j, channels in enumerate(study.channels):
                if channels and crops:
                    images = torch.from_numpy(np.stack([c.targets[j] for c in crops])).float() / 255
                    for seen in (images, scanned(images, generator)):
                        slices.append(net(seen.to(self.device)).cpu().numpy())
                        labels.append(j)
        return slices, labels

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that a step reads and changes: tensors and counters."""
        tensors = {}
        for who, net in self.nets.items():
            tensors |= {f"{who}.net.{name}": tensor for name, tensor in net.state_dict().items()}
            for row, values in self.optimisers[who].state_dict()["state"].items():
                tensors |= {f"{who}.optimiser.{row}.{name}": value for name, value in values.items()}
        return tensors, {"steps": self.steps, "seconds": self.seconds}

    def restore(self, tensors: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
        """Go back to what `state` gave."""
        for who, net in self.nets.items():
            own = f"{who}.net."
            net.load_state_dict({n.removeprefix(own): t for n, t in tensors.items() if n.startswith(own)})
            rows: dict[int, dict[str, Tensor]] = {}
            for name, tensor in tensors.items():
                if name.startswith(f"{who}.optimiser."):
                    row, _, value = name.removeprefix(f"{who}.optimiser.").partition(".")
                    rows.setdefault(int(row), {})[value] = tensor
            optimiser = self.optimisers[who]
            optimiser.load_state_dict(optimiser.state_dict() | {"state": rows})
        self.steps, self.seconds = int(counters["steps"]), float(counters["seconds"])


def told_of(config: TrainConfig) -> TextTable:
    """What the texts say of the modalities of a run and, last, of no scan at all."""
    return table_of([*config.modalities, NOTHING], config.identity.texts, config.identity.encoder)


def with_nothing(batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The images of a batch at random grey scales, and beside each third slice's an image that shows no patient."""
    images, there = batch.images[:, :, 0], batch.acquired
    b, m, h, w = images.shape
    seen = torch.zeros(b, m + 1, h, w)
    seen[:, :m][there] = scanned(images[there], generator)
    some = torch.arange(b) % 3 == 0
    seen[some, m] = no_scan(batch.foreground[some], generator)
    return seen, torch.cat([there, some[:, None]], dim=1)


def scanned(images: Tensor, generator: torch.Generator) -> Tensor:
    """As other scanners might have drawn them: rising curves of grey, shading, blur and noise.

    Args:
        images: (n, h, w) in [0, 1], 0 outside the patient, which stays so.
    """
    n, h, w = images.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    inside = images > 0
    steps = (uniform(0, 1.2, 1) * torch.randn(n, _KNOTS - 1, generator=generator)).exp()
    curve = functional.pad(steps.cumsum(dim=1) / steps.sum(dim=1, keepdim=True), (1, 0))
    at = images.clamp(0, 1).pow(uniform(-0.4, 0.4, 1, 1).exp()) * (_KNOTS - 1)
    below = at.floor().clamp_max(_KNOTS - 2)
    knots = below.long().flatten(1)
    low, high = (curve.gather(1, knots + k).view(n, h, w) for k in (0, 1))
    out = low + (at - below) * (high - low)
    coarse = uniform(0, 0.35, 1, 1, 1) * torch.randn(n, 1, 3, 3, generator=generator)
    out = out * functional.interpolate(coarse, size=(h, w), mode="bicubic", align_corners=True)[:, 0].exp()
    share = uniform(-0.08, 0.3, 1, 1) * (uniform(0, 1, 1, 1) < 0.5)
    for axis in (1, 2):
        out = (1 - 2 * share) * out + share * (out.roll(1, axis) + out.roll(-1, axis))
    out = out + uniform(0, 0.05, 1, 1) * (uniform(0, 1, 1, 1) < 0.5) * torch.randn(n, h, w, generator=generator)
    return out.clamp(1 / 255, 1) * inside


def no_scan(inside: Tensor, generator: torch.Generator) -> Tensor:
    """Images (n, h, w) of no patient: noise, fine or coarse, one grey, and maps of a few labels.

    Args:
        inside: (n, h, w) bool, where each shows anything; half of them fill the whole image.
    """
    n, h, w = inside.shape
    kind = torch.randint(4, (n,), generator=generator)
    everywhere = torch.rand(n, 1, 1, generator=generator) < 0.5
    white = torch.randn(n, h, w, generator=generator)
    size = 2 ** int(torch.randint(2, 5, (1,), generator=generator))
    coarse = torch.randn(n, 1, size, size, generator=generator)
    smooth = functional.interpolate(coarse, size=(h, w), mode="bicubic", align_corners=True)[:, 0]
    labels = (smooth > 0).float() * 0.5 + (smooth > 0.8).float() * 0.5
    grey = torch.rand(n, 1, 1, generator=generator)
    kinds = torch.stack([0.5 + 0.2 * white, 0.5 + 0.2 * smooth, grey + 0.01 * white, labels + 1 / 255])
    return kinds[kind, torch.arange(n)].clamp(1 / 255, 1) * (inside | everywhere)
