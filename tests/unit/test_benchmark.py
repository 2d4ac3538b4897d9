"""Benchmarks: the correction and the effect size against oracles, groups, lost rows, the bold rule, the command."""

import csv
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from medk2n.cli.main import main
from medk2n.data.intensity import Scaling
from medk2n.data.subject import Subject
from medk2n.data.working import WorkingStudy, every_nth, load_working
from medk2n.evaluation.benchmark import Collector, Line, best_of_row, table_lines
from medk2n.evaluation.benchmark_table import in_words, latex, markdown, printed, write_values
from medk2n.evaluation.benchmarks._benchmark import Benchmark, Group
from medk2n.evaluation.evaluate import Record, evaluate
from medk2n.evaluation.noise_ceiling import noise_free_images
from medk2n.evaluation.summary import MEAN_ROW, holm, rank_biserial
from medk2n.geometry.grid import Grid
from medk2n.inference._spec import Answer
from medk2n.io.volume import Volume
from medk2n.registry import names, resolve
from medk2n.vocabulary import MODALITIES

METHODS = ("medk2n", "unet", "copy")
TWO = Benchmark(
    name="two",
    label="Two & more",
    modalities=("t1n", "t2w"),
    groups=(Group("ours", ("a",)), Group("theirs", ("b",))),
)


@pytest.mark.parametrize("seed", range(4))
def test_holm_is_that_of_statsmodels(seed):
    p = np.random.default_rng(seed).beta(0.3, 3, 15)
    np.testing.assert_allclose(holm(list(p)), multipletests(p, method="holm")[1], rtol=1e-12)


def test_what_was_not_tested_is_no_part_of_the_family():
    np.testing.assert_allclose(holm([math.nan, 0.01, 0.04]), [math.nan, 0.02, 0.04])


def test_rank_biserial_by_hand():
    # |d| without the 0 ranks 1.5, 1.5, 3, 4: in favour 1.5 + 3 + 4 = 8.5, against 1.5
    assert rank_biserial(np.array([1.0, -1.0, 2.0, 0.0, 5.0])) == pytest.approx((8.5 - 1.5) / 10)
    assert rank_biserial(np.zeros(3)) == 0
    assert math.isnan(rank_biserial(np.array([])))


def values(gain, per_group=8, prefixes="ab"):
    """Every subject's PSNR in two rows: `gain` dB from model to U-Net, 3 to copy; SSIM and MAE alike."""
    rng = np.random.default_rng(0)
    records = []
    for subject in [f"{p}{i}" for p in prefixes for i in range(per_group)]:
        for sources, target in (("t1n", "t2w"), ("t2w", "t1n")):
            base = rng.normal(25, 2)
            for method, less in zip(METHODS, (0.0, gain + rng.normal(0, 0.01), 3.0), strict=True):
                for metric, value in (("psnr", base - less), ("ssim", 0.8 - less / 50), ("mae", 0.1 + less / 100)):
                    records.append(Record(subject, method, sources, target, metric, "foreground", value))
    return {False: records, True: records}


def lines_of(gain, **more):
    return table_lines(TWO, values(gain, **more), METHODS, seed=0)


def test_groups_are_never_pooled():
    found = values(1.0)
    other = [replace(r, value=r.value + 50) if r.subject[0] == "b" else r for r in found[False]]
    alone = [line for line in table_lines(TWO, found, METHODS, seed=0) if line.group == "ours"]
    beside = table_lines(TWO, {False: other, True: other}, METHODS, seed=0)
    assert [line for line in beside if line.group == "ours"] == alone
    assert {line.n for line in beside} == {8}


def test_a_lost_row_is_told_in_words_and_table():
    lines = lines_of(-0.5)
    text = markdown(TWO, lines, METHODS, by_target=False)
    assert text.count("**lost** -0.5") == 2 * 2 * 3  # groups, raw and matched, two rows and their mean
    words = next(in_words(printed(lines, "ours"), "medk2n"))
    assert "medk2n - unet, PSNR: -0.5" in words
    assert "n = 8, behind, significant" in words
    assert "Behind by its mean in 2: t1n -0.5" in words


def test_less_is_better_is_understood():
    mae = {line.method: line for line in printed(lines_of(1.0), "ours", metric="mae") if line.row == MEAN_ROW}
    assert mae["unet"].difference < 0
    assert not mae["unet"].lost


def test_few_subjects_have_no_test_no_bold_and_say_so():
    lines = lines_of(1.0, per_group=3)
    assert all(math.isnan(line.p_holm) for line in lines)
    assert "\\textbf" not in latex(TWO, lines, METHODS, by_target=False)
    assert "no test with fewer than 6 subjects" in next(in_words(printed(lines, "ours"), "medk2n"))


