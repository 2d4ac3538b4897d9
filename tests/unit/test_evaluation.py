"""Evaluation: which rows, what predictors may see, what the table says, and the command."""

import csv
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import wilcoxon

from medk2n.cli.main import main
from medk2n.data.intensity import Scaling
from medk2n.data.working import WorkingStudy
from medk2n.errors import CheckpointError, InternalError, UnknownNameError, VolumeReadError
from medk2n.evaluation.background import inside_inputs
from medk2n.evaluation.claims import claims
from medk2n.evaluation.copy import CopyPredictor
from medk2n.evaluation.evaluate import PREDICTED_PSNR, Record, ask, evaluate
from medk2n.evaluation.figure import best_slice, picture, psnr_figure
from medk2n.evaluation.panel import PROTOCOLS
from medk2n.evaluation.rows import Row, rows
from medk2n.evaluation.summary import MEAN_ROW, per_subject, summarise
from medk2n.evaluation.table import markdown, ordered_rows, write_tables
from medk2n.inference._spec import Answer
from medk2n.inference.predictor import SlicePredictor
from medk2n.metrics.psnr import psnr
from medk2n.registry import names

FOUR = ("t1n", "t1c", "t2w", "t2f")
SHAPE = (3, 14, 19)


def make_study(seed=0, modalities=FOUR, lesion=False):
    rng = np.random.default_rng(seed)
    foreground = np.zeros(SHAPE, bool)
    foreground[:, 2:12, 3:16] = True
    images = {m: np.where(foreground, rng.uniform(0.2, 0.9, SHAPE), 0).astype(np.float32) for m in modalities}
    label = np.zeros(SHAPE, int)
    label[1, 4:7, 5:9] = 2
    scalings = dict.fromkeys(modalities, Scaling(100.0, 900.0))
    return WorkingStudy(f"sub-{seed:02d}", images, foreground, scalings, lesion=label if lesion else None)


class Fake:
    """A predictor whose answers are given by a function of (images, target)."""

    def __init__(self, answer, name="medk2n", modalities=FOUR):
        self.answer, self.name, self.modalities, self.calls = answer, name, modalities, []

    def predict(self, images, targets):
        self.calls.append((dict(images), tuple(targets)))
        found = {target: self.answer(images, target) for target in targets}
        return {target: image if isinstance(image, Answer | None) else Answer(image) for target, image in found.items()}


def half(images, target):
    return np.full(SHAPE, 0.5, np.float32)


def config(maps=None, modalities=FOUR):
    return SimpleNamespace(modalities=modalities, statistics=SimpleNamespace(affine_maps=maps or {}))


# Rows


@pytest.mark.parametrize(("n", "expected"), [(4, 14), (3, 6), (2, 2), (1, 0), (0, 0)])
def test_number_of_rows(n, expected):
    assert len(rows(FOUR, FOUR[:n])) == expected


@given(st.sets(st.sampled_from(FOUR)), st.permutations(FOUR))
def test_rows_split_what_was_acquired(acquired, order):
    found = rows(order, acquired)
    assert len({row.sources for row in found}) == len(found)
    for row in found:
        assert row.sources
        assert row.targets
        assert set(row.sources) | set(row.targets) == acquired
        assert not set(row.sources) & set(row.targets)


def test_modalities_that_are_not_under_test_are_neither_source_nor_target():
    assert rows(("t1n", "t2w"), FOUR) == [Row(("t1n",), ("t2w",)), Row(("t2w",), ("t1n",))]


# The copy row


def test_copy_takes_the_one_best_input_and_applies_its_map():
    maps = {"t2w": {"t1n": (0.5, 0.1, 0.02), "t1c": (2.0, -0.5, 0.01), "t2f": (0.0, 0.9, 0.001)}}
    images = {"t1n": np.full(SHAPE, 0.4, np.float32), "t1c": np.linspace(0, 1, math.prod(SHAPE)).reshape(SHAPE)}
    predicted = CopyPredictor(config(maps)).predict(images, ["t2w"])["t2w"].image
    np.testing.assert_allclose(predicted, np.clip(2 * images["t1c"] - 0.5, 0, 1), rtol=1e-6)
    assert predicted.dtype == np.float32


