"""Train networks by turns on one card for some minutes, from packed scans and digital bodies.

    python recipes/gpu/train.py OUT --pack PACK --bodies BODIES --minutes 8 [--total 20] [--resume STATE]

Med-K2N's synthesizer and the reference U-Net see the same batches and take as many steps; then, for `--weighing`
seconds, Med-K2N's weighting networks learn beside the averaged synthesizer, on subjects that it has not seen. All data
live on the device (`medk2n.training.device_feed`). OUT gets state-K.safetensors (weights, and their averages, in files
of at most 15 MB), state.json and log.csv, anew after each validation, and, given `--statistics`, a model folder;
`--resume` goes on from such a folder, so short runs add up to `--total` minutes of one schedule. Momenta are not kept:
a resumed run warms up again.
"""

import argparse
import copy
import json
import math
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
import digital
import pack

import medk2n
from medk2n import checkpoint
from medk2n.cli.common import resolve_device
from medk2n.config.schema import LossWeights, Optimiser, load_config
from medk2n.data.batches import Augmentation, Batch, whole_slices
from medk2n.data.stored import ENOUGH, Stored
from medk2n.errors import ConfigError, InternalError, Medk2nError
from medk2n.losses.likelihood import gaussian_nll
from medk2n.losses.reconstruction import edge_error, log_mse, mean_squared_error
from medk2n.models._spec import Statistics
from medk2n.models.layers.shared_passes import padded, stacked
from medk2n.models.medk2n import MedK2N
from medk2n.models.medk2n import Params as MedK2NParams
from medk2n.models.unet import Params as UNetParams
from medk2n.models.unet import UNet
from medk2n.registry import resolve
from medk2n.training.device_damage import Chance
from medk2n.training.device_feed import DeviceFeed, draw_sources, narrowed
from medk2n.training.groups import optimisers
from medk2n.training.lesson import Pupil
from medk2n.training.lessons.medk2n import MedK2NLesson

CANVAS = 144, 176
SLICES = 3
MOST_BYTES, MOST_TOGETHER = 15_000_000, 60_000_000
CORE = "t1c", "t1n", "t2f", "t2w"
SHARES = {"lgg128": 0.3, "lgg128-incomplete": 0.04, "brains128": 0.4, "four128": 0.06, "digital": 0.2}
FREE_SHARES = {"brains128": 0.3, "four128": 0.04, "digital": 0.66}
_TOLD_EVERY = 50
_BUSY = 0.1  # share of the time that new bodies may take
_WARM_AGAIN = 150
_FOLD_ROWS = 40_000  # room for digital subjects that are held out
_FOLD_EVERY = 10

Images = tuple[Tensor, Tensor | None]
"""Mean image and log variance (or None) of every modality, (b, m, h, w) each."""


class UNetImages(nn.Module):
    """The reference: x (b, m slices + m, h, w) -> mean of every modality, no log variance."""

    maps = False

    def __init__(self, m: int, widths: Sequence[int], known: Statistics) -> None:
        super().__init__()
        self.net = UNet(UNetParams(widths=tuple(widths)), m, known)

    def forward(self, x: Tensor) -> Images:
        return self.net.out(self.net.trunk(x)), None


class MedK2NImages(nn.Module):
    """The synthesizer and its heads: x (b, m slices + m, h, w) -> mean and log variance of every modality."""

    maps = True

    def __init__(self, m: int, widths: Sequence[int], known: Statistics) -> None:
        super().__init__()
        self.net = MedK2N(MedK2NParams(widths=tuple(widths)), m, known)

    def forward(self, x: Tensor) -> Images:
        everything = torch.arange(self.net.m, device=x.device)
        return self.net.heads(self.net.trunk.trunk(x), self.net.embeddings, everything)


def statistics(mean: Tensor) -> Statistics:
    """As far as a few crops tell: the mean (m,) of each modality."""
    known = Statistics.neutral(len(mean))
    return replace(known, mean=mean[:, None].expand(-1, len(mean)).clone())


