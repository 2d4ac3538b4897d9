"""A run on a tiny array data set: it learns, repeats exactly, and leaves a usable model behind."""

from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medk2n import checkpoint
from medk2n.config.draft import read_draft
from medk2n.config.schema import LossWeights, TrainConfig, load_config
from medk2n.data.batches import Augmentation, Batch, Store, _disturb, draw_batch
from medk2n.data.discover import discover
from medk2n.data.intensity import Scaling
from medk2n.data.statistics import StatisticsBuilder
from medk2n.data.working import WorkingStudy, load_working, scaled
from medk2n.errors import ConfigError, DatasetError
from medk2n.geometry.grid import Grid
from medk2n.inference.predictor import load_predictor
from medk2n.io.volume import Volume
from medk2n.losses import reconstruction
from medk2n.losses.likelihood import gaussian_nll
from medk2n.models._spec import Prediction, Query
from medk2n.training import log as log_module
from medk2n.training import reading
from medk2n.training.contender import Contender
from medk2n.training.feed import Feed, Part
from medk2n.training.log import METRICS, VALIDATION, Log, read_log
from medk2n.training.objectives import objective
from medk2n.training.queries import draw_sources, draw_targets, narrowed
from medk2n.training.reading import TrainingData, read_data
from medk2n.training.run import train, validate
from medk2n.training.world import World