def test_copy_without_a_map_says_so():
    predictor = CopyPredictor(config({"t2f": {"t2w": (1.0, 0.0, 0.1)}}))
    images = {m: image for m, image in make_study().images.items() if m in ("t1n", "t1c")}
    with pytest.raises(CheckpointError, match="no map from t1n, t1c to t2f"):
        predictor.predict(images, ["t2f"])


# Background


def test_background_is_what_is_empty_in_every_input_and_reaches_the_edge():
    first, second = np.zeros(SHAPE), np.zeros(SHAPE)
    first[1, 3:8, 3:8] = 0.5
    first[1, 5, 5] = 0  # a hole: stays inside
    second[1, 10, 10:12] = 0.5
    expected = np.zeros(SHAPE, bool)
    expected[1, 3:8, 3:8] = expected[1, 10, 10:12] = True
    np.testing.assert_array_equal(inside_inputs({"t1n": first, "t2w": second}), expected)


def test_a_hole_is_closed_in_its_slice_even_if_open_through_the_next():
    image = np.zeros(SHAPE)
    image[0, 3:8, 3:8] = 1
    image[0, 5, 5] = 0  # above it, slice 1 is empty
    assert inside_inputs({"t1n": image})[0, 5, 5]


def test_every_method_gets_the_same_background_and_range():
    study = make_study()
    row = Row(("t1n",), ("t2w",))
    predicted = ask(Fake(lambda images, target: np.full(SHAPE, 1.7)), study, row)["t2w"].image
    np.testing.assert_array_equal(predicted, study.foreground.astype(float))


def test_the_background_is_that_of_the_inputs_and_never_of_a_target():
    study = make_study()
    study.images["t1n"][:, :, 8:] = 0  # a smaller field of view than the target's
    predicted = ask(Fake(lambda images, target: np.ones(SHAPE)), study, Row(("t1n",), ("t2w",)))["t2w"].image
    assert not predicted[:, :, 8:].any()
    assert predicted[:, 2:12, 3:8].all()


# What predictors see


def test_predictors_receive_the_sources_and_nothing_else():
    study = make_study()
    fake = Fake(half)
    evaluate([fake], [study], modalities=FOUR)
    assert len(fake.calls) == 14  # all missing targets of a row in one call
    for images, targets in fake.calls:
        assert not set(images) & set(targets)
        assert set(images) | set(targets) == set(FOUR)
        for source, image in images.items():
            np.testing.assert_array_equal(image, study.images[source])


def test_the_content_of_a_target_never_changes_a_prediction():
    study, other = make_study(0), make_study(1)
    swapped = replace(study, images={**study.images, "t2w": other.images["t2w"]})
    copy_input = Fake(lambda images, target: next(iter(images.values())) * 0.9)
    row = Row(("t1n", "t2f"), ("t1c", "t2w"))
    first, second = ask(copy_input, study, row), ask(copy_input, swapped, row)
    for target in row.targets:
        np.testing.assert_array_equal(first[target].image, second[target].image)


def test_a_predictor_cannot_spoil_the_study_for_the_next():
    def spoil(images, target):
        for image in images.values():
            image[:] = 0
        return half(images, target)

    study = make_study()
    before = {name: image.copy() for name, image in study.images.items()}
    evaluate([Fake(spoil)], [study], modalities=FOUR)
    for name, image in before.items():
        np.testing.assert_array_equal(study.images[name], image)


def test_studies_are_taken_one_at_a_time():
    events = []

    def studies():
        for seed in range(3):
            events.append(f"load {seed}")
            yield make_study(seed, ("t1n", "t2w"))

    evaluate(
        [Fake(half)], studies(), modalities=FOUR, progress=lambda subject, done, total: events.append(f"{done}/{total}")
    )
    assert events == [event for seed in range(3) for event in (f"load {seed}", "1/2", "2/2")]


# What is measured


def test_a_perfect_predictor_is_perfect_everywhere():
    study = make_study(lesion=True)
    records = evaluate([Fake(lambda images, target: study.images[target])], [study], modalities=FOUR)
    assert {r.region for r in records} == {"foreground", "whole", "lesion"}
    perfect = {"psnr": math.inf, "mae": 0.0, "ssim": pytest.approx(1, abs=1e-6)}
    assert all(r.value == perfect[r.metric] for r in records)