def read_statistics(path: Path, modalities: Sequence[str]) -> tuple[Statistics, checkpoint.Statistics]:
    """What `recipes/gpu/pair_statistics.py` wrote, as models take it and as their folders keep it.

    Raises:
        ConfigError: no such file, or of other modalities.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if told["modalities"] != list(modalities):
            raise ConfigError(f"{path}: of {', '.join(told['modalities'])}; expected {', '.join(modalities)}")
        parts = [torch.tensor(told[name]) for name in ("mean", "deviation", "correlation", "variance")]
        maps = {
            target: {
                source: (told["slope"][i][j], told["intercept"][i][j], told["residual"][i][j])
                for i, source in enumerate(modalities)
            }
            for j, target in enumerate(modalities)
        }
        variance = dict(zip(modalities, told["variance"], strict=True))
        typical = {name: (low, high) for name, (low, high) in told["typical"].items()}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{path}: expected what recipes/gpu/pair_statistics.py writes ({error})") from error
    return Statistics(*parts), checkpoint.Statistics(affine_maps=maps, variance=variance, typical_scaling=typical)


NETWORKS: dict[str, Callable[[int, Sequence[int], Statistics], nn.Module]] = {
    "medk2n": MedK2NImages,
    "unet": UNetImages,
}


def loss_of(images: Images, batch: Batch, sources: Tensor, weights: LossWeights) -> Tensor:
    """Every image that may be asked for of a crop is judged as an answer; one that is also an input counts little."""
    mean, log_variance = images
    askable = batch.askable(torch.arange(len(sources), device=sources.device), sources)
    target = torch.where(batch.acquired[..., None, None], batch.targets, 0.0).flatten(0, 1)
    inside = batch.foreground[:, None].expand_as(batch.targets).flatten(0, 1)
    share = (torch.where(sources, weights.remade, 1.0) * askable).flatten()
    image = mean.float().flatten(0, 1)
    error = weights.log_mse * log_mse(image, target, inside) + weights.edges * edge_error(image, target, inside)
    if log_variance is not None:
        likelihood = gaussian_nll(image, log_variance.float().flatten(0, 1), target, inside)
        error = error + weights.likelihood * likelihood
    return (share * error).sum() / share.sum()


@dataclass
class Learner:
    """A network, its averaged twin and its optimisers."""

    name: str
    module: nn.Module
    settings: Optimiser
    chance: Chance | None = None
    hide: float = 0.0
    averaged: nn.Module = field(init=False)
    optimisers: list[torch.optim.Optimizer] = field(init=False)
    run: Callable[[Tensor], Images] = field(init=False)

    def __post_init__(self) -> None:
        self.averaged = copy.deepcopy(self.module).requires_grad_(False).eval()
        self.optimisers = optimisers(self.module, self.settings)
        self.run = self.module

    def loss(self, batch: Batch, sources: Tensor, weights: LossWeights, *, bf16: bool) -> Tensor:
        """Of one batch; the forward pass in bfloat16 where asked for, the loss never."""
        x = stacked(batch.images, sources)
        if self.module.maps and self.chance is not None:
            m = sources.shape[1]
            presence = hidden(sources, x.shape[-2:], self.chance, self.hide)
            seen = x[:, :-m].unflatten(1, (m, SLICES)) * presence[:, :, None]
            x = torch.cat([seen.flatten(1, 2), presence], dim=1)
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            images = self.run(x)
        return loss_of(images, batch, sources, weights)

    def step(self, loss: Tensor, rate: float, steps: int) -> None:
        """One optimiser step, the number `steps`."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.clip)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * group["scale"]
            optimiser.step()
        self.module.zero_grad(set_to_none=True)
        decay = min(self.settings.ema, (1 + steps) / (10 + steps))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.parameters()), list(self.module.parameters()), 1 - decay)

    def compile(self, seconds: int, mode: str, loss: Callable[[], Tensor]) -> bool:
        """Compile within so many seconds, or stay as it is; `loss` gives one of this learner's."""
        self.run = torch.compile(self.module, mode=mode)
        try:
            with _alarm(seconds):
                loss().backward()
            return True
        except _Late:
            torch._dynamo.reset()
            self.run = self.module
            return False
        finally:
            self.module.zero_grad(set_to_none=True)


class _Late(BaseException):
    """The time limit of a compilation has passed; no `Exception`, which a compiler might catch."""


