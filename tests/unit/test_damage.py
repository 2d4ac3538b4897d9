"""Damage in an evaluation: which cases, what is done to an input, and what the table says of it."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch

from medk2n import checkpoint, registry
from medk2n.config.params import read_params
from medk2n.data.corrupt import KINDS
from medk2n.data.intensity import Scaling
from medk2n.data.working import WorkingStudy
from medk2n.errors import DatasetError
from medk2n.evaluation.damage import (
    ALL_KEPT,
    DAMAGE,
    WHOLE,
    Case,
    DamageRecord,
    check_enough,
    damaged,
    draw_cases,
    measure_damage,
    with_all_kept,
)
from medk2n.evaluation.damage_table import damage_markdown, write_damage
from medk2n.inference._spec import Answer
from medk2n.inference.predictor import SlicePredictor
from medk2n.models._spec import Statistics

FOUR = ("t1c", "t1n", "t2f", "t2w")


def study(seed: int = 0, shape: tuple[int, int, int] = (6, 32, 36), names: tuple[str, ...] = FOUR) -> WorkingStudy:
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = (z**2 + y**2 + x**2) < 1.1
    images = {m: np.where(inside, 0.5 + 0.4 * np.sin(4 * x + 3 * y + z + rng.uniform(0, 6)), 0) for m in names}
    images = {m: np.clip(image, 0, 1).astype(np.float32) for m, image in images.items()}
    return WorkingStudy(f"sub-{seed}", images, inside, dict.fromkeys(names, Scaling(0.0, 1.0)))


class Mean:
    """A method that answers with the mean of its inputs."""

    name, modalities = "mean", FOUR

    def predict(self, images, targets):
        return {target: Answer(np.mean(list(images.values()), axis=0)) for target in targets}


@pytest.fixture(scope="module")
def model() -> SlicePredictor:
    spec = registry.resolve("models", "medk2n")
    params = {"slices": 3, "widths": [8, 8, 8, 8, 8], "embedding": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = spec.build(read_params(spec.params, params), len(FOUR), Statistics.neutral(len(FOUR)))
        for parameter in module.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    module.fusion.taught.fill_(1)
    statistics = checkpoint.Statistics(affine_maps={}, variance={}, typical_scaling={})
    config = checkpoint.ModelConfig(
        model="medk2n", modalities=FOUR, spacing_mm=2.0, params=params, statistics=statistics
    )
    return SlicePredictor(module.eval().requires_grad_(False), config)


def test_every_target_is_made_once_from_two_inputs_and_once_from_three() -> None:
    cases = draw_cases(FOUR, np.random.default_rng(0))
    assert [(len(case.inputs), case.target) for case in cases] == [(k, t) for k in (2, 3) for t in FOUR]
    for case in cases:
        assert case.damaged in case.inputs
        assert case.target not in case.inputs
        assert sorted(set(case.inputs), key=FOUR.index) == list(case.inputs)
    assert draw_cases(FOUR[:2], np.random.default_rng(0)) == []


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_stays_inside_the_study_and_touches_nothing_else(kind: str) -> None:
    one, other = study(0), study(1, (8, 30, 40))
    case = Case(("t1n", "t2w"), "t2w", "t1c")
    kept = {name: image.copy() for name, image in one.images.items()}
    half, full = (damaged(one, other, case, kind, s, np.random.default_rng(3)) for s in (0.5, 1.0))
    for bad in (half, full):
        assert bad.dtype == np.float32
        assert bad.shape == one.foreground.shape
        assert not bad[~one.foreground].any()
        assert 0 <= bad.min() <= bad.max() <= 1
    error = [float(np.square(bad - one.images["t2w"]).mean()) for bad in (half, full)]
    assert min(error) > 1e-4
    assert kind in KINDS or error[0] < error[1]  # on so small an image what is shifted twice as far may lie better
    for name, image in kept.items():
        np.testing.assert_array_equal(one.images[name], image)


def test_what_takes_the_place_of_an_input_is_never_the_target() -> None:
    one = study(0)
    for target in ("t1c", "t1n", "t2f"):
        case = Case(tuple(m for m in FOUR if m != target), "t2w", target)
        for seed in range(12):
            bad = damaged(one, None, case, "mislabelled", 1.0, np.random.default_rng(seed))
            same = [m for m in FOUR if np.array_equal(one.images[m], bad)]
            assert len(same) == 1
            assert same[0] not in ("t2w", target)


def test_another_patient_lies_centre_on_centre() -> None:
    one, case = study(0), Case(("t1n", "t2w"), "t2w", "t1c")
    grown = [(2, 1), (3, 5), (0, 4)]
    other = replace(
        one,
        images={name: np.pad(image, grown) for name, image in one.images.items()},
        foreground=np.pad(one.foreground, grown),
    )
    found = damaged(one, other, case, "another", 1.0, np.random.default_rng(0))
    np.testing.assert_array_equal(found, one.images["t2w"])
    assert damaged(one, None, case, "another", 1.0, np.random.default_rng(0)) is None
    assert damaged(one, study(1, names=FOUR[:3]), case, "another", 1.0, np.random.default_rng(0)) is None


def test_each_method_is_asked_whole_without_and_damaged() -> None:
    records = measure_damage(
        [Mean()], map(study, range(2)), modalities=FOUR, kinds=["blank", "another"], severities=[0.5, 1.0], every=2
    )
    assert len(records) == 2 * 8 * (1 + 2 * 2)
    assert {(r.weight, r.gate) for r in records} == {(None, None)}
    studies = {s.id: s for s in map(study, range(2))}
    for r in records:
        one, names = studies[r.subject], r.inputs.split("+")

        def psnr(given, one=one, r=r):
            at = slice(1, None, 2)
            error = np.mean([one.images[m] for m in given], axis=0) - one.images[r.target]
            return -10 * np.log10(np.square(error[at][one.foreground[at]], dtype=float).mean())

        assert r.psnr_whole_db == pytest.approx(psnr(names), abs=1e-4)
        assert r.psnr_without_db == pytest.approx(psnr([m for m in names if m != r.damaged]), abs=1e-4)
        assert (r.kind == WHOLE) == (r.severity == 0) == (r.psnr_db == r.psnr_whole_db)


def test_the_same_seed_gives_the_same_cases_in_any_company() -> None:
    both = measure_damage([Mean()], map(study, (0, 1)), modalities=FOUR, kinds=["noise"], severities=[1.0])
    alone = measure_damage([Mean()], [study(1)], modalities=FOUR, kinds=["noise"], severities=[1.0])
    assert [r for r in both if r.subject == "sub-1"] == alone
    other = measure_damage([Mean()], [study(1)], modalities=FOUR, kinds=["noise"], severities=[1.0], seed=1)
    assert other != alone


def test_two_modalities_are_too_few() -> None:
    with pytest.raises(DatasetError, match="no subject has 3 of t1c, t1n"):
        check_enough(FOUR[:2], [FOUR, FOUR])
    check_enough(FOUR, [FOUR[:2], FOUR[1:]])
    assert measure_damage([Mean()], [study(names=FOUR[:2])], modalities=FOUR, kinds=["noise"], severities=[1.0]) == []


def test_a_model_that_decides_is_asked_with_all_kept_too(model: SlicePredictor) -> None:
    """Forced open, it answers as it did before its gates were taught; its own record has weight and gate."""
    one = [study(0)]
    records = measure_damage(with_all_kept([model]), one, modalities=FOUR, kinds=["noise"], severities=[1.0], every=3)
    kept = [r for r in records if r.method == "medk2n" + ALL_KEPT]
    own = [r for r in records if r.method == "medk2n"]
    assert len(kept) == len(own) == len(records) / 2
    assert {(r.weight, r.gate) for r in kept} == {(None, None)}
    assert all(np.isfinite(r.weight) and 0 <= r.gate <= 1 for r in own)
    model.module.fusion.taught.fill_(0)
    try:
        untaught = measure_damage(
            with_all_kept([model]), one, modalities=FOUR, kinds=["noise"], severities=[1.0], every=3
        )
    finally:
        model.module.fusion.taught.fill_(1)
    open_db = [r.psnr_db for r in untaught if r.method == "medk2n"]
    np.testing.assert_allclose([r.psnr_db for r in kept], open_db, atol=1e-3)


def record(subject: str, method: str, psnr_db: float, kind: str = "noise", **more) -> DamageRecord:
    told = {
        "severity": float(kind != WHOLE),
        "psnr_without_db": 22.0,
        "psnr_whole_db": 23.0,
        "weight": None,
        "gate": None,
    }
    return DamageRecord(subject, "t1n+t2w", "t2w", "t1c", kind, method=method, psnr_db=psnr_db, **(told | more))


def test_the_table_says_what_was_recovered(tmp_path) -> None:
    records = []
    for k in range(5):
        records += [
            record(f"s{k}", "medk2n", 21.5 + k, weight=-1.0, gate=0.0, psnr_without_db=22.0 + k),
            record(f"s{k}", "medk2n" + ALL_KEPT, 20.0 + k, psnr_without_db=22.0 + k),
            record(f"s{k}", "unet", 20.5 + k),
            *(record(f"s{k}", m, 23.0 + k, WHOLE) for m in ("medk2n", "medk2n" + ALL_KEPT, "unet")),
        ]
    text = write_damage(tmp_path, records, seed=0)
    line = next(line for line in text.splitlines() if line.startswith("| noise"))
    assert line == (
        "| noise | 5 | 23.50 | 22.00 | 22.50 | 24.00 | +1.50 [+1.50, +1.50] | +1.00 [+1.00, +1.00] "
        "| 75 % [75, 75] | -1.00 | 0% |"
    )
    assert "| all | 5 | 25.00 | 25.00 | 25.00 | 22.00 | +0.00 [+0.00, +0.00]" in text
    with (tmp_path / "damage.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(DamageRecord.__dataclass_fields__)
    assert [row["weight"] for row in rows[:3]] == ["-1.0", "", ""]
    assert (tmp_path / "damage.png").read_bytes()[:4] == b"\x89PNG"
    assert text == (tmp_path / "damage.md").read_text()


def test_no_share_is_told_where_leaving_out_gains_nothing() -> None:
    records = [record(s, m, 21.95, weight=0.0, gate=1.0) for s in "ab" for m in ("medk2n", "medk2n" + ALL_KEPT)]
    assert "| n/a | +0.00 | 100% |" in damage_markdown(records, seed=0)
