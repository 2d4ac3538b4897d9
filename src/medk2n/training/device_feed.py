"""Training batches drawn on the device itself: the whole training set lives there as bytes.

What `data/batches.py` draws crop by crop on the host is drawn here for a batch at once, from the same distribution:
subjects and slices, the acquisition that is shown, skull-stripping, grey scales, turn, zoom and shift, damage, gamma
and noise. No step waits for the device: no shape depends on what is drawn. A thousand subjects are a few GB.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from medk2n.data.batches import Augmentation, Batch
from medk2n.data.stored import ENOUGH, Stored
from medk2n.errors import SystemLimitError
from medk2n.training.device_damage import Chance, damage

_FOREGROUND, _BRAIN = 0, 1  # channels of a study


@dataclass(frozen=True, slots=True)
class DeviceStudy:
    """What is known on the host of one subject whose slices are on the device.

    Attributes:
        first: row of the pool where its slices begin, channel by channel.
        boxes: (s, 2, 4) first and last row and column of the foreground and of the brain in each slice.
    """

    group: int
    first: int
    stored: Stored
    boxes: np.ndarray


@dataclass(frozen=True, slots=True)
class _Tables:
    """The same for all subjects, as drawing needs it; n studies, c slices that may be drawn.

    Attributes:
        upto: (c,) share of the draws up to and with each slice.
        study, z: (c,) of each slice.
        brain: (c,) bool, whether the slice may be shown stripped.
        boxes: (c, 2, 4).
        first, depth: (n,).
        channels: (n, m, a); counts: (n, m) acquisitions; acquired: (n, m) bool.
        stretch: (n, m, a, 256) uint8.
        stripped: (n,) bool, whether it came skull-stripped.
        has_brain: (n, longest) bool, of each slice.
        style: (n, 2, m, 256), shares below each level with the skull and without; known: (n, 2, m) bool.
        lenders: (2, n) share of the draws up to and with each study.
    """

    upto: Tensor
    study: Tensor
    z: Tensor
    brain: Tensor
    boxes: Tensor
    first: Tensor
    depth: Tensor
    channels: Tensor
    counts: Tensor
    acquired: Tensor
    stretch: Tensor
    stripped: Tensor
    has_brain: Tensor
    style: Tensor
    known: Tensor
    lenders: Tensor


class DeviceFeed:
    """Studies on a device, in groups that each give a share of the crops.

    `studies` are those that were added, in order.

    Args:
        modalities: how many a study is seen as.
        canvas: rows and columns that hold any slice.
        rows: how many slices the pool has room for, counting every channel of a study; memory is taken at once.
    """

    def __init__(self, modalities: int, canvas: tuple[int, int], rows: int, device: torch.device) -> None:
        self.modalities, self.device = modalities, device
        self._pool = torch.zeros(rows, *canvas, dtype=torch.uint8, device=device)
        self._used = 0
        self.studies: list[DeviceStudy] = []
        self._tables: _Tables | None = None

    @property
    def room(self) -> int:
        """Slices, counting every channel, that still fit."""
        return len(self._pool) - self._used

    def __len__(self) -> int:
        """Number of studies."""
        return len(self.studies)

    def add(self, group: int, stored: Stored, slices: Tensor | None = None) -> None:
        """Add a study; it is drawn from once `share_out` has been called.

        Args:
            slices: (s, c, h, w) uint8 on the device, instead of those of `stored`.

        Raises:
            SystemLimitError: the pool is full, or a slice is larger than the canvas.
        """
        if slices is None:
            slices = torch.from_numpy(np.ascontiguousarray(stored.array()))
        s, c, h, w = slices.shape
        rows, columns = self._pool.shape[1:]
        if h > rows or w > columns or s * c > self.room:
            raise SystemLimitError(
                f"device feed: a study of {s} x {c} slices of {h} x {w} pixels; there is room for {self.room} slices "
                f"of up to {rows} x {columns}; take fewer studies or a larger canvas"
            )
        slices = slices.to(self.device)
        place = self._pool[self._used : self._used + s * c].view(c, s, rows, columns)
        place[:, :, :h, :w] = slices.transpose(0, 1)
        self.studies.append(DeviceStudy(group, self._used, stored, _boxes(slices[:, :2] > 0)))
        self._used += s * c

    def share_out(self, shares: Sequence[float]) -> None:
        """Draw from what has been added since: group k gives `shares[k]` of the crops, if it has any."""
        self._tables = _tables(self.studies, shares, self.modalities, self.device)

    def batch(self, chance: Chance, size: int, crop: int, slices: int, augmentation: Augmentation) -> Batch:
        """`size` crops, on the device; as `data.batches.draw_batch` draws them.

        Raises:
            ValueError: `share_out` was not called.
        """
        if self._tables is None:
            raise ValueError("device feed: call share_out before drawing")
        t, m = self._tables, self.modalities
        at = torch.searchsorted(t.upto, chance.uniform(size), right=True).clamp_max_(len(t.upto) - 1)
        k, z = t.study[at], t.z[at]
        strip = (chance.uniform(size) < augmentation.strip) & t.brain[at]
        kind = strip.long()
        which = (chance.uniform(size, m) * t.counts[k]).long().clamp_max_(t.channels.shape[2] - 1)
        around = self._around(k, z, slices, strip)
        images = self._slices(k, _pick(t.channels[k], which), around)  # (b, m, s, H, W)
        apart = t.channels.shape[2] > 1  # some studies have inputs that are no targets
        targets = self._slices(k, t.channels[k][:, :, 0], z[:, None]) if apart else None
        if augmentation.strip > 0 or augmentation.restyle > 0:
            for_inputs, for_targets = self._levels(chance, k, which, strip, augmentation.restyle)
            images = _recoded(images, for_inputs)
            targets = None if targets is None else _recoded(targets, for_targets)
        inside = self._slices(k, kind[:, None], z[:, None])
        if augmentation.strip > 0:
            head = ~strip[:, None, None, None, None]
            images = images * (self._slices(k, torch.full_like(z, _BRAIN)[:, None], around) | head)
            targets = None if targets is None else targets * (inside | head)
        layers = [x.flatten(1, 2) for x in (images, targets, inside * 255) if x is not None]
        box = t.boxes[at, kind]
        moved = _moved(torch.cat(layers, dim=1), box, chance, crop, augmentation)
        foreground = moved[:, -1] > 0.5
        inputs = moved[:, : m * slices].unflatten(1, (m, slices))
        aims = moved[:, m * slices : -1] if apart else inputs[:, :, slices // 2]
        return self._finished(inputs, aims, foreground, t.acquired[k], chance, augmentation)

    def _finished(
        self,
        inputs: Tensor,
        aims: Tensor,
        foreground: Tensor,
        acquired: Tensor,
        chance: Chance,
        augmentation: Augmentation,
    ) -> Batch:
        """Damage, gamma and noise; NaN where nothing was acquired."""
        severity = torch.zeros(acquired.shape, device=self.device)
        mixed = torch.full(acquired.shape, -1, device=self.device)
        aims = torch.where(acquired[..., None, None], aims * foreground[:, None], torch.nan)
        if augmentation.corrupt > 0:
            inputs, severity, mixed = damage(inputs, acquired, chance, augmentation.corrupt)
        inputs = _disturbed(inputs, chance, augmentation) * foreground[:, None, None]
        inputs = torch.where(acquired[..., None, None, None], inputs, torch.nan)
        return Batch(inputs, acquired, aims, foreground, severity, mixed)

    def _around(self, k: Tensor, z: Tensor, slices: int, strip: Tensor) -> Tensor:
        """(b, s) neighbours; where the brain is shown, the middle one instead of those without a mask."""
        assert self._tables is not None
        offset = torch.arange(slices, device=self.device) - slices // 2
        around = torch.minimum((z[:, None] + offset).clamp_min_(0), self._tables.depth[k][:, None] - 1)
        shown = self._tables.has_brain[k[:, None], around] | ~strip[:, None]
        return torch.where(shown, around, z[:, None])

    def _slices(self, k: Tensor, channels: Tensor, z: Tensor) -> Tensor:
        """Channels (b, c) at levels (b, s) of studies (b,) -> (b, c, s, H, W) uint8."""
        assert self._tables is not None
        rows = self._tables.first[k][:, None] + channels * self._tables.depth[k][:, None]
        return self._pool[rows[:, :, None] + z[:, None]]

    def _levels(self, chance: Chance, k: Tensor, which: Tensor, strip: Tensor, restyle: float) -> tuple[Tensor, Tensor]:
        """Tables (b, m, 256) uint8 for the inputs and the targets."""
        t = self._tables
        assert t is not None
        alone = (strip | t.stripped[k]).long()
        lent = torch.searchsorted(t.lenders, chance.uniform(2, len(k)), right=True)
        lender = torch.where(alone > 0, lent[1], lent[0])
        restyled = (chance.uniform(len(k)) < restyle) & (lender < t.lenders.shape[1])
        lender = lender.clamp_max(t.lenders.shape[1] - 1)
        known = t.known[k, alone] & t.known[lender, alone] & restyled[:, None]
        tables = _towards(t.style[k, alone], t.style[lender, alone], chance.uniform(len(k)))
        unchanged = torch.arange(256, dtype=torch.uint8, device=self.device)
        tables = torch.where(known[..., None], tables, unchanged)
        stretch = torch.where(strip[:, None, None, None], t.stretch[k], unchanged)
        own = _pick(stretch, which)
        lent_too = torch.where((which == 0)[..., None], tables, unchanged)  # other protocols have scales of their own
        return lent_too.gather(2, own.long()), tables.gather(2, stretch[:, :, 0].long())


def draw_sources(acquired: Tensor, chance: Chance, *, most: int) -> Tensor:
    """Input subsets (b, m) of what is acquired (b, m); the size is even over 1 .. min(most, acquired - 1)."""
    largest = (acquired.sum(dim=1) - 1).clamp_(1, most)
    size = 1 + (chance.uniform(len(acquired)) * largest).long().clamp_max_(most - 1)
    rank = chance.uniform(*acquired.shape).add_(~acquired, alpha=2).argsort(dim=1).argsort(dim=1)
    return (rank < size[:, None]) & acquired


def narrowed(acquired: Tensor, core: Tensor, chance: Chance, *, share: float) -> Tensor:
    """Hide what is not core (m,) in a share of the samples (b, m); never leaves fewer than two."""
    chosen = (chance.uniform(len(acquired)) < share) & ((acquired & core).sum(dim=1) >= 2)
    return torch.where(chosen[:, None], acquired & core, acquired)


def _pick(tables: Tensor, which: Tensor) -> Tensor:
    """tables (b, m, a, ...), which (b, m) -> (b, m, ...)."""
    at = which.view(*which.shape, *(1,) * (tables.ndim - 2)).expand(*which.shape, 1, *tables.shape[3:])
    return tables.gather(2, at).squeeze(2)


def _recoded(images: Tensor, tables: Tensor) -> Tensor:
    """images (b, m, s, H, W) uint8 through tables (b, m, 256)."""
    return tables.gather(2, images.flatten(2).long()).view_as(images)


def _towards(own: Tensor, lent: Tensor, amount: Tensor) -> Tensor:
    """`data.grey.towards` for a batch: shares below each level (b, m, 256) twice, amount (b,) -> tables uint8."""
    levels = torch.arange(256.0, device=own.device)
    below = (torch.searchsorted(lent, own, right=True) - 1).clamp_(0, 254)
    low, high = lent.gather(2, below), lent.gather(2, below + 1)
    there = below + ((own - low) / (high - low).clamp_min(1e-12)).clamp_(0, 1)
    amount = amount[:, None, None]
    moved = ((1 - amount) * levels + amount * there) * (levels > 0)
    return torch.where(moved > 0, moved.round().clamp_(1, 255), 0.0).byte()


def _moved(layers: Tensor, box: Tensor, chance: Chance, size: int, augmentation: Augmentation) -> Tensor:
    """Flip, turn, zoom and shift layers (b, c, H, W) of bytes to (b, c, size, size) in [0, 1]."""
    b, _, height, width = layers.shape
    angle = chance.uniform(b, low=-1) * augmentation.rotation
    zoom = (chance.uniform(b, low=-1) * augmentation.zoom).exp() * size / 2
    flip = 1.0 - 2.0 * (chance.uniform(b) < 0.5)
    ends = torch.stack([box[:, 0::2] + size / 2, box[:, 1::2] - size / 2]).sort(dim=0).values  # (2, b, row and column)
    row, column = (ends[0] + chance.uniform(b, 2) * (ends[1] - ends[0])).unbind(dim=1)
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    across, down = width / 2, height / 2  # grid_sample takes (x, y) = (column, row) in [-1, 1]
    theta = torch.stack(
        [
            torch.stack([cos / across, sin / across, (column + 0.5) / across - 1], dim=1),
            torch.stack([-flip * sin / down, flip * cos / down, (row + 0.5) / down - 1], dim=1),
        ],
        dim=1,
    )
    grid = functional.affine_grid(theta, [b, 1, size, size], align_corners=False)
    return functional.grid_sample(layers.float(), grid, mode="bilinear", align_corners=False).div_(255)


def _disturbed(images: Tensor, chance: Chance, augmentation: Augmentation) -> Tensor:
    """Gamma and noise, each in half of the images."""
    b, m = images.shape[:2]
    exponent = (chance.uniform(b, m, low=-1) * augmentation.gamma * (chance.uniform(b, m) < 0.5)).exp()
    strength = chance.uniform(b, m) * augmentation.noise * (chance.uniform(b, m) < 0.5)
    images = images.clamp(0, 1).pow(exponent[..., None, None, None])
    images = images + strength[..., None, None, None] * chance.normal(*images.shape)
    return images.clamp_(1 / 255, 1)


def _boxes(masks: Tensor) -> np.ndarray:
    """masks (s, 2, h, w) bool -> (s, 2, 4) first and last row and column; zeros where empty."""
    ends = []
    for axis in (3, 2):
        line = masks.any(dim=axis)
        n = line.shape[-1]
        first, last = line.int().argmax(dim=-1), n - 1 - line.flip(-1).int().argmax(dim=-1)
        some = line.any(dim=-1)
        ends += [torch.where(some, first, 0), torch.where(some, last, 0)]
    return torch.stack(ends, dim=-1).cpu().numpy()


def _tables(studies: Sequence[DeviceStudy], shares: Sequence[float], m: int, device: torch.device) -> _Tables:
    """What drawing needs; small, made on the host."""
    n, deepest = len(studies), max(len(s.stored) for s in studies)
    most = max(1, *(len(c) for s in studies for c in s.stored.channels))
    channels = np.zeros((n, m, most), np.int64)
    stretch = np.tile(np.arange(256, dtype=np.uint8), (n, m, most, 1))
    style, known = np.zeros((n, 2, m, 256), np.float32), np.zeros((n, 2, m), bool)
    has_brain = np.zeros((n, deepest), bool)
    rows: list[tuple[int, int, float, bool, np.ndarray]] = []
    pairs = np.zeros(len(shares))
    for k, study in enumerate(studies):
        stored = study.stored
        for i, of in enumerate(stored.channels):
            for a, channel in enumerate(of):
                channels[k, i, a], stretch[k, i, a] = channel, stored.stretch[i][a]
            for alone, styles in enumerate(stored.styles):
                if styles is not None and (one := styles[i]) is not None:
                    style[k, alone, i], known[k, alone, i] = one, True
        if stored.brain_share is not None:
            has_brain[k, : len(stored)] = stored.brain_share > 0
        for z in np.flatnonzero(stored.foreground_share > ENOUGH) if stored.pairs else ():
            brain = stored.brain_share is not None and stored.brain_share[z] > ENOUGH
            rows.append((k, int(z), float(stored.pairs), bool(brain), study.boxes[z]))
            pairs[study.group] += stored.pairs
    share = np.array(shares, dtype=float) * (pairs > 0)
    share /= share.sum()
    weights = np.array([share[studies[k].group] * p / pairs[studies[k].group] for k, _, p, _, _ in rows])
    lenders = [[share[s.group] * (s.stored.styles[alone] is not None) for s in studies] for alone in (0, 1)]
    for alone, line in enumerate(lenders):
        of = [sum(s.group == g and s.stored.styles[alone] is not None for s in studies) for g in range(len(shares))]
        lenders[alone] = [x / max(1, of[s.group]) for x, s in zip(line, studies, strict=True)]
    counts = np.array([[len(c) for c in s.stored.channels] for s in studies])
    arrays = {
        "upto": np.cumsum(weights).astype(np.float32),
        "study": np.array([row[0] for row in rows]),
        "z": np.array([row[1] for row in rows]),
        "brain": np.array([row[3] for row in rows]),
        "boxes": np.stack([row[4] for row in rows]),
        "first": np.array([s.first for s in studies]),
        "depth": np.array([len(s.stored) for s in studies]),
        "channels": channels,
        "counts": counts,
        "acquired": counts > 0,
        "stretch": stretch,
        "stripped": np.array([s.stored.stripped for s in studies]),
        "has_brain": has_brain,
        "style": style,
        "known": known,
        "lenders": np.cumsum(lenders, axis=1).astype(np.float32),
    }
    return _Tables(**{field.name: torch.from_numpy(arrays[field.name]).to(device) for field in fields(_Tables)})