SMALL = [
    "modalities=[t1n, t1c, t2w]",
    "spacing_mm=1.5",
    "models=[{name: medk2n, params: {widths: [8, 8, 16, 16, 16], embedding: 16}},"
    " {name: unet, params: {widths: [8, 8, 16, 16, 16]}}]",
    "budget={steps: 12}",
    "batch={size: 2, crop: 32, draws: 2, targets: 2, most_sources: 2}",
    "threads=1",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four subjects of ellipsoids; the second lacks t1c, the third t2w."""
    root = tmp_path_factory.mktemp("arrays")
    rng = np.random.default_rng(0)
    z, y, x = np.mgrid[-1:1:6j, -1:1:40j, -1:1:36j]
    for k in range(4):
        head = (x**2 + y**2 + 0.3 * z**2 < 0.7).astype(float)
        core = (x - 0.2 * k / 4) ** 2 + y**2 < 0.1
        t1n = head * (120 + 60 * core) + head * rng.normal(0, 4, head.shape)
        arrays = {"t1n": t1n, "t1c": 0.7 * t1n + 30 * head, "t2w": head * 240 - t1n}
        if k in (1, 2):
            del arrays["t1c" if k == 1 else "t2w"]
        np.savez_compressed(root / f"p{k}.npz", **{n: a.clip(0, 255).astype(np.uint8) for n, a in arrays.items()})
    return root


def config(data: Path, *overrides: str) -> TrainConfig:
    return load_config("tiny", [f"data=['{data}']", *SMALL, *overrides])


def volume(array: np.ndarray) -> Volume:
    return Volume(array, Grid(array.shape, np.eye(4)), "t1n")


def watched(data: Path, folder: Path) -> Path:
    """A subject that looks like another one, flipped."""
    (folder / "watched").mkdir(exist_ok=True)
    with np.load(data / "p0.npz") as arrays:
        np.savez_compressed(folder / "watched" / "p9.npz", **{name: arrays[name][:, ::-1] for name in arrays})
    return folder / "watched"


def test_the_same_image_is_never_both_learned_from_and_watched(data: Path, tmp_path: Path) -> None:
    val = watched(data, tmp_path)
    (val / "renamed.npz").write_bytes((data / "p1.npz").read_bytes())
    with pytest.raises(DatasetError, match=r"renamed:t1n of .*watched is also learned from, as p1:t1n of "):
        train(config(data, f"validation='{val}'"), tmp_path / "run")
    train(config(data, f"validation='{val}'", "exclude=[renamed]", "budget={steps: 1}"), tmp_path / "run")


def test_a_run_repeats_exactly_and_its_models_load(data: Path, tmp_path: Path) -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    for name in ("a", "b"):
        train(config(data, f"validation='{watched(data, tmp_path)}'"), tmp_path / name)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    for part in (Path(), checkpoint.REFERENCE_UNET):
        first, second = (checkpoint.read_config(tmp_path / name / part) for name in ("a", "b"))
        assert first.sha256 == second.sha256
        assert first.training["finished"] is True
        assert first.training["steps"] == 12
        assert first.training["flops_per_step"] > 0
    study = load_working(discover(data)[0], None)
    made = load_predictor(tmp_path / "a").predict({"t1n": study.images["t1n"]}, ["t1c", "t2w"])
    assert made["t2w"].image.shape == study.images["t1n"].shape
    scores = [p for p in read_log(tmp_path / "a" / METRICS) if p.name == VALIDATION]
    assert {p.model for p in scores} == {"medk2n", "unet"}
    drawn = sorted(path.name for path in (tmp_path / "a" / "samples").iterdir())
    assert drawn[-1] == "8-of-8.png"
    assert 2 * len(drawn) == len(scores)
    sheets = [(tmp_path / name / "samples" / "8-of-8.png").read_bytes() for name in ("a", "b")]
    assert sheets[0] == sheets[1]


def test_the_log_averages_each_part_over_the_steps_that_had_it(tmp_path: Path) -> None:
    log = Log(tmp_path / "metrics.csv")
    log.start()
    for step in range(1, log_module._EVERY + 1):
        contender = SimpleNamespace(name="m", steps=step, seconds=0.0, progress=0.0)
        means = log.count(contender, {"always": 2.0} | ({"rarely": float(step)} if step in (1, 4) else {}))
        log.write(contender, means)
    rows = [line.split(",")[-2:] for line in log.path.read_text().split()[1:]]
    assert rows == [["always", "2.0"], ["rarely", "2.5"]]


def test_another_seed_is_another_run(data: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        train(config(data, f"seed={seed}", "budget={steps: 2}"), tmp_path / str(seed))
    assert checkpoint.read_config(tmp_path / "0").sha256 != checkpoint.read_config(tmp_path / "1").sha256


def test_what_no_subject_has_cannot_be_learned(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no training subject has pd.*--set modalities"):
        train(config(data, "modalities=[t1n, pd]"), tmp_path / "run")


def test_excluded_subjects_are_not_read(data: Path, tmp_path: Path) -> None:
    train(config(data, "exclude=[p0, p3]", "budget={steps: 1}"), tmp_path / "run")
    ids = checkpoint.read_config(tmp_path / "run").training["subject_ids"]
    assert list(ids.values()) == [["p1", "p2"]]


def test_one_image_can_be_excluded(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no training subject has t1c"):
        train(config(data, "exclude=['p0:t1c', 'p2:t1c', 'p3:t1c']"), tmp_path / "run")


def test_strip_and_restyle_reach_the_batches(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(reading, "draw_batch", lambda *a, **k: seen.append(k["augmentation"]) or draw_batch(*a, **k))
    train(config(data, "batch.strip=0.25", "batch.restyle=0.75", "budget={steps: 1}"), tmp_path / "run")
    assert {(a.strip, a.restyle) for a in seen} == {(0.25, 0.75)}


def test_subjects_to_keep_hold_for_every_folder(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "q0.npz").write_bytes((data / "p0.npz").read_bytes())
    settings = [f"data=['{data}', '{other}']", "subjects=[p0, p3]", "budget={steps: 1}"]
    train(config(data, *settings), tmp_path / "run")
    assert checkpoint.read_config(tmp_path / "run").training["subject_ids"] == {data.name: ["p0", "p3"]}


@pytest.mark.parametrize("setting", ["exclude=[p00]", "exclude=['p1:t1c']", "subjects=[p00]", "subjects=['p0:t1c']"])
def test_an_id_that_is_nowhere_is_refused(setting: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is in none of the data folders"):
        train(config(data, setting), tmp_path / "run")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.ema=1", "unknown setting, did you mean 'optimiser'"),
        ("batch.crop=50", "batch.crop: .*multiple of 16"),
        ("budget={minutes: 1, steps: 2}", "minutes or steps, one of them"),
        ("modalities=[t1n, t3w]", "unknown modality 't3w'"),
        ("modalities=[t1n]", "at least two modalities"),
        ("core=[t1n, pet]", r"core: pet not among modalities \(adc, ct"),
        ("models=[{name: unnet}]", "unknown model 'unnet'"),
        ("models=[{name: poe}, {name: poe}]", "each model learns once"),
        ("seed", "expected key=value"),
        ("optimiser.learning_rate=-1", "greater than 0"),
        ("fuse_every=8", r"fuse_every: is of an older version; now there is teaching\.weighing"),
        ("soft_gates=0.3", "soft_gates: is of an older version; now there is nothing: gates are taught"),
        ("batch.corrupt_whole=0.1", r"batch\.corrupt_whole: is of an older version; now there is teaching\.corrupt"),
        ("losses.quality=1", r"losses\.quality: is of an older version; now there is losses\.likelihood and"),
        ("teaching.weighin=0.1", "teaching.weighin: unknown setting, did you mean 'weighing'"),
        ("teaching.hide=2", "teaching.hide: .*less than or equal to 1"),
    ],
)
def test_bad_settings_are_refused(override: str, message: str) -> None:
    stated = ["modalities=[adc, ct, t1c, t1n]", "spacing_mm=1.5"]
    with pytest.raises(ConfigError, match=message):
        load_config("tiny", [*stated, override])


def test_numbers_and_words_of_yaml_mean_what_they_say() -> None:
    assert read_draft("tiny", ["optimiser.learning_rate=1e-4"]).config.optimiser.learning_rate == 1e-4
    assert read_draft("tiny", ["exclude=[no, on]"]).config.exclude == ["no", "on"]
    with pytest.raises(ConfigError, match="presets: paper, plus, tiny"):
        load_config("tinny")


def test_batches_hold_nan_where_nothing_was_acquired(data: Path) -> None:
    names = ("t1c", "t1n", "t2w")
    store = Store([load_working(s, None) for s in discover(data)], names)
    batch = draw_batch(
        [store], [1.0], np.random.default_rng(0), batch_size=16, crop=32, slices=3, augmentation=Augmentation()
    )
    absent = ~batch.acquired
    assert absent.any()
    assert torch.isnan(batch.images[absent]).all()
    assert torch.isfinite(batch.images[batch.acquired]).all()
    again = draw_batch(
        [store], [1.0], np.random.default_rng(0), batch_size=16, crop=32, slices=3, augmentation=Augmentation()
    )
    assert torch.equal(batch.images.nan_to_num(-1), again.images.nan_to_num(-1))


def test_without_augmentation_a_crop_is_the_image(data: Path) -> None:
    study = load_working(discover(data)[0], None)
    plain = Augmentation(rotation=0, zoom=0, gamma=0, noise=0, strip=0)
    rng = np.random.default_rng(3)
    store = Store([study], ("t1n", "t2w"))
    batch = draw_batch([store], [1.0], rng, batch_size=1, crop=32, slices=3, augmentation=plain)
    crop = batch.targets[0, 0].numpy()
    volume = study.images["t1n"]
    flips = [volume, volume[:, ::-1]]
    best = min(
        np.abs(crop - v[z, i : i + 32, j : j + 32]).mean()
        for v in flips
        for z in range(volume.shape[0])
        for i in range(volume.shape[1] - 31)
        for j in range(volume.shape[2] - 31)
    )
    assert best < 0.05, "up to the sub-voxel shift of a random centre"


def test_restyled_crops_lie_between_two_subjects_styles() -> None:
    """Grey scales move towards the lender's histogram, inputs and targets alike; order, air and CT numbers stay."""
    rng = np.random.default_rng(0)
    inside = np.ones((4, 48, 48), bool)
    inside[:, :4] = False

    def study(name: str, power: float) -> WorkingStudy:
        head = np.where(inside, rng.uniform(0.02, 1, inside.shape) ** power, 0).astype(np.float32)
        scalings = {"t1n": Scaling(0, 1), "ct": Scaling(-1000, 2000, kind="fixed")}
        return WorkingStudy(name, {"t1n": head, "ct": head}, inside, scalings)

    store = Store([study("dark", 3.0), study("light", 1.0)], ("ct", "t1n"))
    medians = []
    for seed in range(80):
        crop = store.crop(np.random.default_rng(seed), 3, Augmentation(strip=0, restyle=1), lenders=store)
        own, moved = crop.targets.astype(int)  # both contrasts were the same image
        medians.append(np.median(moved[4:]))
        assert (crop.images[:, 1] == crop.targets).all()
        assert (moved[:4] == 0).all()
        assert moved[4:].min() >= 1
        assert (np.diff(moved.ravel()[np.argsort(own, axis=None, kind="stable")]) >= 0).all()
    assert np.percentile(medians, [0, 100]) == pytest.approx([255 * 0.51**3, 255 * 0.51], rel=0.12)
    assert np.mean([50 < m < 115 for m in medians]) > 0.3, "and anywhere between"
    stripped = Store([replace(study("a", 2.0), stripped=True)], ("ct", "t1n"))
    crop = store.crop(np.random.default_rng(0), 3, Augmentation(strip=0, restyle=1), lenders=stripped)
    assert (crop.targets[0] == crop.targets[1]).all(), "a brain's grey scale is not lent to a head"


NAMES = ("t1n", "t2w")


def test_a_stripped_crop_has_the_grey_scale_of_a_stripped_scan() -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:48j, -1:1:48j]
    head, brain = (np.broadcast_to(x**2 + y**2 < r**2, (4, 48, 48)) for r in (0.9, 0.7))
    raw = np.where(brain, rng.uniform(100, 300, brain.shape), np.where(head, 900, 0)).astype(np.float32)
    whole, inside, scaling = scaled(volume(raw), "t1n")
    store = Store(
        [WorkingStudy("a", {"t1n": whole, "t2w": whole}, inside, dict.fromkeys(NAMES, scaling), brain=brain)], NAMES
    )
    crop = store.crop(np.random.default_rng(0), 3, Augmentation(strip=1), lenders=store)
    alone, _, _ = scaled(volume(np.where(brain, raw, 0)), "t1n")
    assert whole[brain].max() < 0.4, "beside bright scalp the brain is dark"
    slices = np.abs(alone - crop.targets[0] / 255).max(axis=(1, 2))
    assert slices.min() < 0.015, "within the rounding of bytes, stretched"
    assert (crop.images[0, 1] == crop.targets[0]).all()
    assert (crop.targets[0][~brain[0]] == 0).all()
    flat = np.where(brain, 200, np.where(head, 900, 0)).astype(np.float32) + raw / 100
    other, inside, scaling = scaled(volume(flat), "t1n")
    lenders = Store(
        [WorkingStudy("b", {"t1n": other, "t2w": other}, inside, dict.fromkeys(NAMES, scaling), brain=brain)], NAMES
    )
    lent = [
        store.crop(np.random.default_rng(k), 3, Augmentation(strip=1, restyle=1), lenders=lenders) for k in range(9)
    ]
    assert any((c.targets != crop.targets).any() for c in lent), "a brain's grey scale is lent to a brain"
    assert all((c.targets[0][~brain[0]] == 0).all() for c in lent)