def hidden(sources: Tensor, size: torch.Size, chance: Chance, share: float) -> Tensor:
    """Presence maps (b, m, h, w) of sets (b, m), as `training/lessons/medk2n.py` draws them, for a batch at once."""
    b, m = sources.shape
    chosen = sources & (chance.uniform(b, m) < share) & (sources.sum(dim=1, keepdim=True) > 1)
    field = nn.functional.interpolate(chance.normal(b, m, 4, 4), size=size, mode="bicubic", align_corners=True)
    edge, left = chance.uniform(b, m, high=0.8), chance.uniform(b, m) * (chance.uniform(b, m) > 0.7)
    outside = torch.sigmoid(8 * (edge[..., None, None] - field))
    left = left[..., None, None]
    return torch.where(chosen[..., None, None], left + (1 - left) * outside, 1.0) * sources[..., None, None]


def spared(sources: Tensor, severity: Tensor, chance: Chance) -> Tensor:
    """Half of the damaged members of sets (b, m) left out where another is left."""
    kept = sources & ~((severity > 0) & (chance.uniform(*sources.shape) < 0.5))
    return torch.where(kept.any(dim=1, keepdim=True), kept, sources)


@contextmanager
def _alarm(seconds: int) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise _Late

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def as_seen(packed: pack.Packed, modalities: Sequence[str]) -> Stored:
    """A packed study as a model of these modalities sees it."""
    stored = packed.stored
    at = [packed.modalities.index(name) if name in packed.modalities else None for name in modalities]
    styles = [None if s is None else tuple(None if k is None else s[k] for k in at) for s in stored.styles]
    return replace(
        stored,
        channels=tuple(() if k is None else stored.channels[k] for k in at),
        stretch=tuple(() if k is None else stored.stretch[k] for k in at),
        styles=(styles[0], styles[1]),
    )


@dataclass
class Data:
    """The feed, what is watched, and the folder that more bodies may come into."""

    feed: DeviceFeed
    fold: DeviceFeed
    watched: dict[str, list[Batch]]
    modalities: Sequence[str]
    shares: dict[str, float]
    bodies: Path | None
    most_bodies: int
    seed: int
    learned: dict[str, int]
    taken: set[str] = field(default_factory=set)
    look_at: float = 0.0

    def take_bodies(self, chance: Chance, *, at_once: int) -> int:
        """Scan bodies that have come since, and draw from them too; how many."""
        started = time.monotonic()
        if self.bodies is None or started < self.look_at:
            return 0
        fresh = sorted(p for p in self.bodies.glob("body-*.npz") if p.name not in self.taken)
        fresh = fresh[: min(at_once, self.most_bodies - len(self.taken))]
        group, device = list(self.shares).index("digital"), self.feed.device
        for path in fresh:
            rng = np.random.default_rng([self.seed, int(path.stem.removeprefix("body-"))])
            stored, slices = digital.visit(digital.Subject.load(path, device), self.modalities, chance, rng)
            feed = self.fold if len(self.taken) % _FOLD_EVERY == 4 else self.feed
            if slices.shape[0] * slices.shape[1] > feed.room:
                self.bodies = None
                break
            feed.add(group, stored, _fitting(slices))
            self.taken.add(path.name)
        if fresh:
            for feed in (self.feed, self.fold):
                if len(feed):
                    feed.share_out(list(self.shares.values()))
        self.look_at = time.monotonic() + max(1.0, (time.monotonic() - started) / _BUSY)
        return len(fresh)


