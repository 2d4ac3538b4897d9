"""Packed scans and digital bodies on the device: what is drawn from, what is held out and what is watched."""

import argparse
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import digital
import pack

from medk2n.data.batches import Batch, whole_slices
from medk2n.data.stored import ENOUGH, Stored
from medk2n.errors import ConfigError
from medk2n.training.device_damage import Chance
from medk2n.training.device_feed import DeviceFeed

CANVAS = 144, 176
SLICES = 3
CORE = "t1c", "t1n", "t2f", "t2w"
SHARES = {"lgg128": 0.3, "lgg128-incomplete": 0.04, "brains128": 0.4, "four128": 0.06, "digital": 0.2}
FREE_SHARES = {"brains128": 0.3, "four128": 0.04, "digital": 0.66}
_BUSY = 0.1  # share of the time that new bodies may take
_FOLD_ROWS = 40_000  # room for digital subjects that are held out
_FOLD_EVERY = 10


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