def test_statistics_are_least_squares() -> None:
    """Over two studies of one size; no map is its own inverse, or one the wrong way round would pass."""
    builder, rng, x, y, z = StatisticsBuilder(("t1c", "t1n", "t2w")), np.random.default_rng(0), [], [], []
    for k in range(2):
        x.append(rng.uniform(0.1, 0.9, (3, 20, 20)) ** (1 + k))
        y.append(0.8 - 0.5 * x[-1] + 0.05 * rng.standard_normal(x[-1].shape))
        z.append(0.1 + 0.3 * x[-1] + 0.02 * rng.standard_normal(x[-1].shape))
        images = {"t1n": x[-1], "t2w": y[-1], "t1c": z[-1]}
        builder.add(WorkingStudy(str(k), images, np.ones(x[-1].shape, bool), dict.fromkeys(images, Scaling(0.0, 1.0))))
    found = builder.finish()
    values = [np.concatenate(image, axis=None) for image in (z, x, y)]
    for i, j in ((1, 2), (2, 1), (1, 0), (0, 2)):
        slope, intercept = np.polyfit(values[i], values[j], 1)
        error = np.mean((values[j] - slope * values[i] - intercept) ** 2)
        assert found.slope[i, j] == pytest.approx(slope, rel=1e-4)
        assert found.intercept[i, j] == pytest.approx(intercept, abs=1e-4)
        assert found.residual[i, j] == pytest.approx(error, rel=1e-3)
        of = found.correlation[i, j] * found.deviation[j, i] / found.deviation[i, j]
        assert of == pytest.approx(slope, rel=0.03)
        assert found.mean[j, i] == pytest.approx(values[j].mean(), abs=1e-5)