def _fitting(slices: Tensor) -> Tensor:
    """The middle of slices that are larger than the canvas."""
    (h, w), (rows, columns) = slices.shape[2:], CANVAS
    top, left = max(0, (h - rows) // 2), max(0, (w - columns) // 2)
    return slices[:, :, top : top + rows, left : left + columns]


def read_data(asked: argparse.Namespace, device: torch.device) -> Data:
    """Everything onto the device."""
    modalities = asked.modalities.split(",")
    found = pack.read(asked.pack) if asked.pack else []
    learned = [p for p in found if p.part == "train" and (p.free or not asked.free)]
    shares = _shares(asked, {p.set for p in learned} | ({"digital"} if asked.bodies else set()))
    learned = [p for p in learned if p.set in shares]
    held = learned[4::_FOLD_EVERY]
    learned = [p for k, p in enumerate(learned) if k % _FOLD_EVERY != 4]
    feed = DeviceFeed(len(modalities), CANVAS, _rows(learned) + asked.room * 1_000_000 // math.prod(CANVAS), device)
    for packed in learned:
        feed.add(list(shares).index(packed.set), as_seen(packed, modalities))
    fold = DeviceFeed(len(modalities), CANVAS, _rows(held) + _FOLD_ROWS, device)
    for packed in held:
        fold.add(list(shares).index(packed.set), as_seen(packed, modalities))
    watched: dict[str, list[Batch]] = {}
    for packed in (p for p in found if p.part == "val"):
        stored = as_seen(packed, modalities)
        inside = np.flatnonzero(stored.foreground_share > ENOUGH)
        at = inside[np.linspace(0, len(inside) - 1, min(asked.watched, len(inside))).round().astype(int)]
        watched.setdefault(packed.set, []).append(whole_slices(stored, at.tolist(), SLICES).to(device))
    data = Data(
        feed,
        fold,
        watched,
        modalities,
        shares,
        asked.bodies,
        asked.most_bodies,
        asked.seed,
        dict(Counter(p.set for p in learned)),
    )
    for each in (feed, fold):
        if len(each):
            each.share_out(list(shares.values()))
    return data


def _rows(studies: Sequence[pack.Packed]) -> int:
    return sum(p.stored.slices.shape[0] * p.stored.slices.shape[1] for p in studies)


def _shares(asked: argparse.Namespace, there: set[str]) -> dict[str, float]:
    """Set -> share of the crops, of the sets that are there."""
    told = dict(pair.split("=") for pair in asked.shares.split(",")) if asked.shares else None
    shares = {k: float(v) for k, v in told.items()} if told else dict(FREE_SHARES if asked.free else SHARES)
    if told and (unknown := sorted(set(told) - there)):
        raise ConfigError(f"--shares: no {', '.join(unknown)} here; expected some of {', '.join(sorted(there))}")
    shares = {name: share for name, share in shares.items() if name in there and share > 0}
    if not shares:
        raise ConfigError("nothing to learn from: give --pack DIR of recipes/gpu/pack.py, --bodies DIR, or both")
    return shares


@torch.no_grad()
def validate(network: nn.Module, watched: Mapping[str, Sequence[Batch]], most: int) -> dict[str, float]:
    """Mean PSNR in dB within the foreground over missing targets of fixed slices and subsets, by set and in all."""
    values: dict[str, list[Tensor]] = {}
    for name, batches in watched.items():
        for k, batch in enumerate(batches):
            chance = Chance(torch.Generator().manual_seed(k))
            sources = draw_sources(batch.acquired.cpu(), chance, most=most).to(batch.images.device)
            h, w = batch.images.shape[-2:]
            x = padded(stacked(batch.images, sources), 16)
            mean = network(x.contiguous(memory_format=torch.channels_last))[0][..., :h, :w].float()
            row, target = (batch.acquired & ~sources).nonzero().unbind(dim=1)
            mse = mean_squared_error(mean[row, target], batch.targets[row, target], batch.foreground[row])
            values.setdefault(name, []).append(-10 * torch.log10(mse + 1e-6))
    means = {name: float(torch.cat(v).mean()) for name, v in values.items()}
    return means | ({"all": float(torch.cat([x for v in values.values() for x in v]).mean())} if values else {})


def rate_at(progress: float, settings: Optimiser, steps: int) -> float:
    """Warm-up (of a resumed run too) and cosine, as in `medk2n train`."""
    warm = min(1.0, progress / settings.warm_up, (steps + 1) / _WARM_AGAIN) if settings.warm_up else 1.0
    fall = max(0.0, (progress - settings.warm_up) / (1 - settings.warm_up))
    return settings.learning_rate * max(warm, 1e-3) * (0.5 * (1 + math.cos(math.pi * fall)) * 0.98 + 0.02)


def save_state(out: Path, learners: Sequence[Learner], facts: dict[str, Any]) -> None:
    """Write the state beside the old one, then in its place; files of at most 15 MB, 60 MB together where it can be.

    32-bit weights and averages where they fit, else 16-bit ones, else the averages alone.
    """
    kinds = {"weights": [one.module for one in learners], "averaged": [one.averaged for one in learners]}
    numbers = sum(p.numel() for modules in kinds.values() for m in modules for p in m.state_dict().values())
    half = 4 * numbers > MOST_TOGETHER
    if 2 * numbers > MOST_TOGETHER:
        del kinds["weights"]
    tensors = {
        f"{learner.name}.{kind}.{name}": (tensor.half() if half else tensor.float()).cpu().contiguous()
        for kind, modules in kinds.items()
        for learner, module in zip(learners, modules, strict=True)
        for name, tensor in module.state_dict().items()
    }
    out.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Tensor]] = [{}]
    for name, tensor in _pieces(tensors):
        if shards[-1] and sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes > MOST_BYTES - 100_000:
            shards.append({})
        shards[-1][name] = tensor
    parts = []
    for k, shard in enumerate(shards, 1):
        parts.append(out / f".state-{k}.part")
        save_file(shard, parts[-1])
    for old in out.glob("state-*.safetensors"):
        old.unlink()
    for k, part in enumerate(parts, 1):
        part.rename(out / f"state-{k}.safetensors")
    (out / "state.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _pieces(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Tensors by name, those that no file can hold in pieces: NAME#0, NAME#1 and so on, along the first axis."""
    for name, tensor in tensors.items():
        parts = tensor.chunk(math.ceil(tensor.nbytes / (MOST_BYTES // 2))) if tensor.nbytes > MOST_BYTES // 2 else ()
        yield from ((f"{name}#{k}", part.contiguous()) for k, part in enumerate(parts))
        if not parts:
            yield name, tensor


def _joined(pieces: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `_pieces` took apart."""
    found: dict[str, list[tuple[int, Tensor]]] = {}
    for name, tensor in pieces.items():
        whole, _, k = name.partition("#")
        found.setdefault(whole, []).append((int(k or 0), tensor))
    return {name: torch.cat([part for _, part in sorted(parts, key=lambda p: p[0])]) if len(parts) > 1 else parts[0][1]
            for name, parts in found.items()}  # fmt: skip


def load_state(folder: Path, learners: Sequence[Learner]) -> dict[str, Any]:
    """Weights and averages back; returns the facts.

    Raises:
        ConfigError: no state there, or of other networks.
    """
    try:
        facts = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder}: expected state.json and state-K.safetensors of an earlier run ({error})"
        ) from error
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("state-*.safetensors")):
        tensors |= load_file(path)
    tensors = _joined(tensors)
    for learner in learners:
        for kind, module in (("averaged", learner.averaged), ("weights", learner.module)):
            prefix = f"{learner.name}.{kind}."
            mine = {n.removeprefix(prefix): t.float() for n, t in tensors.items() if n.startswith(prefix)}
            mine = mine or {n: t for n, t in learner.averaged.state_dict().items()}  # a large state has no weights
            try:
                module.load_state_dict(mine)
            except RuntimeError as error:
                what = " ".join(str(error).split())[:160]
                raise ConfigError(f"{folder}: no weights of {learner.name} of these sizes ({what})") from error
    return facts


def learn(asked: argparse.Namespace) -> dict[str, Any]:
    """A whole run; returns the facts that state.json holds."""
    began = time.monotonic()
    device = torch.device(resolve_device(asked.device))
    bf16 = asked.precision == "bf16" or (asked.precision == "auto" and device.type == "cuda")
    settings = Optimiser(learning_rate=asked.rate, ema=asked.ema, warm_up=asked.warm_up)
    weights = LossWeights()
    data = read_data(asked, device)
    chance = Chance(torch.Generator(device=device).manual_seed(asked.seed))
    data.take_bodies(chance, at_once=max(asked.wait_bodies, 1))
    while data.bodies is not None and len(data.taken) < asked.wait_bodies:
        time.sleep(0.2)
        data.look_at = 0.0
        data.take_bodies(chance, at_once=asked.wait_bodies - len(data.taken))
    augmentation = Augmentation(strip=asked.strip, restyle=asked.restyle, corrupt=asked.corrupt)
    core = torch.tensor([name in CORE for name in data.modalities], device=device)

    def draw() -> tuple[Batch, Tensor]:
        batch = data.feed.batch(chance, asked.batch, asked.crop, SLICES, augmentation)
        if not all(name in CORE for name in data.modalities):
            acquired = narrowed(batch.acquired, core, chance, share=asked.core_share)
            batch = replace(batch, acquired=acquired)
        sources = draw_sources(batch.acquired, chance, most=asked.most_sources)
        return batch, spared(sources, batch.severity, chance)

    torch.manual_seed(asked.seed)
    learners = learners_of(asked, draw()[0], settings, device)
    facts = load_state(asked.resume, learners) if asked.resume else {"steps": 0, "seconds": 0.0, "history": []}
    chance.generator.manual_seed(asked.seed + 1 + facts["steps"])
    sizes = ", ".join(f"{one.name} {sum(p.numel() for p in one.module.parameters()) / 1e6:.1f} M" for one in learners)
    taken, spent = len(data.taken), time.monotonic() - began
    _say(f"{device}: {len(data.feed)} studies; {taken} digital ones taken; {spent:.0f} s; {sizes}")
    for one in learners if asked.compile else ():
        done = one.compile(
            asked.compile_seconds, asked.compile, partial(lambda o: o.loss(*draw(), weights, bf16=bf16), one)
        )
        _say(f"{one.name}: {'compiled' if done else f'not compiled within {asked.compile_seconds} s'}")
    return _loop(asked, data, learners, facts, settings, weights, chance, draw, bf16, began)


def learners_of(asked: argparse.Namespace, batch: Batch, settings: Optimiser, device: torch.device) -> list[Learner]:
    """Fresh networks, whose images start at the mean of each modality."""
    inside = batch.foreground[:, None] & batch.acquired[..., None, None]
    mean = torch.where(inside, batch.targets, 0.0).sum(dim=(0, 2, 3)) / inside.sum(dim=(0, 2, 3)).clamp_min(1)
    made = []
    for name in asked.networks.split(","):
        widths = [int(width) for width in asked.widths.split(",")]
        known = (
            read_statistics(asked.statistics, asked.modalities.split(","))[0]
            if asked.statistics
            else statistics(mean.cpu())
        )
        module = NETWORKS[name](len(mean), widths, known).to(device, memory_format=torch.channels_last)
        chance = Chance(torch.Generator(device=device).manual_seed(asked.seed + 7))
        made.append(Learner(name, module, settings, chance, asked.hide))
    return made


def _loop(asked, data, learners, facts, settings, weights, chance, draw, bf16, began) -> dict[str, Any]:
    """Steps, validation and saving until the minutes are over; reading and compiling count."""
    out, before, total = asked.out, facts["seconds"], 60 * (asked.total or asked.minutes)
    deadline, first = began + 60 * asked.minutes, time.monotonic()
    if asked.resume and asked.resume != out:
        out.mkdir(parents=True, exist_ok=True)
        if (asked.resume / "log.csv").is_file():
            shutil.copy(asked.resume / "log.csv", out / "log.csv")
    marks = [k / asked.validations for k in range(1, asked.validations)]
    steps, told_at, made = 0, time.monotonic(), 0
    losses: dict[str, Tensor] = {}
    reserve = 0.0
    while True:
        now = time.monotonic()
        if now + reserve >= deadline or (asked.steps and steps >= asked.steps):
            break
        spent = now - first
        rate = rate_at(min(1.0, (before + spent) / total), settings, steps)
        batch, sources = draw()
        for learner in learners:
            loss = learner.loss(batch, sources, weights, bf16=bf16)
            learner.step(loss, rate, facts["steps"] + steps)
            losses[learner.name] = loss.detach()
        steps += 1
        made += asked.batch
        if steps % _TOLD_EVERY == 0 or steps == 1:
            numbers = {name: float(loss) for name, loss in losses.items()}
            if not all(map(math.isfinite, numbers.values())):
                raise InternalError(f"the loss is not finite at step {steps}: {numbers}; the last state is in {out}")
            speed = made / (time.monotonic() - told_at)
            if steps % (_TOLD_EVERY * 10) == 0 or steps == 1:
                line = ", ".join(f"{k} {v:.4f}" for k, v in numbers.items())
                at = f"step {facts['steps'] + steps}, {spent:.0f} s, {speed:.0f} crops/s, rate {rate:.2e}"
                _say(f"{at}, {line}, {len(data.feed)} studies")
            told_at, made = time.monotonic(), 0
            data.take_bodies(chance, at_once=16)
        if marks and spent >= marks[0] * 60 * asked.minutes:
            marks.pop(0)
            reserve = _keep(asked, data, learners, facts, steps, before + time.monotonic() - first)
    _keep(asked, data, learners, facts, steps, before + time.monotonic() - first)
    if asked.weighing:
        weigh(asked, data, next(one for one in learners if one.name == "medk2n"), chance)
        _keep(asked, data, learners, facts, steps, before + time.monotonic() - first)
    if asked.statistics:
        save_models(
            asked,
            data,
            learners,
            facts | {"steps": facts["steps"] + steps, "seconds": before + time.monotonic() - first},
        )
    return json.loads((out / "state.json").read_text(encoding="utf-8"))


def weigh(asked: argparse.Namespace, data: Data, learner: Learner, chance: Chance) -> None:
    """The weighting networks, beside the averaged synthesizer, on the held out subjects; leaves them in the average."""
    net = learner.module.net
    settings = [
        "modalities=" + json.dumps(list(data.modalities)),
        "core=[]",
        f"batch.most_sources={asked.most_sources}",
    ]
    config = load_config("tiny", ["spacing_mm=1.5", "batch.size=2", "batch.crop=96", "batch.draws=1", *settings])
    lesson = MedK2NLesson(Pupil(net, resolve("models", "medk2n"), config))
    lesson.enter(learner.averaged.net)
    learning = [p for p in net.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learning, lr=2e-3, betas=(0.9, 0.98), weight_decay=1e-2)
    average = copy.deepcopy(net).requires_grad_(False).eval()
    augmentation = Augmentation(strip=asked.strip, restyle=asked.restyle, corrupt=config.teaching.corrupt)
    held = data.fold if len(data.fold) else data.feed  # a handful of studies is not parted
    began, steps, told = time.monotonic(), 0, {}
    while (spent := (time.monotonic() - began) / asked.weighing) < 1 and not (asked.steps and steps >= asked.steps):
        batch = held.batch(chance, asked.weighing_batch, asked.crop, SLICES, augmentation)
        loss, parts = lesson.loss(batch, asked.seed + steps, 1.0, _Alone(batch.images.device))
        loss.backward()
        lesson.learned(_Alone(batch.images.device))
        nn.utils.clip_grad_norm_(learning, 1.0)
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1.0, (steps + 1) / 30) * (0.5 * (1 + math.cos(math.pi * spent)) + 0.01)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        steps += 1
        decay = min(0.99, steps / (10 + steps))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - decay)
        for name, value in parts.items():
            told[name] = 0.95 * told.get(name, value) + 0.05 * value
        if steps % 100 == 0:
            _say(f"weighing {steps}: " + ", ".join(f"{k} {v:.4f}" for k, v in told.items()))
    for name, buffer in net.named_buffers():
        average.get_buffer(name).copy_(buffer)
    net.load_state_dict(average.state_dict())
    learner.averaged.net.load_state_dict(average.state_dict())


def save_models(asked: argparse.Namespace, data: Data, learners: Sequence[Learner], facts: Mapping[str, Any]) -> None:
    """Med-K2N in OUT/model and the U-Net in its reference/unet, as `medk2n train` leaves them, in 16 bits."""
    told = {k: str(v) if isinstance(v, Path) else v for k, v in vars(asked).items()}
    device = data.feed.device
    training = {
        "finished": True,
        "seed": asked.seed,
        "subjects": data.learned | {"digital": len(data.taken)},
        "steps": facts["steps"],
        "crops": facts["steps"] * asked.batch,
        "wall_minutes": round(facts["seconds"] / 60, 2),
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": asked.precision,
        "torch": torch.__version__,
        "medk2n": medk2n.__version__,
        "settings": told,
    }
    for one in learners:
        net = copy.deepcopy(one.averaged.net).cpu()
        config = checkpoint.ModelConfig(
            model=one.name,
            modalities=tuple(data.modalities),
            spacing_mm=1.5,
            params=json.loads(json.dumps(asdict(net.params))),
            statistics=read_statistics(asked.statistics, data.modalities)[1],
            licence=asked.licence,
            training=training | {"parameters": sum(p.numel() for p in net.parameters())},
        )
        folder = asked.out / "model" / (checkpoint.REFERENCE_UNET if one.name == "unet" else "")
        checkpoint.save(folder, net, config, half=True)


class _Alone:
    """One process, in full precision: what a lesson asks of the world."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def autocast(self) -> AbstractContextManager[None]:
        """None: gains are small differences."""
        return nullcontext()

    def summed(self, tensor: Tensor) -> Tensor:
        """There is nobody else."""
        return tensor


def _keep(asked, data: Data, learners: Sequence[Learner], facts: dict[str, Any], steps: int, seconds: float) -> float:
    """Validate and save; how long it took."""
    started = time.monotonic()
    scores = {one.name: validate(one.averaged, data.watched, asked.most_sources) for one in learners}
    done = facts["steps"] + steps
    facts["history"].append({"steps": done, "seconds": seconds, "digital": len(data.taken), "psnr": scores})
    told = {k: str(v) if isinstance(v, Path) else v for k, v in vars(asked).items()}
    now = facts | {"steps": done, "seconds": seconds, "asked": told, "free": asked.free,
                   "sets": list(data.shares)}  # fmt: skip
    save_state(asked.out, learners, now)
    with (asked.out / "log.csv").open("a", encoding="utf-8") as file:
        for name, by_set in scores.items():
            for where, value in by_set.items():
                file.write(f"{done},{seconds:.1f},{name},{where},{value:.4f}\n")
    _say(f"validation at step {done}: " + "; ".join(
        f"{name} " + ", ".join(f"{k} {v:.2f}" for k, v in by.items()) for name, by in scores.items()))  # fmt: skip
    return time.monotonic() - started


def _say(text: str) -> None:
    print(text, flush=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("out", type=Path, nargs="?", help="folder for the state and the log")
    made.add_argument("--pack", type=Path, help="folder of part-N.zip (recipes/gpu/pack.py)")
    made.add_argument("--bodies", type=Path, help="folder that recipes/gpu/digital.py writes, or has written")
    made.add_argument(
        "--wait-bodies", type=int, default=0, help="bodies to take before the first step; more come later"
    )
    made.add_argument("--most-bodies", type=int, default=1000)
    made.add_argument("--room", type=int, default=24_000, help="MB of device memory for digital subjects")
    made.add_argument("--free", action="store_true", help="learn only from what leaves the weights Apache-2.0")
    made.add_argument("--shares", help="of the crops, by set: lgg128=0.5,digital=0.5")
    made.add_argument("--modalities", default="t1c,t1n,t2f,t2w")
    made.add_argument("--minutes", type=float, default=1.0, help="of this run, reading included")
    made.add_argument("--total", type=float, help="minutes of the schedule, over all runs that resume each other")
    made.add_argument("--steps", type=int, help="at most so many (for tests)")
    made.add_argument("--resume", type=Path)
    made.add_argument("--networks", default="medk2n,unet")
    made.add_argument("--widths", default="32,48,80,128,160")
    made.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    made.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    made.add_argument("--batch", type=int, default=64)
    made.add_argument("--crop", type=int, default=128)
    made.add_argument("--rate", type=float, default=1.5e-3)
    made.add_argument("--warm-up", type=float, default=0.03)
    made.add_argument("--ema", type=float, default=0.998)
    made.add_argument("--strip", type=float, default=0.3)
    made.add_argument("--restyle", type=float, default=0.5)
    made.add_argument("--corrupt", type=float, default=0.1)
    made.add_argument("--most-sources", type=int, default=3)
    made.add_argument("--core-share", type=float, default=0.6)
    made.add_argument("--validations", type=int, default=4)
    made.add_argument("--watched", type=int, default=6, help="slices of each watched subject")
    made.add_argument("--compile", nargs="?", const="default", help="torch.compile, and its mode")
    made.add_argument("--compile-seconds", type=int, default=90)
    made.add_argument(
        "--statistics", type=Path, help="of recipes/gpu/pair_statistics.py: then OUT/model is written at the end"
    )
    made.add_argument("--licence", default="Apache-2.0", help="of the weights, for their folder")
    made.add_argument("--hide", type=float, default=0.05)
    made.add_argument("--weighing", type=float, default=60, help="seconds, after the minutes")
    made.add_argument("--weighing-batch", type=int, default=16)
    made.add_argument("--seed", type=int, default=0)
    return made


def main() -> None:
    """Train."""
    asked = parser().parse_args()
    try:
        if asked.out is None:
            raise ConfigError("expected a folder for the state: train.py OUT --minutes M")
        learn(asked)
    except Medk2nError as error:
        sys.exit(f"train.py: {error}")


if __name__ == "__main__":
    main()