def test_values_are_the_metric_inside_the_study_mask():
    study = make_study(lesion=True)
    found = {
        (r.region, r.sources, r.target): r.value
        for r in evaluate([Fake(half)], [study], modalities=("t1n", "t2w"))
        if r.metric == "psnr"
    }
    predicted = np.where(study.foreground, 0.5, 0)
    masks = {"foreground": study.foreground, "lesion": study.lesion > 0, "whole": None}
    assert len(found) == 2 * len(masks)
    for region, mask in masks.items():
        expected = psnr(predicted, study.images["t2w"], mask, data_range=1.0)
        assert found[region, "t1n", "t2w"] == pytest.approx(expected)
    assert found["whole", "t1n", "t2w"] > found["foreground", "t1n", "t2w"] + 2  # background flatters


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (lambda images, target: np.zeros((1, 2, 3)), r"expected a prediction of shape \(3, 14, 19\)"),
        (lambda images, target: np.full(SHAPE, np.nan), "sub-00, t1n -> t2w: the prediction is not finite"),
    ],
)
def test_a_broken_prediction_is_an_error_not_a_value(answer, match):
    with pytest.raises(InternalError, match=match):
        evaluate([Fake(answer)], [make_study()], modalities=("t1n", "t2w"))


def test_a_missing_prediction_is_an_error():
    fake = Fake(half)
    fake.predict = lambda images, targets: {}
    with pytest.raises(InternalError, match="missing"):
        evaluate([fake], [make_study()], modalities=("t1n", "t2w"))


def test_a_predictor_must_know_what_is_under_test():
    with pytest.raises(UnknownNameError, match="unet does not know t2f"):
        evaluate([Fake(half, "unet", FOUR[:3])], [make_study()], modalities=FOUR)


# Summary


def record(subject, value, method="medk2n", sources="t1n", target="t2w", metric="psnr", region="foreground"):
    return Record(subject, method, sources, target, metric, region, value)


def summary_of(records, references=("copy",)):
    return summarise(records, method="medk2n", references=references, rng=np.random.default_rng(0))


def test_means_go_over_targets_then_rows_then_subjects():
    records = [
        record("a", 20.0),
        record("a", 30.0, target="t2f"),
        record("a", 40.0, sources="t1c"),
        record("b", 10.0),
    ]
    found = {(c.sources): c for c in summary_of(records).cells}
    assert (found["t1n"].mean, found["t1n"].n) == ((25 + 10) / 2, 2)
    assert found["t1n"].sd == pytest.approx(15 / math.sqrt(2))
    assert found[MEAN_ROW].mean == ((25 + 40) / 2 + 10) / 2
    assert math.isnan(found["t1c"].sd)


def test_undefined_values_are_left_out_and_counted():
    found = summary_of([record("a", math.nan), record("b", 10.0)]).cells
    assert [(c.n, c.mean) for c in found] == [(1, 10.0)] * 2


def test_differences_are_paired_with_interval_and_p():
    rng = np.random.default_rng(3)
    base, gain = rng.normal(25, 4, 9), rng.normal(1, 0.4, 9)
    records = [record(f"s{i}", base[i] + gain[i]) for i in range(9)]
    records += [record(f"s{i}", base[i], method="copy") for i in reversed(range(9))]
    difference = summary_of(records).differences[0]
    assert difference.mean == pytest.approx(gain.mean())
    assert difference.p == pytest.approx(wilcoxon(gain).pvalue)
    spread = 1.96 * gain.std() / 3
    assert difference.low == pytest.approx(gain.mean() - spread, abs=0.1)
    assert difference.high == pytest.approx(gain.mean() + spread, abs=0.1)
    assert summary_of(records) == summary_of(records)  # seeded


def test_the_interval_holds_95_percent_of_resampled_means():
    gain = np.random.default_rng(1).normal(0, 1, 40)
    records = [r for k, g in enumerate(gain) for r in (record(str(k), g), record(str(k), 0.0, "copy"))]
    found = summary_of(records).differences[0]
    means = np.random.default_rng(7).choice(gain, (20000, 40)).mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    assert found.high - found.low == pytest.approx(high - low, rel=0.06)
    assert found.low == pytest.approx(low, abs=0.03)