def test_correlations_of_pairs_seen_apart_fit_together(data: Path) -> None:
    """Each pair in other subjects: t1n-t1c and t1n-t2w alike, t1c-t2w opposite, which no three variables can be."""
    rng = np.random.default_rng(0)
    builder = StatisticsBuilder(("t1c", "t1n", "t2w"))
    study = load_working(discover(data)[0], None)
    x = rng.random(study.foreground.shape)
    for pair in ({"t1n": x, "t1c": x}, {"t1n": x, "t2w": x}, {"t1c": x, "t2w": 1 - x}):
        builder.add(replace(study, images={n: v * study.foreground for n, v in pair.items()}))
    correlation = builder.finish().correlation
    assert np.linalg.eigvalsh(correlation).min() > 0
    np.testing.assert_allclose(np.diag(correlation), 1)
    assert correlation[0, 2] < 0 < correlation[0, 1]


def test_draws_never_ask_for_what_is_absent() -> None:
    rng = np.random.default_rng(0)
    acquired = np.array([[True, True, False, True], [False, True, True, False]])
    for _ in range(50):
        samples, subsets = draw_sources(acquired, rng, draws=3, most=3)
        assert subsets.any(axis=1).all()
        assert not (subsets & ~acquired[samples]).any()
        rows, sources, targets = draw_targets(acquired[samples], samples, subsets, rng, targets=2)
        assert acquired[rows, targets].all()
        assert (sources & acquired[rows]).any(axis=1).all()


