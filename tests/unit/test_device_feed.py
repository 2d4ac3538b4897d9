"""Batches drawn on the device against those of `data/batches.py`: the same crops, and the same distribution."""

import numpy as np
import pytest
import torch

from medk2n.data.batches import Augmentation, Batch, Store, draw_batch
from medk2n.data.corrupt import KINDS, corrupt
from medk2n.data.grey import shares_below, towards
from medk2n.data.intensity import Scaling
from medk2n.data.stored import Stored
from medk2n.data.working import WorkingStudy
from medk2n.errors import SystemLimitError
from medk2n.training import device_damage
from medk2n.training.device_damage import Chance, damage
from medk2n.training.device_feed import DeviceFeed, _towards, draw_sources, narrowed

NAMES = ("t1n", "t2f", "t2w")
CROP = 16
"""As far as it is from the first row of a study's head to the last: what is not moved has one place for a crop."""
PLAIN = Augmentation(rotation=0, zoom=0, gamma=0, noise=0, strip=0)


def study(
    seed: int, *, lacks: str = "", further: str = "", size: tuple[int, int] = (30, 26), depth: int = 5
) -> WorkingStudy:
    """A head of a few slices with a brain as long and wide in it, grey levels of its own."""
    rng = np.random.default_rng(seed)
    inside = np.zeros((depth, *size), bool)
    inside[1:, 3 : 4 + CROP, 4 : 5 + CROP] = True
    row, column = np.indices(size)  # corners cut aslant: no pixel is half a brain, left to rounding
    brain = inside & (row + column > 11) & (row + column < 2 * CROP + 2)
    brain[-1] = False
    names = [name for name in NAMES if name != lacks]

    def image() -> np.ndarray:
        return (rng.uniform(0.02, 1, inside.shape) ** rng.uniform(0.5, 2) * inside).astype(np.float32)

    others = {further: [image()]} if further else {}
    scalings = dict.fromkeys(names, Scaling(0.0, 1.0))
    return WorkingStudy(str(seed), {n: image() for n in names}, inside, scalings, brain=brain, inputs_only=others)


def chance(seed: int = 0) -> Chance:
    return Chance(torch.Generator().manual_seed(seed))


def feed_of(groups: list[list[WorkingStudy]], shares: list[float]) -> DeviceFeed:
    feed = DeviceFeed(len(NAMES), (32, 32), 400, torch.device("cpu"))
    for k, group in enumerate(groups):
        for one in group:
            feed.add(k, Stored.of(one, NAMES))
    feed.share_out(shares)
    return feed


def host_batch(groups: list[list[WorkingStudy]], shares: list[float], size: int, seed: int, **how) -> Batch:
    rng = np.random.default_rng(seed)
    stores = [Store(group, NAMES) for group in groups]
    return draw_batch(stores, shares, rng, batch_size=size, crop=CROP, slices=3, augmentation=Augmentation(**how))


def crops(batch: Batch) -> dict[bytes, Batch]:
    """Each crop under its own bytes (to a thousandth), whatever the order."""
    found = {}
    for k in range(len(batch.images)):
        row = batch.row(k)
        whole = torch.cat([row.images.flatten(), row.targets.flatten(), row.foreground.flatten()])
        found[(whole.nan_to_num(-1) * 1000).round().short().numpy().tobytes()] = row
    return found


GROUPS = [
    [study(1), study(2, lacks="t2w", further="t1n")],
    [study(3, lacks="t1n", size=(26, 31)), study(4, further="t2f", depth=7)],
]


@pytest.mark.parametrize("augmentation", [PLAIN, Augmentation(0, 0, 0, 0, strip=1.0)], ids=["heads", "brains"])
def test_the_same_crops_as_on_the_host(augmentation: Augmentation) -> None:
    """Unmoved but for flips, every crop of the one is one of the other: few enough that all are met."""
    stores = [Store(group, NAMES) for group in GROUPS]
    rng = np.random.default_rng(0)
    host = draw_batch(stores, [1, 2], rng, batch_size=1600, crop=CROP, slices=3, augmentation=augmentation)
    here = feed_of(GROUPS, [1, 2]).batch(chance(), 2000, CROP, 3, augmentation)
    wanted, got = crops(host), crops(here)
    assert len(wanted) > 40
    assert got.keys() == wanted.keys()


def test_the_same_distribution_as_on_the_host() -> None:
    how = {"strip": 0.4, "restyle": 0.7, "corrupt": 0.3}
    host = host_batch(GROUPS, [1, 3], 900, 1, **how)
    here = feed_of(GROUPS, [1, 3]).batch(chance(2), 4000, CROP, 3, Augmentation(**how))
    for batch in (host, here):
        there = batch.acquired
        assert torch.equal(torch.isnan(batch.images).flatten(2).all(dim=2), ~there)
        assert torch.equal(torch.isnan(batch.targets).flatten(2).all(dim=2), ~there)
        assert not torch.isnan(batch.images[there]).any()
        assert batch.images[there].min() == 0
        assert batch.images[there].max() <= 1
        assert not batch.severity[~there].any()

    def numbers(batch: Batch) -> torch.Tensor:
        inputs, targets = batch.images[:, :, 1], batch.targets
        inside = batch.foreground[:, None].expand_as(targets) & batch.acquired[..., None, None]
        wrong = (inputs - targets)[inside]
        return torch.tensor(
            [
                *batch.acquired.float().mean(dim=0),
                batch.foreground.float().mean(),
                inputs[inside].mean(),
                inputs[inside].std(),
                targets[inside].mean(),
                targets[inside].std(),
                wrong.abs().mean(),
                (batch.severity > 0).float().mean(),
                batch.severity[batch.severity > 0].mean(),
                batch.severity[batch.severity > 0].std(),
            ]
        )

    torch.testing.assert_close(numbers(here), numbers(host), rtol=0.05, atol=0.03)