def row(mean, method, p_holm=math.nan, difference=math.nan):
    return Line("g", "foreground", "psnr", False, "t1n", method, 9, mean, 1.0, 9, difference, p_holm=p_holm)


def test_only_what_is_more_than_chance_is_bold():
    ours = row(20.0, "medk2n")
    assert best_of_row([ours, row(19.0, "unet", 0.2), row(15.0, "copy", 0.001)], "medk2n") is None
    assert best_of_row([ours, row(19.0, "unet", 0.01), row(15.0, "copy", 0.2)], "medk2n") == "medk2n"
    assert best_of_row([ours, row(21.0, "unet", 0.01)], "medk2n") == "unet"
    assert best_of_row([ours, row(21.0, "unet", 0.2)], "medk2n") is None
    assert best_of_row([ours, row(19.0, "unet", 0.01), row(40.0, "noise ceiling")], "medk2n") == "medk2n"


def test_table_2_has_a_row_a_target_of_the_same_values():
    one = lines_of(1.0)
    two = table_lines(TWO, values(1.0), METHODS, seed=0, by_target=True)
    assert [line.row for line in two if line.method == "copy"][:3] == ["t1n", "t2w", MEAN_ROW]
    mean = {line.row: line.mean for line in printed(one, "ours") if line.method == "medk2n"}
    turned = {line.row: line.mean for line in printed(two, "ours") if line.method == "medk2n"}
    assert turned["t2w"] == mean["t1n"]
    assert turned[MEAN_ROW] == pytest.approx(mean[MEAN_ROW])


def test_latex_escapes_what_tex_would_take_for_a_command():
    text = latex(TWO, lines_of(1.0), METHODS, by_target=False)
    assert "Two \\& more" in text
    assert "$\\bullet$ &  & \\textbf{" in text
    names = ("medk2n", "\\input{x}^~\n", "copy")
    found = {k: [replace(r, method=names[METHODS.index(r.method)]) for r in v] for k, v in values(1.0).items()}
    text = latex(TWO, table_lines(TWO, found, names, seed=0), names, by_target=False)
    assert "\\input" not in text
    assert r" & \textbackslash{}input\{x\}\^{}\textasciitilde{} & copy \\" in text


def test_hinet_is_apart_in_four128_and_every_test_subject_has_one_group():
    four = resolve("evaluation/benchmarks", "four128")
    assert [group.among(four.subjects) for group in four.groups] == [list(four.subjects[:2]), list(four.subjects[2:])]


@pytest.mark.parametrize("name", names("evaluation/benchmarks"))
def test_a_benchmark_is_found_by_its_name_and_asks_for_known_modalities(name):
    found = resolve("evaluation/benchmarks", name)
    assert found.name == name
    assert set(found.modalities) <= set(MODALITIES)


def test_command_names_near_benchmarks(tmp_path, capsys):
    code = main(["benchmark", "lgg", "--model", "default", "--data", str(tmp_path), "-o", str(tmp_path / "out")])
    assert code == 2
    assert "did you mean lgg128" in capsys.readouterr().err


def test_command_compares_all_models_whole_and_damaged(tmp_path, save_model, capsys):
    benchmark = resolve("evaluation/benchmarks", "stroke")
    run, data, out = (tmp_path / name for name in ("run", "data", "out"))
    save_model(run, "medk2n", tuple(sorted(benchmark.modalities)))
    save_model(run / "reference" / "unet", "unet", tuple(sorted(benchmark.modalities)))
    data.mkdir()
    for k in range(2):
        rng = np.random.default_rng(k)
        images = {m: np.pad(rng.integers(20, 250, (4, 16, 20), np.uint8), ((0, 0), (4, 4), (4, 4)))
                  for m in benchmark.modalities}  # fmt: skip
        np.savez(data / f"s{k}.npz", **images)
    options = ["--model", str(run), "--data", str(data), "-o", str(out), "--every", "4", "--damage", "noise"]
    assert main(["benchmark", "stroke", *options, "--device", "cpu"]) == 0
    assert {"table1.md", "table2.tex", "grid.png", "damage.csv", "damage.png"} <= {p.name for p in out.iterdir()}
    head = next(line for line in (out / "damage.md").read_text().splitlines() if line.startswith("| damage"))
    assert "| medk2n | medk2n (all kept) | unet | copy | medk2n, left out | medk2n - medk2n (all kept) |" in head
    assert (out / "damage.md").read_text() in capsys.readouterr().out