def test_few_subjects_have_no_p_and_one_has_no_interval():
    five = summary_of([r for i in range(5) for r in (record(str(i), 2.0 + i), record(str(i), 1.0, "copy"))])
    assert math.isnan(five.differences[0].p)
    assert not math.isnan(five.differences[0].low)
    one = summary_of([record("a", 2.0), record("a", 1.0, "copy")]).differences[0]
    assert (one.mean, one.n, math.isnan(one.low)) == (1.0, 1, True)


def test_equal_methods_differ_by_nothing_and_infinite_ones_by_nothing_that_can_be_said():
    equal = summary_of([r for i in range(7) for r in (record(str(i), 2.0), record(str(i), 2.0, "copy"))])
    assert (equal.differences[0].mean, equal.differences[0].p) == (0.0, 1.0)
    infinite = summary_of([record("a", math.inf), record("a", math.inf, "copy")])
    assert infinite.differences[0].n == 0
    assert infinite.cells[0].mean == math.inf


# What a method expects of its own images


def knowing(error):
    """A predictor of grey images that says `error(true squared error, target)` of them."""
    study = make_study()

    def answer(images, target):
        truth = np.square(0.5 - study.images[target])
        return Answer(half(images, target), np.broadcast_to(error(truth, target), SHAPE).astype(np.float32))

    return study, Fake(answer)


def test_a_method_that_knows_its_error_is_right_about_its_psnr():
    study, fake = knowing(lambda truth, target: truth)
    records = evaluate([fake, Fake(half, "copy")], [study], modalities=FOUR)
    said = {(r.sources, r.target, r.region): r.value for r in records if r.metric == PREDICTED_PSNR}
    found = {(r.sources, r.target, r.region): r.value for r in records if r.metric == "psnr" and r.method == "medk2n"}
    assert len(said) == len(found)
    assert {r.method for r in records if r.metric == PREDICTED_PSNR} == {"medk2n"}, "copy says nothing of its error"
    for place in (place for place in found if place[2] == "foreground"):
        assert said[place] == pytest.approx(found[place], abs=1e-4)
    for claim in claims(records):
        assert claim.n == 7
        assert claim.off == pytest.approx(0, abs=1e-4)


def test_claims_are_means_differences_and_a_correlation_over_images():
    values = [("a", 20.0, 21.0), ("b", 22.0, 22.0), ("c", 24.0, 23.0)]
    records = [record(subject, measured) for subject, measured, _ in values]
    records += [record(subject, predicted, metric=PREDICTED_PSNR) for subject, _, predicted in values]
    records += [record("d", math.inf), record("d", 30.0, metric=PREDICTED_PSNR)]  # an exact image: left out
    (claim,) = claims(records)
    assert (claim.n, claim.measured, claim.predicted, claim.off) == (3, 22.0, 22.0, pytest.approx(2 / 3))
    assert claim.correlation == pytest.approx(1)
    assert per_subject(records).keys() == per_subject(records[:3]).keys(), "a claim is no measurement"


def test_a_method_that_says_the_same_of_every_image_has_no_correlation(tmp_path):
    study, fake = knowing(lambda truth, target: 0.01)
    records = evaluate([fake], [study], modalities=FOUR)
    assert all(math.isnan(claim.correlation) and claim.predicted == pytest.approx(20) for claim in claims(records))
    summary = summarise(records, method="medk2n", references=(), rng=np.random.default_rng(0))
    text = write_tables(tmp_path, records, summary, methods=("medk2n",), facts={})
    assert "## What a method expects of its own images" in text
    assert text.count("| 20.00 |") == 4
    assert text.count("| n/a |") == 4
    assert json.loads((tmp_path / "table.json").read_text())["claims"][0]["correlation"] is None


def test_a_predicted_error_of_another_shape_is_an_error():
    fake = Fake(lambda images, target: Answer(half(images, target), np.zeros((1, 2, 3))))
    with pytest.raises(InternalError, match=r"expected a prediction of shape \(3, 14, 19\), got \(1, 2, 3\)"):
        evaluate([fake], [make_study()], modalities=FOUR)


# Tables and figures


def measured(n_subjects=2):
    studies = [make_study(seed, lesion=seed == 0) for seed in range(n_subjects)]
    exact = Fake(lambda images, target: next(iter(images.values())), "copy")
    return evaluate([Fake(half), exact], studies, modalities=FOUR)