def test_grey_levels_move_as_on_the_host() -> None:
    rng = np.random.default_rng(3)
    shares = [shares_below((255 * rng.uniform(0, 1, 5000) ** p).astype(np.uint8)) for p in (0.5, 1.0, 2.0)]
    for amount in (0.0, 0.3, 1.0):
        host = np.stack(towards(tuple(shares), tuple(reversed(shares)), amount)).astype(int)
        stack = torch.tensor(np.stack(shares), dtype=torch.float32)[None]
        here = _towards(stack, stack.flip(1).contiguous(), torch.tensor([amount]))[0]
        assert np.abs(here.numpy() - host).max() <= 1  # a half may be rounded either way
        assert (here.numpy() == host).mean() > 0.99


@pytest.mark.parametrize("kind", KINDS)
def test_each_damage_is_as_strong_as_on_the_host(kind: str) -> None:
    rows = torch.linspace(0, 3, 64)[:, None] + torch.linspace(0, 5, 48)
    image = (0.5 + 0.4 * rows.sin()).expand(1, 64, 48).contiguous()
    rng, level = np.random.default_rng(0), 0.6
    host = torch.stack([KINDS[kind](rng, image, level) for _ in range(900)])
    here = device_damage._ALONE[kind](chance(), image.expand(900, -1, -1, -1), torch.full((900,), level))
    assert here.min() >= 0
    assert here.max() <= 1
    for of in (torch.Tensor.mean, torch.Tensor.std, lambda x: (x - image).abs().mean(), lambda x: x.std(dim=0).mean()):
        assert float(of(here)) == pytest.approx(float(of(host)), rel=0.06, abs=0.005)


def test_damage_reads_and_changes_what_was_acquired_alone() -> None:
    torch.manual_seed(0)
    images, acquired = torch.rand(40, 3, 3, 16, 16), torch.rand(40, 3) < 0.7
    bad, severity, _ = damage(images, acquired, chance(), 0.5)
    changed = (bad != images).flatten(2).any(dim=2)
    assert torch.equal(changed, severity > 0)
    assert not changed[~acquired].any()
    lonely = torch.zeros_like(acquired)
    lonely[5, 1] = True  # nothing to blend with: only the kinds that need nothing else are left
    told = sum(int(damage(images, lonely, chance(s), 1.0)[1][5, 1] > 0) for s in range(140))
    assert 75 < told < 125  # 6 of 8 kinds
    host = corrupt(images, acquired, np.random.default_rng(0), 0.5)[1]
    assert float((severity > 0).float().mean()) == pytest.approx(float((host > 0).float().mean()), abs=0.12)


def test_sources_leave_something_to_be_asked_for() -> None:
    acquired = torch.tensor([[True, True, False], [True, True, True], [False, True, True]]).repeat(500, 1)
    sources = draw_sources(acquired, chance(), most=2)
    size = sources.sum(dim=1)
    assert not (sources & ~acquired).any()
    assert torch.equal(size[0::3], torch.ones(500, dtype=torch.long))
    assert set(size[1::3].tolist()) == {1, 2}
    assert float((size[1::3] == 2).float().mean()) == pytest.approx(0.5, abs=0.08)
    assert sources[1::3].float().mean(dim=0).std() < 0.05  # no modality is preferred


def test_the_core_alone_is_asked_about_in_a_share_of_the_crops() -> None:
    acquired = torch.tensor([[True, True, True], [True, False, True]]).repeat(500, 1)
    kept = narrowed(acquired, torch.tensor([True, True, False]), chance(), share=0.6)
    assert float((~kept[0::2, 2]).float().mean()) == pytest.approx(0.6, abs=0.08)
    assert torch.equal(kept[1::2], acquired[1::2])  # one core modality alone would leave nothing to ask for


def test_a_full_pool_and_a_slice_that_is_too_large_are_told() -> None:
    feed = DeviceFeed(len(NAMES), (32, 32), 30, torch.device("cpu"))
    feed.add(0, Stored.of(study(1), NAMES))
    with pytest.raises(SystemLimitError, match=r"a study of 5 x 5 slices .* room for 5 slices"):
        feed.add(0, Stored.of(study(2), NAMES))
    with pytest.raises(SystemLimitError, match="40 x 26 pixels"):
        DeviceFeed(len(NAMES), (32, 32), 99, torch.device("cpu")).add(0, Stored.of(study(1, size=(40, 26)), NAMES))
    with pytest.raises(ValueError, match="share_out"):
        feed.batch(chance(), 1, CROP, 3, PLAIN)