def test_losses_at_their_known_values() -> None:
    inside = torch.ones(1, 8, 8, dtype=torch.bool)
    inside[:, :, 4:] = False
    target = torch.rand(1, 8, 8)
    target[:, :, 4:] = torch.nan
    shifted = target.nan_to_num(7.0) + 0.1
    assert reconstruction.mean_squared_error(shifted, target, inside).item() == pytest.approx(0.01, rel=1e-4)
    assert reconstruction.edge_error(shifted, target, inside).item() == pytest.approx(0.0, abs=1e-6)
    for steps in ((0.3, 0.0), (0.0, 0.2), (0.3, 0.2)):  # a ramp along each axis: its step, and none from the outside
        ramp = target + sum(step * torch.arange(8.0).view(-1, 1).movedim(0, axis) for axis, step in enumerate(steps))
        assert reconstruction.edge_error(ramp, target, inside).item() == pytest.approx(sum(steps), rel=1e-4)
    log_variance = torch.full((1, 8, 8), float(np.log(0.01)), requires_grad=True)
    mean = shifted.clone().requires_grad_()
    loss = gaussian_nll(mean, log_variance, target, inside)
    loss.sum().backward()
    assert mean.grad is None
    assert log_variance.grad.abs().max() < 1e-6, "the log-variance is at its optimum"
    assert loss.item() == pytest.approx(0.5 * np.log(0.01) + 0.5, rel=1e-4)


def test_core_modalities_are_asked_alone_in_their_share_of_the_crops() -> None:
    core = np.array([True, True, True, False, False])
    full, poor = np.ones((4000, 5), dtype=bool), np.tile([True, False, False, True, True], (50, 1))
    hidden = narrowed(full, core, np.random.default_rng(0), share=0.6)
    assert (hidden == core).all(axis=1).mean() == pytest.approx(0.6, abs=0.03)
    assert set(hidden.sum(axis=1)) == {3, 5}
    assert (narrowed(poor, core, np.random.default_rng(0), share=1.0) == poor).all(), "one core contrast asks nothing"
    assert (narrowed(full, np.zeros(5, dtype=bool), np.random.default_rng(0), share=1.0) == full).all()