def test_tables_hold_every_value_and_say_what_is_missing(tmp_path):
    records = measured()
    summary = summary_of(records, ("unet", "copy"))
    text = write_tables(tmp_path, records, summary, methods=("medk2n", "unet", "copy"), facts={"seed": 0})
    assert (tmp_path / "table.md").read_text() == text
    assert "data range 1." in text
    assert text.count("| n/a |") >= 14  # the U-Net's column
    assert "**mean" not in text
    assert "medk2n - copy" in text
    assert "medk2n - unet" not in text
    with (tmp_path / "records.csv").open() as file:
        read = [{**line, "value": float(line["value"])} for line in csv.DictReader(file)]
    assert [Record(**line) for line in read] == records
    content = json.loads((tmp_path / "table.json").read_text())
    assert (content["data_range"], content["seed"]) == (1.0, 0)
    assert len(content["cells"]) == len(summary.cells) == len((tmp_path / "table.csv").read_text().splitlines()) - 1
    assert content["differences"][0]["p"] is None


def test_best_is_bold_whichever_direction_is_better():
    records = [record("a", 30.0), record("a", 20.0, "copy")]
    records += [record("a", 0.3, metric="mae"), record("a", 0.2, "copy", metric="mae")]
    text = markdown(summary_of(records), ["medk2n", "copy"])
    assert "| t1n | 1 | **30.00** | 20.00 | +10.00 |" in text
    assert "| t1n | 1 | 0.3000 | **0.2000** | +0.1000 |" in text


def test_infinite_values_are_written_as_json_knows_them(tmp_path):
    summary = summary_of([record("a", math.inf)])
    write_tables(tmp_path, [], summary, methods=["medk2n"], facts={})
    assert json.loads((tmp_path / "table.json").read_text())["cells"][0]["mean"] == "inf"


def test_row_order_is_fewest_inputs_first_and_the_mean_last():
    assert ordered_rows([MEAN_ROW, "b+a", "c", "b", "c"]) == ["c", "b", "b+a", MEAN_ROW]


def test_per_subject_keeps_regions_apart():
    values = per_subject([record("a", 1.0), record("a", 3.0, region="whole")])
    assert values["foreground", "psnr", "t1n"] == {"medk2n": {"a": 1.0}}
    assert values["whole", "psnr", "t1n"] == {"medk2n": {"a": 3.0}}


