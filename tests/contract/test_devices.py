"""Training steps on every device: what the host waits for, parts, precision, going on, a card that is full.

On a CPU the operations that would wait for a device are counted; what needs a card skips where there is none.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from medk2n.cli.common import resolve_device
from medk2n.config.schema import ModelChoice, TrainConfig, load_config
from medk2n.errors import SystemLimitError, UsageError
from medk2n.training import contender as contender_module
from medk2n.training.contender import Contender
from medk2n.training.feed import Feed
from medk2n.training.reading import TrainingData, read_data
from medk2n.training.run import train
from medk2n.training.world import World

WAITS = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten._unique2", "aten.unique_dim")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
LARGE = ModelChoice(name="medk2n", params={"widths": [64, 128, 256, 384, 512], "embedding": 8})
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, CUDA])]


class Waits(TorchDispatchMode):
    """Counts operations whose result the host has to know before it can go on."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).rpartition(".")[0]
        masks = name in ("aten.index", "aten.index_put_", "aten.index_put") and any(
            x is not None and x.dtype == torch.bool for x in args[1]
        )
        if name in WAITS or masks:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, TrainingData]:
    root = tmp_path_factory.mktemp("arrays")
    for k in range(6):
        rng = np.random.default_rng(k)
        inside = np.hypot(*np.mgrid[-1:1:40j, -1:1:40j]) < 0.9
        grey = {name: inside * rng.integers(20, 255, (5, 40, 40)) for name in ("t1c", "t1n", "t2w")}
        np.savez_compressed(root / f"p{k}.npz", **{name: image.astype(np.uint8) for name, image in grey.items()})
    settings = [
        f"data=['{root}']", "modalities=[t1c, t1n, t2w]", "core=[]", "spacing_mm=1.5",
        "models=[{name: medk2n, params: {widths: [8, 8, 8, 8, 8], embedding: 8}}]",
        "batch={size: 2, crop: 32, draws: 1, most_sources: 2, accumulate: 2}", "budget={steps: 200}",
    ]  # fmt: skip
    config = load_config("tiny", settings)
    return config, read_data(config, lambda *_: None)


def learner(run: tuple[TrainConfig, TrainingData], device: str) -> tuple[Contender, Feed]:
    config, data = run
    torch.manual_seed(0)
    made = Contender.of(config.models[0], config, data.statistics, device)
    return made, Feed(data, config, 3, range(config.batch.accumulate), 0, made.kind)


def test_the_synthesizer_learns_without_waiting(run: tuple[TrainConfig, TrainingData]) -> None:
    made, feed = learner(run, "cpu")
    (part, _) = next(feed)
    crops, world = part.batch, World()
    sources = torch.tensor([[False, True, True], [True, False, False]])
    presence = sources[:, :, None, None].float().expand(-1, -1, *crops.foreground.shape[-2:])
    given = crops, torch.arange(2), presence, sources, world
    judged = crops.askable(torch.arange(2), sources).nonzero()
    with Waits() as waits:
        loss, parts = made.lesson.paint(*given, judged=judged)
        loss.backward()
        for parameters in made.lesson.apart():
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    assert not waits.seen
    with Waits() as waits:
        again, _ = made.lesson.paint(*given)
    assert waits.seen == {"aten.nonzero": 1}, "what counts can count"
    assert torch.equal(loss, again)
    assert all(value.requires_grad for value in parts.values())


def test_a_step_reads_its_numbers_once(run: tuple[TrainConfig, TrainingData], monkeypatch: pytest.MonkeyPatch) -> None:
    made, feed = learner(run, "cpu")
    reads, read = [], contender_module._read
    monkeypatch.setattr(contender_module, "_read", lambda told: reads.append(told) or read(told))
    drawn, world = next(feed), World()
    made.step(drawn, world)
    with Waits() as waits:
        numbers = made.step(next(feed), world)
    assert len(reads) == 2
    assert waits.seen["aten._local_scalar_dense"] == 0
    told = reads[1]
    assert len(told) == 2
    assert all(isinstance(value, torch.Tensor) and not value.requires_grad for part in told for value in part.values())
    assert numbers["loss"] == pytest.approx(np.mean([float(part["loss"]) for part in told]), rel=1e-6)


@pytest.mark.cuda
@CUDA
def test_the_profiler_counts_one_transfer_a_step(run: tuple[TrainConfig, TrainingData]) -> None:
    made, feed = learner(run, "cuda")
    world, steps = World("cuda"), 4
    for _ in range(3):
        made.step(next(feed), world)
    drawn = [next(feed) for _ in range(steps)]
    with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as seen:
        for parts in drawn:
            made.step(parts, world)
    back = sum(event.count for event in seen.key_averages() if event.key.startswith("Memcpy DtoH"))
    assert back == steps


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_parts_of_a_step_are_one_step_on_every_device(
    run: tuple[TrainConfig, TrainingData], device: str, precision: str
) -> None:
    """Two parts of two crops: finite numbers, learned from, and the same steps from the same state."""
    losses = []
    for _ in range(2):
        made, feed = learner(run, device)
        world = World(device, precision)
        losses.append([made.step(next(feed), world)["loss"] for _ in range(3)])
        assert made.samples == 3 * 2 * 2
    assert np.isfinite(losses).all()
    np.testing.assert_allclose(losses[0], losses[1], rtol=0 if device == "cpu" else 1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_a_learner_goes_on_to_the_same_bits(
    run: tuple[TrainConfig, TrainingData], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In deterministic mode, in which no operation of a step may be without a deterministic form."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        world = World(device, "fp32")
        straight, feed = learner(run, device)
        for _ in range(2):
            straight.step(next(feed), world)
        tensors, counters = straight.state()
        kept = {name: tensor.clone() for name, tensor in tensors.items()}
        again, _ = learner(run, device)
        again.restore(kept, counters)
        config, data = run
        later = Feed(data, config, 3, range(config.batch.accumulate), again.steps, again.kind)
        for _ in range(2):
            straight.step(next(feed), world)
            again.step(next(later), world)
    finally:
        torch.use_deterministic_algorithms(False)
    for name, tensor in straight.state()[0].items():
        assert torch.equal(tensor, again.state()[0][name]), name


@pytest.mark.cuda
@CUDA
def test_a_card_that_is_full_is_told_with_what_to_lower(run: tuple[TrainConfig, TrainingData], tmp_path: Path) -> None:
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(5e7 / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.raises(SystemLimitError, match=r"out of memory: medk2n with .* lower batch\.size or batch\.crop"):
            train(run[0].model_copy(update={"models": [LARGE]}), tmp_path / "run", device="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.cuda
@CUDA
def test_a_numbered_card_is_taken_at_its_word() -> None:
    last = torch.cuda.device_count() - 1
    assert World(f"cuda:{last}").device == torch.device("cuda", last)
    with pytest.raises(UsageError, match="torch finds"):
        resolve_device(f"cuda:{last + 1}")
