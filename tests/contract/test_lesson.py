"""Med-K2N's lesson: what teaches the synthesizer, what teaches the weights, and that both can be seen to learn."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from medk2n import checkpoint
from medk2n.config.schema import TrainConfig, load_config
from medk2n.data import corrupt
from medk2n.data.batches import Batch, draw_batch
from medk2n.inference.predictor import SlicePredictor
from medk2n.losses.gains import gain_db, presence_error, set_error, weight_error
from medk2n.registry import resolve
from medk2n.training import reading
from medk2n.training.contender import Contender
from medk2n.training.feed import Feed
from medk2n.training.lesson import ask
from medk2n.training.lessons.medk2n import hidden, without_damaged
from medk2n.training.reading import FOLD, REST, TrainingData, read_data
from medk2n.training.world import World

NAMES = ("t1c", "t1n", "t2w")
SMALL = (
    "modalities=[t1c, t1n, t2w]",
    "core=[]",
    "spacing_mm=1.5",
    "models=[{name: medk2n, params: {widths: [8, 8, 8, 8, 8], embedding: 8}}]",
    "batch={size: 4, crop: 32, draws: 1, most_sources: 2, corrupt: 0}",
    "budget={steps: 200}",
    "teaching={weighing: 0.6, held_out: 0.2}",
    "optimiser={learning_rate: 5e-3, warm_up: 0.03, ema: 0.98}",
)
WEIGHTS = ("pre_weight.weigh.2.weight", "effi_weight.threshold.level", "effi_weight.threshold.softness")


def subject(seed: int) -> dict[str, np.ndarray]:
    """Three contrasts (6, 48, 48) in [0, 1] that determine each other, 0 outside a disc."""
    noise = np.random.default_rng(seed).standard_normal((6, 48, 48))
    grey = gaussian_filter(noise, (0.7, 2.5, 2.5))
    grey = 0.1 + 0.85 * (grey - grey.min()) / np.ptp(grey)
    y, x = np.mgrid[-1:1:48j, -1:1:48j]
    inside = x**2 + y**2 < 0.85
    contrasts = {"t1n": grey, "t2w": 1.05 - grey, "t1c": 0.15 + 0.8 * grey**2}
    return {name: (inside * image).astype(np.float32) for name, image in contrasts.items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("arrays")
    for k in range(12):
        arrays = {name: np.round(255 * image).astype(np.uint8) for name, image in subject(k).items()}
        np.savez_compressed(root / f"p{k:02}.npz", **arrays)
    return root


def config(data: Path, *overrides: str) -> TrainConfig:
    return load_config("tiny", [f"data=['{data}']", *SMALL, *overrides])


def contender(settings: TrainConfig, prepared: TrainingData) -> Contender:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Contender.of(settings.models[0], settings, prepared.statistics, "cpu")


@dataclass
class Taught:
    """A model that was taught, and what was seen on the way.

    Attributes:
        gradients: kind of step -> one set of the parameters with a gradient a step.
        frozen: parameters that the second kind of step left bit for bit as they were.
        entered: module and average as the second kind began.
    """

    model: Contender
    gradients: dict[str, list[set[str]]] = field(default_factory=lambda: {REST: [], FOLD: []})
    frozen: set[str] = field(default_factory=set)
    entered: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] | None = None


@pytest.fixture(scope="module")
def taught(data: Path) -> Taught:
    """80 steps of the synthesizer and 120 of the weights, where damage is white noise and nothing else."""
    settings = config(data)
    prepared = read_data(settings, lambda *_: None)
    seen = Taught(contender(settings, prepared))
    model, noise, before, world = seen.model, corrupt._noise, {}, World()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(corrupt, "KINDS", {"noise": lambda rng, image, severity: noise(rng, image, 1.0)})
        patched.setattr(corrupt, "MIXED", ())
        feed = Feed(prepared, settings, 3, range(1), 0, model.kind)
        while model.progress < 1:
            averaged = {name: x.clone() for name, x in model.averaged.state_dict().items()}
            if model.turn():
                feed = Feed(prepared, settings, 3, range(1), model.steps, model.kind)
                before = {name: x.clone() for name, x in model.module.state_dict().items()}
                seen.entered = before, averaged
            model.step(next(feed), world)
            moved = {n for n, p in model.module.named_parameters() if p.grad is not None and p.grad.abs().max() > 1e-8}
            seen.gradients[model.kind].append(moved)
    after = model.module.state_dict()
    seen.frozen = {name for name, x in before.items() if torch.equal(x, after[name])}
    return seen


def test_the_synthesizer_learns_first_and_the_weights_beside_its_average(taught: Taught) -> None:
    rest, fold = taught.gradients[REST], taught.gradients[FOLD]
    assert (len(rest), len(fold)) == (80, 120)
    assert not any(name.startswith("fusion.") for step in rest for name in step)
    assert {n.split(".")[0] if n.startswith("fusion") else n.split(".")[1] for s in fold for n in s} == {
        "fusion", "doubt", "doubted",
    }  # fmt: skip
    module, averaged = taught.entered
    assert all(torch.equal(module[name], averaged[name]) for name in averaged if name != "fusion.taught")
    assert (float(averaged["fusion.taught"]), float(module["fusion.taught"])) == (0, 1)
    parameters = {name for name, _ in taught.model.module.named_parameters()}
    still = {n for n in parameters if n.startswith(("trunk.", "embeddings", "heads.seen", "heads.level", "heads.wide"))}
    assert still <= taught.frozen
    assert not any(name.startswith("fusion.") for name in taught.frozen & parameters)


def test_every_parameter_is_taught(taught: Taught) -> None:
    seen = set().union(*taught.gradients[REST], *taught.gradients[FOLD])
    assert {name for name, _ in taught.model.module.named_parameters()} - seen == set()


@pytest.mark.parametrize("part", WEIGHTS)
def test_weights_and_thresholds_get_gradients_in_more_than_half_of_their_steps(taught: Taught, part: str) -> None:
    """On the real objective: a gate that saturates stops teaching its threshold."""
    steps = taught.gradients[FOLD]
    assert sum(f"fusion.{part}" in step for step in steps) > 0.5 * len(steps)
    assert sum(f"fusion.{part}" in step for step in steps[-40:]) > 20, "at the end too"


@pytest.fixture(scope="module")
def predictor(taught: Taught) -> SlicePredictor:
    statistics = checkpoint.Statistics(affine_maps={}, variance={}, typical_scaling={})
    kept = checkpoint.ModelConfig(
        model="medk2n", modalities=NAMES, spacing_mm=1.5, params={"slices": 3}, statistics=statistics
    )
    return SlicePredictor(taught.model.averaged, kept)


def test_a_noise_input_is_left_out_and_costs_no_more_than_its_absence(predictor: SlicePredictor) -> None:
    target = NAMES.index("t1c")
    psnr: dict[str, list[float]] = {"whole": [], "without": [], "damaged": [], "kept": []}
    weights: dict[str, list[float]] = {"whole": [], "noise": []}
    closed = 0
    for seed in range(100, 103):
        images = subject(seed)
        inside = images["t1n"] > 0
        white = 0.5 + 0.2 * np.random.default_rng(seed).standard_normal(inside.shape)
        noise = (inside * white.clip(0, 1)).astype(np.float32)
        for bad, good in (("t1n", "t2w"), ("t2w", "t1n")):
            pair = {good: images[good], bad: noise}
            made = {
                "whole": predictor.infer({name: images[name] for name in (bad, good)}, ["t1c"]),
                "without": predictor.infer({good: images[good]}, ["t1c"]),
                "damaged": predictor.infer(pair, ["t1c"]),
            }
            predictor.module.fusion.taught.fill_(0)
            made["kept"] = predictor.infer(pair, ["t1c"])
            predictor.module.fusion.taught.fill_(1)
            for name, told in made.items():
                error = np.square(told.means["t1c"] - images["t1c"])[inside].mean()
                psnr[name].append(-10 * np.log10(error))
            steps = {step.source: step for step in made["damaged"].plan[target]}
            assert made["damaged"].plan[target][0].source == NAMES.index(good), "noise is no key frame"
            weights["noise"].append(steps[NAMES.index(bad)].weight)
            weights["whole"].append(steps[NAMES.index(good)].weight)
            closed += steps[NAMES.index(bad)].gate == 0
    mean = {name: float(np.mean(values)) for name, values in psnr.items()}
    assert closed >= 5, "of six"
    assert max(weights["noise"]) < 0 < min(weights["whole"])
    assert mean["damaged"] > mean["without"] - 0.3, mean


def test_usual_evidence_was_observed_of_whole_inputs(taught: Taught) -> None:
    fusion = taught.model.averaged.fusion
    pairs = fusion.evidence.pairs.count
    assert (pairs[~torch.eye(3, dtype=torch.bool)] > 0).all(), "every pair was met with whole inputs"
    assert (pairs.diagonal() == 0).all(), "a frame is never held against itself"
    assert (fusion.evidence.own.count > 50).all()
    mean, spread = fusion.evidence.own.moments()
    noisy = fusion.evidence.own.moments()[0][:, 5]
    assert (noisy > 0.7).all(), "lag-one correlation: noise has none, and was not counted"
    assert torch.isfinite(mean).all()
    assert (spread > 0).all()


def batch(acquired: list[list[bool]] | None = None, severity: float = 0.0, size: int = 2) -> Batch:
    """Crops (32, 32) of the subjects, all three contrasts."""
    images = torch.stack(
        [torch.from_numpy(np.stack([subject(k)[n][2:5, 8:40, 8:40] for n in NAMES])) for k in range(size)]
    )
    there = torch.tensor(acquired or [[True] * 3] * size)
    hurt = torch.full(there.shape, severity)
    missing = ~there[:, :, None, None]
    return Batch(
        images.masked_fill(missing[:, :, None], torch.nan), there, images[:, :, 1].masked_fill(missing, torch.nan),
        images[:, 0, 1] > 0, hurt, torch.full(there.shape, -1),
    )  # fmt: skip


@pytest.fixture(scope="module")
def fresh(data: Path) -> tuple[TrainConfig, TrainingData]:
    settings = config(data)
    return settings, read_data(settings, lambda *_: None)


def test_the_loss_of_some_passes_is_that_of_every_image_that_a_crop_has(
    fresh: tuple[TrainConfig, TrainingData],
) -> None:
    """Re-made inputs count for a tenth; every image of a crop is asked from every set; what is absent is not."""
    model = contender(*fresh)
    crops = batch([[True, True, True], [True, False, True]])
    sources = torch.tensor([[False, True, True], [True, False, False]])
    presence = sources[:, :, None, None].float().expand(-1, -1, 32, 32)
    sample = torch.tensor([0, 1])
    loss, parts = model.lesson.paint(crops, sample, presence, sources, World())
    with torch.no_grad():
        images = torch.nan_to_num(crops.images)
        mean, log_variance = model.module.propose(images, sample, presence, torch.arange(3))
    weights = model.config.losses
    wanted = {"log_mse": 0.0, "likelihood": 0.0}
    rows = [(0, 0, 1.0), (0, 1, 0.1), (0, 2, 0.1), (1, 0, 0.1), (1, 2, 1.0)]
    for p, j, share in rows:
        inside = crops.foreground[p]
        error = (mean[p, j] - crops.targets[p, j])[inside].square()
        spread = log_variance[p, j][inside]
        share = share / sum(s for *_, s in rows)
        wanted["log_mse"] += weights.log_mse * share * 0.5 * float((error.mean() + 1e-3).log())
        wanted["likelihood"] += weights.likelihood * share * 0.5 * float((spread + error / spread.exp()).mean())
    for name, value in wanted.items():
        assert parts[name].item() == pytest.approx(value, rel=1e-4)
    assert loss.item() == pytest.approx(sum(parts.values()).item())


def test_nothing_is_asked_of_an_input_that_holds_it(fresh: tuple[TrainConfig, TrainingData]) -> None:
    """t1n is blended with t1c: neither what paints nor what weighs has t1c for an answer to it, nor has a U-Net."""
    model, crops = contender(*fresh), batch(size=1)
    crops.mixed[0, NAMES.index("t1n")] = NAMES.index("t1c")
    crops.targets[0, NAMES.index("t1c")] = torch.nan  # would be seen in the loss
    crops.acquired[0] = torch.tensor([True, True, False])
    pupil = replace(model.lesson.pupil, spec=resolve("models", "unet"), config=fresh[0])
    for seed in range(8):
        query = ask(pupil, crops, np.random.default_rng(seed))
        holding = query.sources[:, NAMES.index("t1n")]
        assert not (query.target[holding] == NAMES.index("t1c")).any()
    sources = torch.tensor([[False, True, False]])
    presence = sources[:, :, None, None].float().repeat(1, 1, 32, 32)
    assert torch.isfinite(model.lesson.paint(crops, torch.tensor([0]), presence, sources, World())[0])
    crops.mixed[:] = -1
    assert torch.isnan(model.lesson.paint(crops, torch.tensor([0]), presence, sources, World())[0])
    every = batch(size=1)
    every.mixed[0] = torch.tensor([1, 2, 0])  # whatever is left out of two inputs is in one of them
    assert weighing(fresh, every)[1]["weights"] == 0
    every.mixed[0] = -1
    assert weighing(fresh, every)[1]["weights"] > 0


def test_a_hidden_frame_reaches_the_loss_as_a_map(fresh: tuple[TrainConfig, TrainingData]) -> None:
    model = contender(*fresh)
    crops, sources = batch(size=1), torch.tensor([[False, True, True]])
    presence = sources[:, :, None, None].float().repeat(1, 1, 32, 32)
    whole = model.lesson.paint(crops, torch.tensor([0]), presence, sources, World())[0]
    presence[0, 1, :, :16] = 0.0
    crops.images[0, 1, :, :, :16] = 7.0  # what is hidden is not read
    part = model.lesson.paint(crops, torch.tensor([0]), presence, sources, World())[0]
    crops.images[0, 1, :, :, :16] = 0.1
    assert model.lesson.paint(crops, torch.tensor([0]), presence, sources, World())[0] == part != whole


def test_every_part_of_a_step_tells_the_same_names_whoever_asks_v(fresh: tuple[TrainConfig, TrainingData]) -> None:
    """Processes add up what they are told, name by name."""
    lesson = contender(*fresh).lesson
    lesson._v = torch.nn.Identity()  # it is there, and not asked this time
    sources = torch.tensor([[False, True, True]])
    presence = sources[:, :, None, None].float().expand(-1, -1, 32, 32)
    parts = lesson.paint(batch(size=1), torch.tensor([0]), presence, sources, World(), asked=False)[1]
    assert (float(parts["causal"]), float(parts["metric"])) == (0, 0)


def test_a_curriculum_begins_with_single_frames(fresh: tuple[TrainConfig, TrainingData], monkeypatch) -> None:
    settings, data = fresh
    teaching = settings.teaching.model_copy(update={"curriculum": 0.3})
    seen: list[int] = []
    for turned in (settings, settings.model_copy(update={"teaching": teaching})):
        lesson = contender(turned, data).lesson
        monkeypatch.setattr(lesson, "paint", lambda *given, **how: seen.append(int(given[3].sum(dim=1).max())) or 1 / 0)
        for progress in (0.0, 0.35):
            largest = []
            for seed in range(12):
                seen.clear()
                with pytest.raises(ZeroDivisionError):
                    lesson.loss(batch(size=4), seed, progress, World())
                largest += seen
            assert (max(largest) == 1) == (turned is not settings and progress == 0), (turned.teaching, progress)


def weighing(
    fresh: tuple[TrainConfig, TrainingData], crops: Batch, seed: int = 0
) -> tuple[Contender, dict[str, float]]:
    model = contender(*fresh)
    model.lesson.enter(model.averaged)
    loss, told = model.lesson.loss(crops, seed, 1.0, World())
    loss.backward()
    return model, told


def test_a_step_that_weighs_tells_every_part_whatever_its_crops_hold(fresh: tuple[TrainConfig, TrainingData]) -> None:
    """Processes add up their parts by name: one with poorer crops must not lack any."""
    names = {"weights", "presence", "sets", "likelihood", "loss"}
    full, pairs, lone = ([[True] * 3] * 2, [[True, True, False]] * 2, [[True, False, False]] * 2)
    for acquired, measured in ((full, True), (pairs, False), (lone, False)):
        model, told = weighing(fresh, batch(acquired))
        assert told.keys() == names
        assert (told["presence"] != 0) == measured
        assert (told["weights"] != 0) == (acquired is not lone)
        assert np.isfinite(list(told.values())).all()
        assert model.lesson._observed is not None
        model.lesson.learned(World())
        assert model.lesson._observed is None


@pytest.mark.parametrize("severity", [0.0, 0.5])
def test_usual_evidence_is_of_whole_inputs(fresh: tuple[TrainConfig, TrainingData], severity: float) -> None:
    """What a damaged scan gave teaches W, and stays out of the buffers."""
    model, told = weighing(fresh, batch(severity=severity))
    model.lesson.learned(World())
    evidence = model.module.fusion.evidence
    assert told["weights"] > 0
    for seen in (evidence.own.count, evidence.pairs.count):
        assert bool((seen > 0).any()) == (severity == 0)


def test_gains_in_training_are_those_of_the_proposals(fresh: tuple[TrainConfig, TrainingData]) -> None:
    """The measured gain of a frame is that of two plain passes: without it, and with it."""
    model, crops = contender(*fresh), batch()
    told: list[torch.Tensor] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            "medk2n.training.lessons.medk2n.weight_error", lambda w, gain: told.append(gain) or weight_error(w, gain)
        )
        model.lesson.enter(model.averaged)
        model.lesson.loss(crops, 3, 1.0, World())
    first, step = told
    module, inside = model.module, crops.foreground
    everything, found = torch.arange(3), []
    for k in range(2):
        for a, b, j in ((0, 1, 2), (1, 0, 2), (0, 2, 1), (2, 0, 1), (1, 2, 0), (2, 1, 0)):
            errors = []
            for members in ([a], [a, b]):
                presence = torch.zeros(1, 3, 32, 32)
                presence[:, members] = 1.0
                image = module.propose(crops.images, torch.tensor([k]), presence, everything)[0][0, j].clamp(0, 1)
                errors.append(float((image - crops.targets[k, j])[inside[k]].square().mean()) + 1e-5)
            found.append(10 * np.log10(errors[0] / errors[1]))
    assert len(step) == 2, "two crops, each with one set of two inputs, and one target"
    for gain in step.tolist():
        assert min(abs(gain - each) for each in found) < 1e-3
    assert len(first) == 4


def test_gains_are_signed() -> None:
    """Against an oracle in numpy: 3 dB for half the error, and below 0 where the frame does harm."""
    rng = np.random.default_rng(0)
    target = rng.random((3, 8, 8)).astype(np.float32)
    inside = rng.random(target.shape) < 0.7
    without = target + 0.2
    having = target + 0.2 * np.array([0.5**0.5, 1.0, 2.0], np.float32)[:, None, None]
    having[~inside] = 9.0
    told = gain_db(*(torch.from_numpy(x) for x in (without, having, target, inside)))
    np.testing.assert_allclose(told, [3.01, 0.0, -6.02], atol=0.01)
    errors = [
        [np.mean((x[k] - target[k])[inside[k]] ** 2) + 1e-5 for k in range(3)] for x in (without, having)
    ]  # fmt: skip
    np.testing.assert_allclose(told, 10 * np.log10(np.divide(*errors)), rtol=1e-4)
    weight = torch.zeros(3, requires_grad=True)
    weight_error(weight, told).backward()
    assert weight.grad[0] < 0 < weight.grad[2], "W goes up where there is a gain, and below 0 where there is harm"


def test_a_gate_is_taught_by_the_error_of_the_answer_between() -> None:
    """Against the closed form: P = 1/2 + (b - a) / 2d is best where a and b are both errors and d is between them."""
    rng = np.random.default_rng(0)
    target = torch.from_numpy(rng.random((2, 16, 16)).astype(np.float32))
    having = target + 0.1 * torch.from_numpy(rng.standard_normal(target.shape).astype(np.float32))
    without = target + 0.15 * torch.from_numpy(rng.standard_normal(target.shape).astype(np.float32))
    inside = torch.from_numpy(rng.random(target.shape) < 0.7)
    a, b, d = (
        torch.stack([(x - y)[k][inside[k]].square().mean() for k in range(2)])
        for x, y in ((having, target), (without, target), (having, without))
    )
    best = (0.5 + (b - a) / (2 * d)).requires_grad_()
    error = presence_error(best, without, having, target, inside)
    error.backward()
    assert best.grad.abs().max() < 1e-3, "nothing is better"
    assert error.item() < -0.5, "two guesses err in different places"
    assert presence_error(torch.ones(2), without, having, target, inside).item() == pytest.approx(0, abs=1e-4)
    worse = torch.full((2,), 0.5, requires_grad=True)
    presence_error(worse, target + 0.3, having, target, inside).backward()
    assert (worse.grad < 0).all(), "P goes up where the frame helps"


def test_predicted_errors_of_two_sets_have_to_differ_as_the_true_ones_do() -> None:
    inside = torch.ones(2, 8, 8, dtype=torch.bool)
    without = torch.full((2, 8, 8), np.log(0.04), requires_grad=True)
    having = torch.full((2, 8, 8), np.log(0.02), requires_grad=True)
    gain = torch.full((2,), 10 * np.log10(2))
    assert float(set_error(without, having, gain, inside).detach()) == pytest.approx(0, abs=1e-9)
    set_error(without, having, gain + 2, inside).backward()
    assert having.grad.max() > 0 > without.grad.max(), "with the frame the error is predicted too large"


def test_who_is_weighed_was_never_painted(data: Path, fresh: tuple[TrainConfig, TrainingData]) -> None:
    settings, prepared = fresh
    rest, fold = ({id(s) for s in prepared.parts[part][0][0].studies} for part in (REST, FOLD))
    everyone = {id(s.slices) for s in prepared.stores[0].studies}
    assert (len(rest), len(fold)) == (10, 2)
    assert not rest & fold
    kept = {part: {id(s.slices) for s in prepared.parts[part][0][0].studies} for part in (REST, FOLD)}
    assert not kept[REST] & kept[FOLD]
    assert kept[REST] | kept[FOLD] == everyone
    asked = []

    def spy(stores, shares, rng, **how):
        asked.append(({id(s.slices) for s in stores[0].studies}, how["augmentation"].corrupt))
        return draw_batch(stores, shares, rng, **how)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(reading, "draw_batch", spy)
        for kind in (REST, FOLD):
            next(Feed(prepared, settings, 3, range(1), 0, kind))
    assert asked == [(kept[REST], 0.0), (kept[FOLD], settings.teaching.corrupt)], "and damage comes more often"
    few = config(data, "subjects=[p00, p01]")
    alone = read_data(few, lambda *_: None)
    assert alone.parts[FOLD] == alone.parts[REST] == (alone.stores, alone.shares), "too few to part"


def test_hidden_regions_are_few_and_leave_the_rest_as_it_is() -> None:
    rng = np.random.default_rng(0)
    subsets = np.array([[True, True, False], [True, False, False]] * 300)
    maps = hidden(subsets, (24, 32), rng, 0.2)
    assert maps.shape == (600, 3, 24, 32)
    assert ((maps >= 0) & (maps <= 1)).all()
    assert (maps[torch.from_numpy(~subsets)] == 0).all(), "absent"
    assert (maps[1::2, 0] == 1).all(), "nothing is hidden of a frame that is alone"
    touched = (maps[0::2, :2] < 1).flatten(2).any(dim=2)
    assert touched.float().mean() == pytest.approx(0.2, abs=0.04)
    some = maps[0::2, :2][touched]
    assert 0.15 < float((some < 0.5).float().mean()) < 0.45, "about a third of the image"
    assert 0.3 < float((some.amin(dim=(1, 2)) < 0.1).float().mean()) <= 0.95, "nothing is left, or something"
    assert some.amax(dim=(1, 2)).median() > 0.95
    again = hidden(subsets, (24, 32), np.random.default_rng(0), 0.2)
    assert torch.equal(maps, again)
    assert (hidden(subsets, (8, 8), rng, 0.0)[torch.from_numpy(subsets)] == 1).all()


def test_half_of_the_damaged_frames_are_left_out_of_what_is_painted_from() -> None:
    rng = np.random.default_rng(0)
    subsets = np.array([[True, True, False], [True, False, False]] * 400)
    severity = np.tile([0.7, 0.0, 0.9], (800, 1))
    kept = without_damaged(subsets, severity, rng)
    assert kept.any(axis=1).all()
    assert not (kept & ~subsets).any()
    assert kept[:, 1].sum() == 400, "whole frames stay"
    assert kept[0::2, 0].mean() == pytest.approx(0.5, abs=0.08)
    assert kept[1::2, 0].all(), "a damaged frame that is alone is all there is"


def test_a_run_that_goes_on_among_the_weighing_steps_leaves_the_synthesizer_alone(
    fresh: tuple[TrainConfig, TrainingData],
) -> None:
    settings, prepared = fresh
    first, second = contender(settings, prepared), contender(settings, prepared)
    first.steps = 80
    assert first.turn()
    first.step(next(Feed(prepared, settings, 3, range(1), 80, first.kind)), World())
    tensors, counters = first.state()
    second.restore({name: tensor.clone() for name, tensor in tensors.items()}, counters)
    assert second.kind == FOLD
    assert bool((first.module.fusion.evidence.own.count > 0).any()), "what was seen is usual"
    learning = {name for name, p in second.module.named_parameters() if p.requires_grad}
    assert learning == {name for name, p in first.module.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in learning} == {"fusion", "heads"}
    for model in (first, second):
        model.step(next(Feed(prepared, settings, 3, range(1), 81, model.kind)), World())
    for name, x in first.module.state_dict().items():
        assert torch.equal(x, second.module.state_dict()[name]), name


def test_each_kind_of_step_has_its_own_schedule(fresh: tuple[TrainConfig, TrainingData]) -> None:
    model = contender(*fresh)
    rates = []
    for step in range(200):
        model.steps = step
        rates.append(model._schedule())
    assert rates[79] < 0.05
    assert rates[80] < 0.4, "it warms up again"
    assert max(rates[:80]) > 0.99
    assert max(rates[80:]) > 0.99
    assert rates[199] < 0.05