def test_figures_are_drawn_and_synthetic_panels_are_labelled(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    labels = []
    original = Axes.text
    monkeypatch.setattr(Axes, "text", lambda self, x, y, s, **k: (labels.append(s), original(self, x, y, s, **k))[1])
    study, row = make_study(lesion=True), Row(("t1n", "t1c"), ("t2w", "t2f"))
    images = {target: answer.image for target, answer in ask(Fake(half), study, row).items()}
    outputs = dict.fromkeys(("medk2n", "copy"), images)
    picture(study, row, outputs, tmp_path / "picture.png")
    assert labels == ["SYNTHETIC"] * 4
    psnr_figure(measured(), tmp_path / "psnr.png", methods=("medk2n", "unet", "copy"))
    for name in ("picture.png", "psnr.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_the_picture_shows_the_lesion_where_there_is_one():
    plain = make_study()
    plain.foreground[2, 1] = True
    assert best_slice(plain) == 2
    assert best_slice(make_study(lesion=True)) == 1


# The command


CHECKPOINT = {"CONFIG": "config.json", "REFERENCE_UNET": Path("reference") / "unet"}


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A data set of three subjects and a model, both made up: the layers below have their own tests."""
    studies = {study.id: study for study in map(make_study, range(3))}
    maps = {t: {s: (1.0, 0.0, 0.1) for s in FOUR if s != t} for t in FOUR}
    model = tmp_path / "model"
    model.mkdir()

    def load_working(subject, spacing_mm):
        if subject.id == world.broken:
            raise VolumeReadError(f"{subject.id}.npz: truncated")
        return studies[subject.id]

    world = SimpleNamespace(model=model, out=tmp_path / "out", data=tmp_path / "data", broken=None)
    world.data.mkdir()
    for name in studies:
        np.savez(world.data / f"{name}.npz", **{m: np.arange(24, dtype=np.uint8).reshape(2, 3, 4) for m in FOUR})
    card = config(maps)
    card.sha256, card.spacing_mm = "0" * 64, None

    def module(name, **content):
        fake = ModuleType(name)
        vars(fake).update(content)
        monkeypatch.setitem(sys.modules, name, fake)

    module("medk2n.checkpoint", find_model=lambda name: model, read_config=lambda folder: card, **CHECKPOINT)
    monkeypatch.setattr("medk2n.data.working.load_working", load_working)
    module(
        "medk2n.inference.predictor",
        load_predictor=lambda folder, device, every=1, **how: Fake(half, "unet" if folder.name == "unet" else "medk2n"),
        SlicePredictor=SlicePredictor,
    )
    monkeypatch.setattr("medk2n.cli.main.VERBS", ("evaluate",))
    world.run = lambda *more: main(
        ["evaluate", "--data", str(world.data), "-o", str(world.out), "--device", "cpu", *map(str, more)]
    )
    return world


FILES = {"differences.csv", "picture.png", "psnr.png", "records.csv", "table.csv", "table.json", "table.md"}


def test_command_writes_tables_figures_and_manifest(world, tmp_path, capsys):
    assert world.run("--modalities", "T1,t2w,flair", "--exclude", "sub-01", "--manifest", tmp_path / "run.json") == 0
    output = capsys.readouterr()
    assert {path.name for path in world.out.glob("[!.]*")} == FILES
    assert (world.out / "table.md").read_text() in output.out
    assert "no reference/unet" in output.err
    content = json.loads((world.out / "table.json").read_text())
    assert content["data"]["subjects"] == ["sub-00", "sub-02"]
    assert content["data"]["modalities"] == ["t1n", "t2w", "t2f"]
    assert content["methods"] == ["medk2n", "unet", "copy"]
    assert {cell["method"] for cell in content["cells"]} == {"medk2n", "copy"}
    assert {cell["n"] for cell in content["cells"]} == {2}
    manifest = json.loads((tmp_path / "run.json").read_text())
    assert len(manifest["outputs"]) == len(FILES)


def test_command_uses_the_reference_unet_where_there_is_one(world):
    reference = world.model / "reference" / "unet"
    reference.mkdir(parents=True)
    (reference / "config.json").write_text("{}")
    assert world.run("--subjects", "sub-00", "--modalities", "t1n,t2w") == 0
    cells = json.loads((world.out / "table.json").read_text())["cells"]
    assert {cell["method"] for cell in cells} == {"medk2n", "unet", "copy"}


def test_command_goes_on_after_a_subject_that_cannot_be_read(world, capsys):
    world.broken = "sub-00"
    assert world.run("--modalities", "t1n,t2w") == 3
    assert "sub-00 failed: sub-00.npz: truncated" in capsys.readouterr().err
    assert json.loads((world.out / "table.json").read_text())["data"]["failed"] == {"sub-00": "sub-00.npz: truncated"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--modalities", "t1n,ct"], "--modalities ct: the model does not know"),
        (["--modalities", "t1n"], "needs an input and a reference"),
        (["--subjects", "sub-9"], "no subject 'sub-9'"),
    ],
)
def test_command_refuses_what_cannot_be_done(world, capsys, options, message):
    assert world.run(*options) == 2
    assert message in capsys.readouterr().err
    assert not world.out.exists()


def test_command_refuses_an_existing_output_and_replaces_only_its_own_files(world, capsys):
    world.out.mkdir()
    (world.out / "notes.txt").write_text("mine")
    assert world.run("--modalities", "t1n,t2w") == 0
    assert world.run("--modalities", "t1n,t2w") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert world.run("--modalities", "t1n,t2w", "--overwrite") == 0
    assert {path.name for path in world.out.glob("[!.]*")} == FILES | {"notes.txt"}
    (world.out / "picture.png").write_text("drawn by hand")
    assert world.run("--modalities", "t1n,t2w", "--overwrite") == 2
    assert "picture.png is there, is not as medk2n left it" in capsys.readouterr().err


def test_command_leaves_nothing_half_written(world, monkeypatch):
    monkeypatch.setattr("medk2n.evaluation.figure.picture", lambda *a: (_ for _ in ()).throw(OSError(28, "full")))
    assert world.run("--modalities", "t1n,t2w") == 1
    assert sorted(path.name for path in world.out.parent.iterdir()) == ["data", "model"]


def test_every_nth_slice_is_scored_as_if_it_were_alone():
    study = make_study()
    truth = Fake(lambda images, target: 0.5 * next(iter(images.values())))
    everything = evaluate([truth], [study], modalities=FOUR, every=3)
    alone = evaluate([truth], [study.thinned([1])], modalities=FOUR)
    assert [(r.sources, r.metric, r.region) for r in everything] == [(r.sources, r.metric, r.region) for r in alone]
    np.testing.assert_allclose([r.value for r in everything], [r.value for r in alone])


# Damage


def test_command_adds_damage_and_leaves_the_rest_byte_for_byte(world, capsys):
    assert world.run("--modalities", "t1n,t2w,t2f") == 0
    plain = {path.name: path.read_bytes() for path in world.out.glob("[!.]*") if path.name != "table.json"}
    options = ["--damage", "blank,another", "--severity", "1", "--severity", "0.5", "--overwrite"]
    assert world.run("--modalities", "t1n,t2w,t2f", *options) == 0
    assert {path.name for path in world.out.glob("[!.]*")} == FILES | {"damage.csv", "damage.md", "damage.png"}
    for name, content in plain.items():
        assert (world.out / name).read_bytes() == content, name
    assert (world.out / "damage.md").read_text() in capsys.readouterr().out
    with (world.out / "damage.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {(line["kind"], line["severity"]) for line in lines} == {
        ("whole", "0.0"), ("blank", "0.5"), ("blank", "1.0"), ("another", "0.5"), ("another", "1.0"),
    }  # fmt: skip
    assert {line["method"] for line in lines} == {"medk2n", "copy"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--damage", "noize"], "--damage noize: expected all or some of noise, blank"),
        (["--severity", "1"], "--severity says how bad --damage is"),
        (["--damage", "all", "--severity", "1.5"], "--severity 1.5: expected a number above 0, at most 1"),
        (["--damage", "all"], "no subject has 3 of t1n, t2w"),
    ],
)
def test_command_refuses_damage_that_cannot_be(world, capsys, options, message):
    assert world.run("--modalities", "t1n,t2w", *options) == 2
    assert message in capsys.readouterr().err
    assert not world.out.exists()


# The panel


def test_command_adds_the_panel_and_leaves_the_rest_byte_for_byte(world, tmp_path, capsys):
    assert world.run("--modalities", "t1n,t2w") == 0
    plain = {path.name: path.read_bytes() for path in world.out.glob("[!.]*") if path.name != "table.json"}
    assert world.run("--modalities", "t1n,t2w", "--protocol", "all", "--overwrite") == 0
    assert {path.name for path in world.out.glob("[!.]*")} == FILES | {"protocols.csv", "protocols.md", "protocols.png"}
    for name, content in plain.items():
        assert (world.out / name).read_bytes() == content, name
    text = (world.out / "protocols.md").read_text()
    assert text in capsys.readouterr().out
    assert "# The same images under 9 protocols" in text
    with (world.out / "protocols.csv").open() as file:
        assert {line["protocol"] for line in csv.DictReader(file)} == set(names(PROTOCOLS)) - {
            "brasyn", "brasyn_documented", "synthrad",
        }, "no tumour, no CT"  # fmt: skip


def test_command_takes_protocols_by_name(world):
    assert world.run("--modalities", "t1n,t2w", "--protocol", "slices,own_mean", "--protocol", "own_mean") == 0
    with (world.out / "protocols.csv").open() as file:
        assert list(dict.fromkeys(line["protocol"] for line in csv.DictReader(file))) == ["slices", "own_mean"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--protocol", "brasin"], "did you mean brasyn"),
        (["--protocol", "all", "--every", "2"], "--protocol with --every 2: protocols measure whole volumes"),
    ],
)
def test_command_refuses_protocols_that_cannot_be(world, capsys, options, message):
    assert world.run("--modalities", "t1n,t2w", *options) == 2
    assert message in capsys.readouterr().err
    assert not world.out.exists()