def test_studies_are_drawn_by_the_pairs_that_they_have(data: Path) -> None:
    """Two are complete (6 pairs), two lack one (2 pairs); one with a single modality is never drawn."""
    subjects = discover(data)
    readers = {"t1n": subjects[0].readers["t1n"]}
    lone = replace(subjects[0], id="p9", readers=readers, inputs_only={})
    store = Store([load_working(s, None) for s in (*subjects, lone)], ("t1c", "t1n", "t2w"))
    rng = np.random.default_rng(0)
    there = [int(store.crop(rng, 3, Augmentation(), lenders=store).acquired.sum()) for _ in range(1600)]
    assert there.count(3) / 1600 == pytest.approx(12 / 16, abs=0.04)
    assert there.count(2) / 1600 == pytest.approx(4 / 16, abs=0.04)


def test_targets_are_never_damaged(data: Path) -> None:
    store = Store([load_working(s, None) for s in discover(data)], ("t1c", "t1n", "t2w"))
    drawn = [
        draw_batch(
            [store], [1.0], np.random.default_rng(3), batch_size=8, crop=32, slices=3,
            augmentation=Augmentation(corrupt=share, rotation=0, zoom=0),
        )
        for share in (0.0, 1.0)
    ]  # fmt: skip
    whole, bad = drawn
    assert not whole.severity.any()
    assert bool((bad.severity[bad.acquired] > 0).float().mean() > 0.8)
    assert bool((bad.severity[~bad.acquired] == 0).all())
    torch.testing.assert_close(whole.targets, bad.targets, equal_nan=True, rtol=0, atol=0)


# What is drawn


def plain_study(names: tuple[str, ...], seed: int = 0) -> WorkingStudy:
    """Noise (5, 40, 40) wherever the patient is: no slice looks like another."""
    rng, shape = np.random.default_rng(seed), (5, 40, 40)
    images = {name: rng.uniform(0.2, 1, shape).astype(np.float32) for name in names}
    return WorkingStudy(f"p{seed}", images, np.ones(shape, bool), dict.fromkeys(names, Scaling(0, 1)))