def test_a_family_is_every_row_their_mean_and_every_method_of_a_table():
    rng = np.random.default_rng(0)
    noisy = [replace(r, value=r.value + rng.normal(0, 0.4)) for r in values(0.3)[False]]
    lines = table_lines(TWO, {False: noisy, True: noisy}, METHODS, seed=0)
    for group, metric in (("ours", "psnr"), ("theirs", "ssim")):
        family = [line for line in printed(lines, group, metric=metric) if line.method != "medk2n"]
        assert len(family) == 3 * 2
        assert [line.p_holm for line in family] == pytest.approx(holm([line.p for line in family]))
        assert [line.p_holm for line in family] != pytest.approx([line.p for line in family], rel=0.5)


def test_latex_and_markdown_print_the_same_numbers():
    lines = lines_of(1.0)
    made = latex(TWO, lines, METHODS, by_target=False)
    for line in [*printed(lines, "ours"), *printed(lines, "ours", metric="ssim")]:
        digits = resolve("metrics", line.metric).decimals
        assert f"{line.mean:.{digits}f}" in re.findall(r"\d+\.\d+", made)
        assert f"{line.mean:.{digits}f}" in markdown(TWO, lines, METHODS, by_target=False)


def noise(seed, low=0.2, high=0.9):
    return np.random.default_rng(seed).uniform(low, high, (3, 20, 20)).astype(np.float32)


def test_matched_values_are_those_after_gain_and_offset_and_all_are_written(tmp_path):
    """A method that is right but for a gain and an offset is wrong as it stands, and exact once matched."""
    images = {"t1n": noise(0), "t2w": noise(1)}
    study = WorkingStudy("a", images, np.ones((3, 20, 20), bool), dict.fromkeys(images, Scaling(0.0, 1.0)))
    faint = SimpleNamespace(
        name="medk2n", modalities=tuple(images),
        predict=lambda given, targets: {t: Answer(0.5 * images[t] + 0.1 + 0.02 * noise(2)) for t in targets},
    )  # fmt: skip
    collector = Collector("medk2n", lambda study: {name: image + 0.01 for name, image in study.images.items()})
    found = collector.values(evaluate([faint], [study], modalities=tuple(images), listener=collector))
    psnr = {
        matched: {(r.method, r.target): r.value for r in records if (r.metric, r.region) == ("psnr", "foreground")}
        for matched, records in found.items()
    }
    assert psnr[False]["noise ceiling", "t2w"] == pytest.approx(40, abs=1e-3), "what noise leaves, as it stands"
    spread = 0.02 * noise(2).std() / 0.5  # what no gain and offset can mend, seen through the gain that mends the rest
    for target in images:
        assert psnr[False]["medk2n", target] < 15
        assert psnr[True]["medk2n", target] == pytest.approx(-20 * np.log10(spread), abs=0.3)
        assert psnr[True]["noise ceiling", target] > 60
    write_values(tmp_path / "values.csv", found)
    rows = list(csv.DictReader((tmp_path / "values.csv").read_text().splitlines()))
    written = {(r["affine_matched"] == "True", r["method"], r["target"]): float(r["psnr"]) for r in rows
               if r["region"] == "foreground"}  # fmt: skip
    for matched, of in psnr.items():
        for place, value in of.items():
            assert written[matched, *place] == pytest.approx(value, rel=1e-5), "six digits"


def test_what_noise_allows_is_measured_in_the_unit_of_the_scan():
    """An image without noise at half the scan's level lies at half its values: it is not stretched by its own."""
    array = np.zeros((24, 20, 6), np.float32)
    array[3:-3, 3:-3] = np.random.default_rng(0).uniform(100, 900, (18, 14, 6))
    grid = Grid(array.shape, np.eye(4))
    scan = Subject("a", {"t2w": lambda: Volume(array, grid, "t2w")})
    study = load_working(scan, None)
    low, inside = study.scalings["t2w"].low, study.foreground
    half = Subject("a", {"t2w": lambda: Volume(np.where(array > 0, low + (array - low) / 2, 0), grid, "t2w")})
    clean = noise_free_images(half, study, None)["t2w"]
    between = inside & (study.images["t2w"] > 0) & (study.images["t2w"] < 1)
    assert between.mean() > 0.3
    np.testing.assert_allclose(clean[between], study.images["t2w"][between] / 2, atol=1e-5)
    assert (clean[~inside] == 0).all()
    kept = every_nth(len(inside), 2)
    np.testing.assert_array_equal(noise_free_images(half, study.thinned(kept), None, every=2)["t2w"], clean[kept])