@pytest.mark.parametrize("slices", [1, 3, 5])
def test_a_target_is_the_middle_slice_of_its_frame(slices: int) -> None:
    store = Store([plain_study(("t1n", "t2w"))], ("t1n", "t2w"))
    still = Augmentation(gamma=0, noise=0, strip=0)
    rng = np.random.default_rng(0)
    batch = draw_batch([store], [1.0], rng, batch_size=8, crop=32, slices=slices, augmentation=still)
    inside = batch.foreground[:, None].expand_as(batch.targets)
    assert inside.float().mean() > 0.5
    assert torch.equal(batch.images[:, :, slices // 2][inside], batch.targets[inside])


def test_folders_are_drawn_by_their_shares() -> None:
    names = ("t1c", "t1n", "t2w")
    stores = [Store([plain_study(pair)], names) for pair in (("t1n", "t2w"), ("t1c", "t1n"))]
    rng = np.random.default_rng(0)
    drawn = draw_batch(stores, [9, 1], rng, batch_size=400, crop=16, slices=1, augmentation=Augmentation())
    assert drawn.acquired[:, 2].float().mean() == pytest.approx(0.9, abs=0.05)


@pytest.mark.parametrize("only", ["gamma", "noise"])
def test_gamma_and_noise_each_change_half_of_the_images_by_themselves(only: str) -> None:
    images, acquired = 0.1 + 0.8 * torch.rand(60, 2, 3, 8, 8), torch.ones(60, 2, dtype=torch.bool)
    kept = images.clone()
    none = Augmentation(gamma=0, noise=0)
    _disturb(images, acquired, np.random.default_rng(0), none)
    assert torch.equal(images, kept)
    _disturb(images, acquired, np.random.default_rng(0), replace(none, **{only: getattr(Augmentation(), only)}))
    assert (images != kept).flatten(2).any(dim=2).float().mean() == pytest.approx(0.5, abs=0.12)


def test_sets_are_of_every_size_and_one_query_in_ten_remakes_an_input() -> None:
    rng, acquired = np.random.default_rng(0), np.ones((3000, 5), bool)
    samples, subsets = draw_sources(acquired, rng, draws=1, most=4)
    sizes = np.bincount(subsets.sum(axis=1), minlength=5)[1:]
    np.testing.assert_allclose(sizes / len(subsets), 0.25, atol=0.03)
    np.testing.assert_allclose(subsets.mean(axis=0), 0.5, atol=0.03, err_msg="no modality is drawn more than another")
    rows, given, targets = draw_targets(acquired[samples], samples, subsets, rng, targets=1)
    assert given[np.arange(len(rows)), targets].mean() == pytest.approx(0.1, abs=0.02)
    several = draw_sources(acquired, rng, draws=1, most=4, least=2)[1].sum(axis=1)
    assert (several.min(), several.max()) == (2, 4)


# Statistics


def test_variances_are_about_the_mean_and_typical_scalings_are_medians() -> None:
    builder, values = StatisticsBuilder(("t1n",)), []
    for seed, high in enumerate((1.0, 2.0, 9.0)):
        study = replace(plain_study(("t1n",), seed), scalings={"t1n": Scaling(0.0, high)})
        values.append(study.images["t1n"])
        builder.add(study)
    found = builder.finish()
    assert found.variance[0] == pytest.approx(np.var(values), rel=1e-3)
    assert found.typical_scaling["t1n"] == (0.0, 2.0)


def test_what_is_watched_is_no_part_of_the_statistics(data: Path, tmp_path: Path) -> None:
    """Base image and copy must not know the subjects that they are judged on."""
    (tmp_path / "others").mkdir()
    with np.load(data / "p0.npz") as arrays:
        others = {name: np.where(array > 0, 255 - array // 2, 0)[:, ::-1] for name, array in arrays.items()}
    np.savez(tmp_path / "others" / "p9.npz", **others)

    def statistics(*more: str) -> dict[str, object]:
        found = read_data(config(data, *more), lambda *_: None).statistics
        return {field.name: getattr(found, field.name) for field in fields(found)}

    alone = statistics()
    for name, value in statistics(f"validation='{tmp_path / 'others'}'").items():
        np.testing.assert_equal(value, alone[name], err_msg=name)
    learned = statistics(f"data=['{data}', '{tmp_path / 'others'}']")
    assert not np.array_equal(learned["variance"], alone["variance"]), "the other subject is another"


# One step


def learner(data: Path, which: int, *more: str) -> tuple[Contender, list[Part], TrainingData]:
    """A fresh contender (0 is Med-K2N, 1 the U-Net), the two parts of its first step, and what it learns from."""
    settings = config(data, "batch={size: 2, crop: 32, draws: 1, targets: 2, most_sources: 2, accumulate: 2}", *more)
    prepared = read_data(settings, lambda *_: None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Contender.of(settings.models[which], settings, prepared.statistics, "cpu")
    return made, next(Feed(prepared, settings, made.params.slices, range(2), 0)), prepared


def gradient(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def test_what_is_saved_is_the_moving_average_of_the_weights(data: Path) -> None:
    made, parts, _ = learner(data, 1, "optimiser.ema=0.15", "optimiser.learning_rate=0.1")
    for decay in (0.1, 0.15):  # the first steps forget faster, or the beginning would stay
        before = [p.clone() for p in made.averaged.parameters()]
        made.step(parts, World())
        for old, mean, new in zip(before, made.averaged.parameters(), made.module.parameters(), strict=True):
            torch.testing.assert_close(mean, decay * old + (1 - decay) * new)
        assert not all(map(torch.equal, made.averaged.parameters(), made.module.parameters()))


def test_all_contenders_learn_at_the_same_rate_along_a_cosine(data: Path) -> None:
    """Each kind of step has the whole of it: warm-up, peak, and a fiftieth at the end."""

    def rates(which: int, kind: float) -> list[float]:
        made, parts, _ = learner(data, which, "budget={steps: 1000}", "optimiser.warm_up=0.1", "teaching.weighing=0.5")
        begin, end = made.lesson.span(kind)
        found = []
        for share in (0.05, 0.1, 0.55, 0.999):
            made.steps = round(1000 * (begin + share * (end - begin)))
            made.step(parts, World())
            (rate,) = {round(g["lr"] / g["scale"], 12) for o in made.optimisers for g in o.param_groups}
            found.append(rate / made.config.optimiser.learning_rate)
        return found

    baseline = rates(1, 0.0)
    assert baseline == pytest.approx([0.5, 1.0, 0.51, 0.02], abs=1e-3)
    for kind in (0.0, 1.0):
        assert rates(0, kind) == pytest.approx(baseline, abs=0.02), "of Med-K2N too"


def test_the_gradient_of_a_step_is_the_mean_over_its_parts(data: Path) -> None:
    made, parts, _ = learner(data, 1, "optimiser.clip=1e9")
    alone = []
    for part in parts:
        made.module.zero_grad()
        made.lesson.loss(part.batch, part.seed, 0.0, World())[0].backward()
        alone.append(gradient(made.module))
    told = made.step(parts, World())
    torch.testing.assert_close(gradient(made.module), (alone[0] + alone[1]) / 2)
    losses = [made.lesson.loss(part.batch, part.seed, 0.0, World())[1]["loss"] for part in parts]
    assert told["loss"] != pytest.approx(np.mean(losses), abs=1e-6), "the step was made after it was told"


@pytest.mark.parametrize("which", [0, 1])
def test_clipping_bounds_the_gradient(data: Path, which: int) -> None:
    made, parts, _ = learner(data, which, "optimiser.clip=1e-3")
    made.step(parts, World())
    assert 0 < gradient(made.module).norm() <= 1e-3 * np.sqrt(len(made.lesson.apart())) * 1.001


def test_validation_asks_the_averaged_weights_for_what_is_missing(data: Path) -> None:
    made, _, prepared = learner(data, 1)
    asked: list[Query] = []
    made.module.register_forward_pre_hook(lambda *_: pytest.fail("the weights at hand are not what is saved"))
    made.averaged.register_forward_pre_hook(lambda _, given: asked.append(given[1]))
    assert np.isfinite(validate(made, [prepared.batch(made.config, np.random.default_rng(0), made.params.slices)]))
    assert sum(len(query.target) for query in asked) > 0
    assert not any(query.remade.any() for query in asked)


def test_each_part_of_the_loss_has_its_own_weight_and_remade_inputs_count_less() -> None:
    generator = torch.Generator().manual_seed(0)
    target, mean = torch.rand(2, 3, 16, 16, generator=generator), torch.rand(3, 16, 16, generator=generator)
    acquired = torch.ones(2, 3, dtype=torch.bool)
    batch = Batch(
        target[:, :, None],
        acquired,
        target,
        torch.ones(2, 16, 16, dtype=torch.bool),
        torch.zeros(2, 3),
        torch.full((2, 3), -1),
    )
    query = Query(
        torch.tensor([0, 0, 1]), torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 1]]).bool(), torch.tensor([2, 2, 1])
    )
    prediction = Prediction(mean, torch.full_like(mean, -3.0))
    one = LossWeights(log_mse=1, edges=1, likelihood=1, remade=0.25)

    def told(**weights: float) -> dict[str, float]:
        total, _, kept = objective(prediction, batch, query, one.model_copy(update=weights))
        parts = {name: value.item() for name, value in kept.items()}
        assert total.item() == pytest.approx(sum(parts.values()), rel=1e-5)
        return parts

    plain = told()
    for name in plain:
        assert told(**{name: 3.0}) == pytest.approx(plain | {name: 3 * plain[name]}, rel=1e-5)
    mse = (mean - target[query.sample, query.target]).square().mean(dim=(1, 2)).numpy()
    share = np.array([1, 1, 0.25]) / 2.25
    assert plain["log_mse"] == pytest.approx((share * 0.5 * np.log(mse + 1e-3)).sum(), rel=1e-4)
    assert plain["likelihood"] == pytest.approx((share * 0.5 * (mse / np.exp(-3) - 3)).sum(), rel=1e-4)
