"""The public promise: any inputs on any grids in, volumes on exactly the reference grid out, nothing else touched."""

from dataclasses import replace
from itertools import cycle, permutations, product
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from medk2n import checkpoint, registry
from medk2n.config.control import FusionRule, WeightRule, load_control
from medk2n.data.working import Workspace
from medk2n.errors import (
    CheckpointError,
    ConfigError,
    DoubtfulScanError,
    GeometryError,
    UnknownNameError,
    UsageError,
    VolumeReadError,
)
from medk2n.geometry.grid import Grid
from medk2n.inference import contribution, control, progression
from medk2n.inference.contribution import proposed
from medk2n.inference.control import StudyControl
from medk2n.inference.predictor import SlicePredictor, as_predictor, deciding_slices, local_slope
from medk2n.inference.progression import _orders, progressions
from medk2n.inference.synthesizer import Synthesizer
from medk2n.io.atomic import sha256_file
from medk2n.io.volume import Volume
from medk2n.models._spec import Statistics
from medk2n.shapley import shapley

NAMES = ("ct", "t1c", "t1n", "t2w")
SHAPE = (20, 24, 14)
AFFINE = np.array([[2.0, 0.125, 0, -20], [-0.125, 2.0, 0, -24], [0, 0, 3.0, -18], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def synthesizer() -> Synthesizer:
    spec = registry.resolve("models", "medk2n")
    params = {"slices": 3, "widths": (8, 8, 8, 8, 16), "embedding": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = spec.build(spec.params(**params), len(NAMES), Statistics.neutral(len(NAMES)))
        for parameter in module.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    statistics = checkpoint.Statistics(
        affine_maps={},
        variance=dict.fromkeys(NAMES, 0.05),
        typical_scaling=dict.fromkeys(NAMES, (100.0, 900.0)) | {"ct": (-1000.0, 2000.0)},
    )
    config = checkpoint.ModelConfig(
        model="medk2n", modalities=NAMES, spacing_mm=2.5, params=params, statistics=statistics, sha256="0" * 64
    )
    return Synthesizer(SlicePredictor(module.eval().requires_grad_(False), config), "small")


def head(seed: int = 0, shape: tuple[int, int, int] = SHAPE, air: float = 0.0) -> np.ndarray:
    """A stripped brain: smooth values in an ellipsoid, constant air around it."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    values = 400 + 150 * np.sin(3 * x + seed) + 100 * y
    return np.where(x**2 + y**2 + z**2 < 0.7, values, air).astype(np.float32)


def test_output_is_on_exactly_the_reference_grid(synthesizer: Synthesizer) -> None:
    result = synthesizer.synth({"t1n": (head(), AFFINE), "t2w": (head(1), AFFINE)}, ["t1c", "ct"])
    assert list(result) == ["t1c", "ct"]
    for volume in result.values():
        assert volume.array.dtype == np.float32
        assert volume.array.shape == SHAPE
        assert np.array_equal(volume.to_nibabel().affine, AFFINE)
        assert np.isfinite(volume.array).all()
    assert result.reference == "t1n"


def test_the_result_does_not_depend_on_how_the_axes_are_stored(synthesizer: Synthesizer) -> None:
    """All orders of three axes, in two directions each, in scanner space, of a head in noisy air."""
    noise = np.abs(np.random.default_rng(0).normal(0, 9, SHAPE))
    images = {
        name: nib.Nifti1Image(head(k) + noise.astype(np.float32), AFFINE) for k, name in enumerate(("t1n", "t2w"))
    }
    expected = synthesizer.synth(images, ["ct"])["ct"].array
    for order, flips in product(permutations(range(3)), [(1, -1, 1), (-1, 1, -1)]):
        way = np.array(list(zip(order, flips, strict=True)))
        turned = {name: image.as_reoriented(way) for name, image in images.items()}
        volume = synthesizer.synth(turned, ["ct"])["ct"]
        assert volume.array.shape == turned["t1n"].shape
        back = nib.as_closest_canonical(volume.to_nibabel())
        np.testing.assert_allclose(back.affine, AFFINE, atol=1e-4)
        assert np.abs(back.get_fdata() - expected).max() <= 1e-4 * np.ptp(expected)


def test_detail_follows_an_input_only_where_the_image_does() -> None:
    """The image is twice the guide on the left, its negative in the middle, something else on the right."""
    guide = torch.rand(2, 30, 60, generator=torch.Generator().manual_seed(0))
    image = torch.cat([2 * guide[..., :20] + 0.1, 0.7 - guide[..., 20:40], guide.flip(1)[..., 40:]], dim=2)
    slope = local_slope(image, guide)
    torch.testing.assert_close(slope[..., 5:15], torch.full((2, 30, 10), 2.0), atol=0.03, rtol=0)
    torch.testing.assert_close(slope[..., 25:35], torch.full((2, 30, 10), -1.0), atol=0.03, rtol=0)
    assert slope[..., 45:].abs().max() < 0.3
    assert torch.equal(local_slope(image, torch.full_like(guide, 0.25)), torch.zeros_like(guide)), "a flat guide"


@pytest.mark.parametrize("deviation", [0.002, 0.005, 0.01, 0.05])
def test_noise_beside_an_edge_that_only_the_image_has_is_not_carried_over(deviation: float) -> None:
    image = torch.full((1, 40, 40), 0.3)
    image[..., 20:] = 0.8
    noise = torch.randn(1, 40, 40, generator=torch.Generator().manual_seed(0))
    assert local_slope(image, 0.5 + deviation * noise).abs().max() < 1.0


def test_background_stays_background(synthesizer: Synthesizer) -> None:
    air = head() == 0
    result = synthesizer.synth({"t1n": (head(), AFFINE)}, ["t2w", "ct"])
    assert (result["t2w"].array[air] == 0).all()
    assert (result["ct"].array[air] == -1000).all()
    assert (result["t2w"].array[~air] != 0).any()
    assert result.record["skull_stripped"] is True


def test_values_are_in_the_stated_unit_and_can_be_undone(synthesizer: Synthesizer) -> None:
    inside = head() != 0
    result = synthesizer.synth({"t1n": (head(), AFFINE)}, ["t2w", "t1n"])
    assert (result.scalings["t2w"].low, result.scalings["t2w"].high) == (100.0, 900.0)
    scaled = result.scalings["t2w"].apply(result["t2w"].array[inside])
    assert scaled.min() >= -1e-6
    assert scaled.max() <= 1 + 1e-6
    own = result.scalings["t1n"]
    assert own.high == pytest.approx(np.percentile(head()[inside], 99.5), rel=0.01), "a re-made input keeps its unit"


def test_targets_alone_and_together_are_the_same(synthesizer: Synthesizer) -> None:
    study = {"t1n": (head(), AFFINE), "t2w": (head(1), AFFINE)}
    together = synthesizer.synth(study, ["ct", "t1c"])
    for name in ("ct", "t1c"):
        alone = synthesizer.synth(study, [name])
        spread = np.abs(alone[name].array - together[name].array).max()
        assert spread <= 1e-5 * (together.scalings[name].high - together.scalings[name].low)


def test_passes_in_bfloat16_change_little_and_decide_alike(synthesizer: Synthesizer) -> None:
    """Evidence is made of small differences of large sums: in bfloat16 it would say something else."""
    predictor = synthesizer._predictor
    halved = as_predictor(predictor.module, predictor.config, precision="bf16")
    given = {}
    for k, name in enumerate(("t1n", "t2w", "t1c")):
        slices = np.moveaxis(head(k), 2, 0).astype(np.float32)
        given[name] = (slices - slices.min()) / np.ptp(slices)
    full, half = (p.infer(given, ["ct"]) for p in (predictor, halved))
    apart = np.abs(full.means["ct"] - half.means["ct"])
    assert 0 < apart.max() < 0.05
    assert apart.mean() < 0.002
    for one, other in zip(*(found.plan[predictor.modalities.index("ct")] for found in (full, half)), strict=True):
        assert (one.source, one.gate) == (other.source, other.gate)
        assert one.weight == pytest.approx(other.weight, abs=0.1)


def test_the_order_of_inputs_changes_nothing(synthesizer: Synthesizer) -> None:
    study = {"t1n": (head(), AFFINE), "t2w": (head(1), AFFINE), "ct": (head(2), AFFINE)}
    first = synthesizer.synth(study, ["t1c"], reference="t1n")["t1c"].array
    for order in permutations(study):
        again = synthesizer.synth({name: study[name] for name in order}, ["t1c"], reference="t1n")["t1c"].array
        np.testing.assert_allclose(again, first, atol=1e-5 * 800)


def test_every_form_of_input_gives_the_same(synthesizer: Synthesizer, tmp_path) -> None:
    image = nib.Nifti1Image(head(), AFFINE)
    nib.save(image, tmp_path / "sub-1_T1w.nii.gz")
    expected = synthesizer.synth({"t1n": (head(), AFFINE)}, ["t2w"])["t2w"].array
    volume = Volume(head(), Grid(SHAPE, AFFINE), "t1n")
    for study in ({"T1w": image}, {"t1": tmp_path / "sub-1_T1w.nii.gz"}, {"t1n": volume}, tmp_path):
        np.testing.assert_allclose(synthesizer.synth(study, ["t2"])["t2w"].array, expected, atol=1e-2)


@pytest.mark.parametrize(
    ("image", "error", "match"),
    [
        (head(), UsageError, r"t1n: expected a path, .* got ndarray; an array alone does not say where"),
        (None, UsageError, "t1n: expected a path, .* got NoneType"),
        ((head(), AFFINE, 3), UsageError, "got tuple"),
        ((head(), np.diag([1.0, 0.0, 1.0, 1.0])), GeometryError, "affine is singular"),
        ((head(), np.eye(3)), GeometryError, "affine is not a finite 4 x 4 matrix"),
        ((head(), "scanner"), GeometryError, "affine is not a finite 4 x 4 matrix"),
        ((head() * 1j, AFFINE), VolumeReadError, "3-D of complex.*, expected a 3-D array of real numbers"),
        ((head()[0], AFFINE), VolumeReadError, "2-D of float32, expected a 3-D array"),
    ],
)
def test_what_is_no_image_is_refused(synthesizer: Synthesizer, image: object, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        synthesizer.synth({"t1n": image}, ["t2w"])


def test_a_volume_says_that_it_is_synthetic_and_what_of(synthesizer: Synthesizer) -> None:
    given = nib.Nifti1Image(head(), AFFINE)
    first, again = (synthesizer.synth({"t1n": given}, ["t2w"], seed=3)["t2w"] for _ in range(2))
    assert b"SYNTHETIC" in bytes(first.to_nibabel().header["descrip"])
    assert first.provenance["seed"] == 3
    assert len(first.provenance["sources"]["t1n"]["sha256"]) == 64
    assert first.provenance == again.provenance
    other = synthesizer.synth({"t1n": nib.Nifti1Image(head(1), AFFINE)}, ["t2w"])["t2w"]
    assert other.provenance["sources"]["t1n"]["sha256"] != first.provenance["sources"]["t1n"]["sha256"]


def test_inputs_on_other_grids_are_brought_to_the_reference(synthesizer: Synthesizer) -> None:
    fine = np.diag([1.0, 1.0, 1.5, 1.0])
    fine[:3, 3] = AFFINE[:3, 3]
    other = head(1, (40, 48, 28))
    result = synthesizer.synth({"t2w": (other, fine), "t1n": (head(), AFFINE)}, ["t1c"], reference="t1n")
    assert result["t1c"].array.shape == SHAPE
    assert result.inputs["t2w"].array.shape == SHAPE
    assert synthesizer.synth({"t2w": (other, fine), "t1n": (head(), AFFINE)}, ["t1c"])["t1c"].array.shape == other.shape


@pytest.mark.parametrize("code", ["LPS", "PIR", "SAL", "RAI"])
def test_orientation_does_not_matter(synthesizer: Synthesizer, code: str) -> None:
    """The same anatomy stored along other axes gives the same anatomy back."""
    plain = np.diag([2.0, 2.0, 3.0, 1.0])
    image = nib.Nifti1Image(head(), plain)
    turn = nib.orientations.ornt_transform(nib.io_orientation(plain), nib.orientations.axcodes2ornt(code))
    turned = image.as_reoriented(turn)
    expected = synthesizer.synth({"t1n": image}, ["t2w"])["t2w"].to_nibabel()
    found = synthesizer.synth({"t1n": turned}, ["t2w"])["t2w"].to_nibabel()
    assert nib.aff2axcodes(found.affine) == tuple(code)
    np.testing.assert_allclose(nib.as_closest_canonical(found).get_fdata(), expected.get_fdata(), atol=1e-4 * 800)


def test_shapley_values_add_up_and_a_useless_player_gets_nothing() -> None:
    worth = {(): 10.0, (0,): 14.0, (1,): 10.0, (0, 1): 14.0, (2,): 12.0, (0, 2): 17.0, (1, 2): 12.0, (0, 1, 2): 17.0}
    values = {p: shapley(worth, (0, 1, 2), p) for p in range(3)}
    assert values[1] == pytest.approx(0)
    assert sum(values.values()) == pytest.approx(7.0)
    assert values[0] == pytest.approx((4 + 5) / 2)


def test_contributions_add_up_to_the_predicted_gain(synthesizer: Synthesizer) -> None:
    study = {"t1n": (head(), AFFINE), "t2w": (head(1), AFFINE), "ct": (head(2), AFFINE)}
    told = synthesizer.synth(study, ["t1c"]).explanations["t1c"]
    assert told.contribution_method == "shapley"
    assert set(told.contribution_db) == set(study)
    assert {step.source for step in told.steps} == set(study)
    assert told.steps[0].source == told.key
    nothing = -10 * np.log10(0.05)
    assert sum(told.contribution_db.values()) == pytest.approx(told.predicted_psnr_db - nothing, abs=0.5)


def test_ten_calls_load_the_weights_once_and_touch_nothing(monkeypatch, tmp_path, synthesizer, capsys) -> None:
    checkpoint.save(tmp_path / "model", synthesizer._predictor.module, synthesizer.config)
    loads = []
    monkeypatch.setattr("medk2n.inference.predictor.load", lambda *a, **k: loads.append(a) or checkpoint.load(*a, **k))
    flags = (torch.get_rng_state(), torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype())
    state = np.random.get_state()[1].copy()
    loaded = Synthesizer.from_pretrained(tmp_path / "model")
    results = [loaded.synth({"t1n": (head(), AFFINE)}, ["t2w"])["t2w"].array for _ in range(10)]
    assert len(loads) == 1
    assert all(np.array_equal(results[0], r) for r in results)
    after = (torch.get_rng_state(), torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype())
    assert torch.equal(flags[0], after[0])
    assert flags[1:] == after[1:]
    assert np.array_equal(state, np.random.get_state()[1])
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("study", "targets", "error", "message"),
    [
        ({"t9": (head(), AFFINE)}, ["t2w"], UnknownNameError, "unknown modality 't9'"),
        ({"t1n": (head(), AFFINE), "T1w": (head(), AFFINE)}, ["t2w"], UsageError, "t1n given twice"),
        ({"t1n": (head(), AFFINE)}, ["t2w", "T2"], UsageError, "target given twice: t2w"),
        ({"t1n": (head(), AFFINE)}, ["pet"], UsageError, "does not know pet; it knows ct, t1c"),
        ({"pet": (head(), AFFINE)}, ["t2w"], UsageError, "does not know pet"),
        ({}, ["t2w"], UsageError, "no input given"),
        ({"t1n": (head(), AFFINE)}, [], UsageError, "no target given"),
        ({n: (head(), AFFINE) for n in NAMES}, None, UsageError, "already has everything"),
        ({"t1n": (head() * np.nan, AFFINE)}, ["t2w"], VolumeReadError, "finite"),
        ({"t1n": (head() * 0, AFFINE)}, ["t2w"], VolumeReadError, "constant"),
        ({"t1n": (head(), AFFINE * [[1], [0], [1], [1]])}, ["t2w"], GeometryError, "singular"),
        (
            {"t1n": (head(), AFFINE), "ct": (head(), AFFINE + np.array([[0, 0, 0, 900.0]] * 3 + [[0] * 4]))},
            ["t2w"],
            GeometryError,
            "do not overlap",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(synthesizer, study, targets, error, message) -> None:
    with pytest.raises(error, match=message):
        synthesizer.synth(study, targets)


def test_reference_must_be_an_input(synthesizer: Synthesizer) -> None:
    with pytest.raises(UsageError, match="reference t2w is not among the inputs"):
        synthesizer.synth({"t1n": (head(), AFFINE)}, ["ct"], reference="t2w")


def test_deciding_slices_are_spread_and_few() -> None:
    assert deciding_slices(list(range(10, 110))) == sorted(set(deciding_slices(list(range(10, 110)))))
    assert len(deciding_slices(list(range(100)))) == 8
    assert deciding_slices([7]) == [7]


STUDY = {"t1n": (head(), AFFINE), "t2w": (head(1), AFFINE), "t1c": (head(2), AFFINE)}


def steps(synthesizer: Synthesizer, study: dict = STUDY, **rule) -> tuple:
    """Image and steps of ct from three inputs under a rule."""
    result = synthesizer.synth(study, ["ct"], control={"ct": FusionRule(**rule)})
    return result["ct"].array, result.explanations["ct"].steps


@pytest.mark.parametrize("key", ["t1n", "t2w", "t1c"])
def test_a_forced_key_frame_comes_first(synthesizer: Synthesizer, key: str) -> None:
    result = synthesizer.synth(STUDY, ["ct"], control={"CT": FusionRule(key=key)})
    assert result.explanations["ct"].key == key
    assert result.record["control"] == {"ct": {"key": key}}, "and the record says so"


def test_an_input_left_out_of_one_target_is_as_if_it_were_absent(synthesizer: Synthesizer) -> None:
    rule = {"ct": FusionRule(leave_out=["t1c"])}
    both = synthesizer.synth(STUDY, ["ct", "t1n"], control=rule)
    without = synthesizer.synth({name: STUDY[name] for name in ("t1n", "t2w")}, ["ct"])
    untouched = synthesizer.synth(STUDY, ["t1n"])
    np.testing.assert_allclose(both["ct"].array, without["ct"].array, atol=0.05)  # of 3000 HU
    np.testing.assert_allclose(both["t1n"].array, untouched["t1n"].array, atol=0.05)
    assert both.explanations["ct"].contribution_db["t1c"] == 0
    assert {step.source for step in both.explanations["ct"].steps} == {"t1n", "t2w"}
    wider = head(1)
    wider[1:4, 4:20, 4:10] = 300.0
    study = {"t1n": (head(), AFFINE), "t2w": (wider, AFFINE)}
    outside = synthesizer.synth(study, ["ct"], control={"ct": FusionRule(leave_out=["t2w"])})["ct"].array
    assert (outside[head() == 0] == -1000).all(), "nor does it say where the patient is"


def test_weights_are_capped_and_fixed(synthesizer: Synthesizer) -> None:
    def used(**weights: WeightRule) -> float:
        _, sequence = steps(synthesizer, key="t1n", weights=weights)
        return next(step.effective_weight for step in sequence if step.source == "t2w")

    free = used()
    assert 0.05 < free <= 1, "the trial needs an input that the content lets in"
    assert used(t2w=WeightRule(at_most=free / 4)) == pytest.approx(free / 4, rel=0.02)
    assert used(t2w=WeightRule(at_most=1)) == pytest.approx(free, rel=1e-5)
    assert used(t2w=WeightRule(fixed=0.9)) == pytest.approx(0.9, rel=0.02)


def test_an_input_with_a_bound_is_worth_nothing_without_one_that_may_start(synthesizer: Synthesizer) -> None:
    def worth(**rule) -> dict[str, float]:
        given = {name: STUDY[name] for name in ("t1n", "t2w")}
        return synthesizer.synth(given, ["ct"], control={"ct": FusionRule(**rule)}).explanations["ct"].contribution_db

    faint = worth(weights={"t2w": WeightRule(at_most=1e-6)})
    assert abs(faint["t2w"]) < 0.05 * abs(faint["t1n"])


def test_a_mask_says_where_a_weight_holds(synthesizer: Synthesizer, tmp_path) -> None:
    shape = (144, 24, 14)  # wide, since the coarsest stride sees far across the mask's edge
    study = {name: (head(seed, shape), AFFINE) for seed, name in enumerate(STUDY)}
    mask = np.zeros(shape, np.uint8)
    mask[: shape[0] // 2] = 1
    # stored on another grid: axes flipped and permuted
    turned = nib.Nifti1Image(mask, AFFINE).as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    nib.save(turned, tmp_path / "half.nii.gz")
    free, _ = steps(synthesizer, study, key="t1n")
    none, _ = steps(synthesizer, study, key="t1n", leave_out=["t2w"])
    half, seen = steps(
        synthesizer, study, key="t1n", weights={"t2w": WeightRule(at_most=0, where=tmp_path / "half.nii.gz")}
    )
    assert [s.gate for s in seen if s.source == "t2w"] == [1], "let in somewhere"
    left, right = (abs(half - none), abs(half - free))
    rows = shape[0] // 2
    assert abs(free - none).mean() > 1, "the trial needs an input that matters"
    assert left[: rows - 20].mean() < 0.5 * right[: rows - 20].mean()
    assert right[rows + 20 :].mean() < 0.5 * left[rows + 20 :].mean()


@pytest.mark.parametrize(
    ("target", "rule", "message"),
    [
        ("t2w", {"key": "t1n"}, r"fusion.t2w: not among the targets \(ct\)"),
        ("ct", {"key": "pd"}, r"fusion.ct: pd is not among the inputs \(t1n, t2w, t1c\)"),
        ("ct", {"leave_out": ["t1n", "t2w", "t1c"]}, "fusion.ct.leave_out: no input is left"),
        ("ct", {"key": "t1n", "leave_out": ["t1n"]}, "t1n is to be the key frame and left out"),
        ("ct", {"key": "t1n", "weights": {"t1n": {"fixed": 0.5}}}, "t1n is the key frame and enters whole"),
        ("ct", {"leave_out": ["t2w"], "weights": {"t2w": {"fixed": 0.5}}}, "t2w is left out and has a weight"),
        (
            "ct",
            {"weights": {name: {"fixed": 0.5} for name in ("t1n", "t2w", "t1c")}},
            "enters whole; leave an input without",
        ),
    ],
)
def test_rules_that_cannot_be_followed_are_refused(synthesizer: Synthesizer, target, rule, message) -> None:
    with pytest.raises(UsageError, match=message):
        synthesizer.synth(STUDY, ["ct"], control={target: FusionRule(**rule)})


def test_rules_come_from_set_options() -> None:
    rules = load_control(["fusion.flair.key=T1w", "fusion.flair.leave_out=[t1ce]", "fusion.ct.weights.t2w.at_most=0.3"])
    assert rules == {
        "t2f": FusionRule(key="t1n", leave_out=["t1c"]),
        "ct": FusionRule(weights={"t2w": WeightRule(at_most=0.3)}),
    }


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("fusion.ct.keys=t1n", "unknown setting, did you mean 'key'"),
        ("fusion.ct.key=t9", "unknown modality 't9'"),
        ("fusion.t9.key=t1n", "unknown modality 't9'"),
        ("fusion.ct.weights.t2w.at_most=2", "fusion.ct.weights.t2w.at_most: .*less than or equal to 1"),
        ("fusion.ct.weights.t2w.at_most=true", "fusion.ct.weights.t2w.at_most: .*valid number"),
        ("fusion.ct.weights.t2w.fixed=0", "a weight of 0 everywhere: use leave_out"),
        ("fusion.ct.key=2026-01-01", "fusion.ct.key: .*unknown modality"),
        ("fusion={1: {key: t1n}}", "unknown modality '1'"),
        ("fusion={flair: {key: t1n}, t2f: {key: ct}}", "t2f is given twice, the second time as 't2f'"),
        ("fusion.ct.weights={t1: {fixed: 1}, t1n: {fixed: 1}}", "t1n is given twice"),
        ("fusion.ct.weights.t2w.where=a.nii", "give at_most or fixed, one of the two"),
        ("seed=3", "--set seed: expected fusion.TARGET.key"),
    ],
)
def test_set_options_that_are_no_rules_are_refused(option: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_control([option])


def test_a_progression_starts_at_the_key_frame_alone_and_ends_at_the_result(synthesizer: Synthesizer) -> None:
    predictor = synthesizer._predictor
    images = {
        name: np.random.default_rng(k).uniform(0.1, 1, (5, 32, 32)) for k, name in enumerate(("t1n", "t2w", "t1c"))
    }
    images = {name: array.astype(np.float32) for name, array in images.items()}
    whole = predictor.infer(images, ["ct"])
    found = progressions(predictor, ["ct"], whole)["ct"]
    steps = whole.plan[NAMES.index("ct")]
    assert [stage.source for stage in found.stages] == [NAMES[step.source] for step in steps]
    np.testing.assert_allclose(found.stages[-1].image, whole.means["ct"][0], atol=1e-5)
    key = found.stages[0].source
    alone = predictor.infer({key: images[key]}, ["ct"]).means["ct"][0]
    np.testing.assert_allclose(found.stages[0].image, alone, atol=1e-5)
    assert found.orders == 6
    assert found.order_deviation == 0, "all frames are let in, in whatever order"
    lonely = predictor.module.embeddings[NAMES.index("t2w")]  # let in as key frame alone
    hook = predictor.module.fusion.pre_weight.register_forward_hook(
        lambda _, given, weight: torch.where((given[1] == lonely).all(dim=1), -9.0, 9.0)
    )
    predictor.module.fusion.taught.fill_(1)
    try:
        whole = predictor.infer(images, ["ct"], control=StudyControl({"ct": FusionRule(key="t1n")}))
        shut = progressions(predictor, ["ct"], whole)["ct"]
        free = progressions(predictor, ["ct"], predictor.infer(images, ["ct"]))["ct"]
    finally:
        hook.remove()
        predictor.module.fusion.taught.fill_(0)
    assert shut.orders == 2
    assert shut.order_deviation == 0
    at = [stage.source for stage in shut.stages].index("t2w")
    assert np.array_equal(shut.stages[at].image, shut.stages[at - 1].image), "a closed gate's stage is the one before"
    assert 0 < free.order_deviation < 0.5


def test_what_the_user_holds_in_counts_and_what_he_holds_out_does_not(synthesizer: Synthesizer) -> None:
    """Whatever the gates say: contributions and progression tell of the image that was made."""
    module = synthesizer._predictor.module
    module.fusion.taught.fill_(1)
    hook = module.fusion.pre_weight.register_forward_hook(lambda _, given, weight: torch.full_like(weight, -9.0))
    try:
        rule = FusionRule(key="t1n", weights={"t2w": WeightRule(fixed=1.0)})
        told = synthesizer.synth(STUDY, ["ct"], control={"ct": rule}).explanations["ct"]
    finally:
        hook.remove()
        module.fusion.taught.fill_(0)
    assert {step.source: (step.gate, step.effective_weight) for step in told.steps} == {
        "t1n": (1.0, 1.0), "t2w": (0.0, 1.0), "t1c": (0.0, 0.0),
    }  # fmt: skip
    assert told.contribution_db["t2w"] != 0
    assert told.contribution_db["t1c"] == 0
    at = [stage.source for stage in told.progression.stages].index("t2w")
    assert not np.array_equal(told.progression.stages[at].image, told.progression.stages[at - 1].image)


def test_orders_are_forced_only_as_far_as_the_user_left_them_open(synthesizer: Synthesizer) -> None:
    def orders(study, **rule) -> tuple[int, float]:
        found = synthesizer.synth(study, ["ct"], control={"ct": FusionRule(**rule)}).explanations["ct"].progression
        return found.orders, found.order_deviation

    assert orders(STUDY)[0] == 6
    assert orders(STUDY, key="t1n")[0] == 2
    assert orders(STUDY, leave_out=["t1n", "t2w"]) == (1, 0.0)


def test_the_hash_of_a_mask_is_that_of_the_bytes_that_were_read(
    synthesizer: Synthesizer, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody saves another mask over it while the study is at work."""
    path = tmp_path / "m.nii.gz"
    nib.save(nib.Nifti1Image((head() > 0).astype(np.uint8), AFFINE), path)
    first, true = sha256_file(path), control.read_labels

    def replaced(given):
        read = true(given)
        nib.save(nib.Nifti1Image((head() > 400).astype(np.uint8), AFFINE), path)
        return read

    monkeypatch.setattr(control, "read_labels", replaced)
    rule = FusionRule(weights={"t2w": WeightRule(at_most=0.5, where=path)})
    space = Workspace.around(Volume(head(), Grid(SHAPE, AFFINE), "t1n"), 2.5)
    found = StudyControl.of({"ct": rule}, ["t1n", "t2w"], ["ct"], space)
    assert found.hashes == {path: first}
    assert sha256_file(path) != first


def test_a_mask_outside_the_study_is_refused(synthesizer: Synthesizer, tmp_path) -> None:
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), AFFINE), tmp_path / "empty.nii.gz")
    with pytest.raises(UsageError, match=r"empty.nii.gz: no voxel of this mask lies in the study"):
        steps(synthesizer, weights={"t2w": WeightRule(at_most=0.5, where=tmp_path / "empty.nii.gz")})


def test_with_many_inputs_every_allowed_key_is_tried() -> None:
    sequence = tuple(range(7))
    tried = _orders(sequence, torch.ones(7, dtype=torch.bool))
    assert len(tried) == 6
    assert len({order[0] for order in tried}) > 3
    forced = _orders(sequence, torch.arange(7) == 4)
    assert len(forced) == 6
    assert {order[0] for order in forced} == {4}
    assert all(sorted(order) == list(sequence) for order in tried + forced)


def test_standard_errors_and_fine_detail_are_in_the_unit_of_the_image(
    synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that copies its input: its answer holds all that the input does, on the full grid, cut to the scale."""
    true = SlicePredictor.infer

    def copying(self, images, targets, *more, **named):
        ones = np.ones_like(images["t1n"])
        return replace(
            true(self, images, targets, *more, **named),
            means=dict.fromkeys(targets, images["t1n"]),
            shares={target: {"t1n": ones} for target in targets},
            variances=dict.fromkeys(targets, 0.04 * ones),
        )

    monkeypatch.setattr(SlicePredictor, "infer", copying)
    image = head() + 60 * np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32) * (head() > 0)
    made = synthesizer.synth({"t1n": (image, AFFINE)}, ["t1n", "t2w"])
    inner = np.zeros(SHAPE, bool)
    inner[4:-4, 4:-4, 3:-3] = True
    inner &= image != 0
    scale = made.scalings["t1n"]
    np.testing.assert_allclose(made["t1n"].array[inner], np.clip(image, scale.low, scale.high)[inner], atol=0.5)
    for name, width in (("t1n", scale.high - scale.low), ("t2w", 800)):
        np.testing.assert_allclose(made.deviations[name].array[inner], 0.2 * width, rtol=1e-3)


@pytest.mark.parametrize(("part", "value"), [("mean", np.inf), ("mean", np.nan), ("log_variance", np.nan)])
def test_what_is_no_number_is_an_error_and_no_image(
    synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch, part: str, value: float
) -> None:
    """One voxel of one slice, of one of two targets."""
    true = SlicePredictor.run

    def broken(self, *given):
        made = true(self, *given)
        getattr(made, part)[-1, 3, 3] = value
        return made

    monkeypatch.setattr(SlicePredictor, "run", broken)
    with pytest.raises(CheckpointError, match="what it makes of this study is not finite; its weights are broken"):
        synthesizer.synth({"t1n": (head(), AFFINE)}, ["t2w", "t1c"])


def test_mean_presence_is_over_voxels_and_not_over_slices(
    synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An input that is there in the one small slice alone: its share is that of the voxels."""
    predictor, images = synthesizer._predictor, {}
    for name in ("t1n", "t2w"):
        images[name] = np.zeros((2, 32, 32), np.float32)
        images[name][0, 4:12, 4:12] = 0.5  # 64 voxels
        images[name][1, 4:28, 4:28] = 0.5  # 576
    true = SlicePredictor.run

    def shown(self, *given):
        made = true(self, *given)
        made.fused.presence.fill_(1.0)
        made.fused.presence[1] = 0.0
        return made

    monkeypatch.setattr(SlicePredictor, "run", shown)
    found = predictor.infer(images, ["ct"]).effective["ct"]
    assert found["t1n"] == pytest.approx(64 / (64 + 576))


@pytest.mark.parametrize(("limit", "method"), [(4, "shapley"), (2, "leave-one-out")])
def test_inputs_whose_worth_adds_up_each_contribute_their_own(
    synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch, limit: int, method: str
) -> None:
    worth = {1: 1.0, 2: -0.5, 3: 4.0}
    monkeypatch.setattr(contribution, "EXACT_UP_TO", limit)
    monkeypatch.setattr(contribution, "present", lambda *_: list(worth))
    monkeypatch.setattr(
        contribution, "predicted_psnr", lambda _, members, target: -10 * np.log10(0.05) + sum(worth[i] for i in members)
    )
    found = contribution.contributions(synthesizer._predictor, NAMES[1:], ["ct"], SimpleNamespace())
    assert found.method == method
    assert found.decibels["ct"] == pytest.approx({NAMES[i]: db for i, db in worth.items()})


def test_a_progression_shows_its_fullest_slice_and_the_spread_over_orders(
    synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, rng = synthesizer._predictor, np.random.default_rng(0)
    images = {name: np.zeros((5, 32, 32), np.float32) for name in ("t1n", "t2w", "t1c")}
    for array in images.values():
        for z, r in enumerate((9, 10, 11, 14, 10)):
            array[z, 16 - r : 16 + r, 16 - r : 16 + r] = rng.uniform(0.1, 1, (2 * r, 2 * r))
    whole = predictor.infer(images, ["ct"])
    found = progressions(predictor, ["ct"], whole)["ct"]
    shown = found.stages[-1].image
    assert (shown != 0).sum() == 28**2, "of the fourth"
    np.testing.assert_allclose(shown[2:30, 2:30], whole.means["ct"][3, 2:30, 2:30], atol=1e-5)
    turns = cycle([0.3, 0.7])  # every other order lets in other frames, and its image is another
    monkeypatch.setattr(progression, "_let_in", lambda steps: next(turns))
    monkeypatch.setattr(
        progression, "proposed",
        lambda inference, members, j: (torch.full_like(inference.sight.scene.inside, members, dtype=torch.float32),)
        if isinstance(members, float) else proposed(inference, members, j),
    )  # fmt: skip
    assert progressions(predictor, ["ct"], whole)["ct"].order_deviation == pytest.approx(0.2, rel=1e-5)


# --- the gatekeeper


def lumps(contrast: int, shift: int = 0) -> np.ndarray:
    """A stripped brain with the same borders in every contrast, moved by so many voxels of 2 mm."""
    rough = np.random.default_rng(0).standard_normal((40, 48, 24))
    labels = np.digitize(ndimage.gaussian_filter(rough, 2.0), [-0.08, -0.03, 0.03, 0.08])
    levels = np.random.default_rng(contrast).permutation(5) * 100 + 200
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in rough.shape), indexing="ij")
    noise = np.random.default_rng(9 + contrast).normal(0, 10, rough.shape)
    return np.roll(np.where(x**2 + y**2 + z**2 < 0.6, levels[labels] + noise, 0), shift, axis=1).astype(np.float32)


def test_a_displaced_input_is_told_or_put_right(synthesizer: Synthesizer) -> None:
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    study = {"t1n": (lumps(0), affine), "t2w": (lumps(1, shift=3), affine)}
    results = {how: synthesizer.synth(study, ["t1c"], align=how) for how in ("off", "warn", "fix")}
    told = {how: result.record["warnings"] for how, result in results.items()}
    assert told["off"] == told["fix"] == []
    assert [line[:11] for line in told["warn"]] == ["t2w lies 6."]
    off = {how: result.record["checks"]["alignment"] for how, result in results.items()}
    assert off["off"] == {}
    assert off["warn"]["t2w"]["shift"] == pytest.approx([0, 6, 0], abs=0.5)
    assert off["fix"]["t2w"]["off"] < 0.7
    assert results["fix"].record["checks"]["registration"]["t2w"]["transform"]
    there = lumps(1)
    back = results["fix"].inputs["t2w"].array
    assert np.abs(back - there).mean() < 0.3 * np.abs(results["warn"].inputs["t2w"].array - there).mean()
    np.testing.assert_array_equal(results["off"]["t1c"].array, results["warn"]["t1c"].array)
    with pytest.raises(UsageError, match="align 'sideways': expected one of off, warn, fix"):
        synthesizer.synth(study, ["t1c"], align="sideways")


def test_noise_is_refused_unless_it_is_forced(synthesizer: Synthesizer) -> None:
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    noise = np.where(lumps(1) > 0, np.random.default_rng(0).uniform(100, 900, lumps(1).shape), 0)
    study = {"t1n": (lumps(0), affine), "t2w": (noise, affine)}
    with pytest.raises(DoubtfulScanError, match=r"t2w: named t2w looks like noise.*--force"):
        synthesizer.synth(study, ["t1c"])
    record = synthesizer.synth(study, ["t1c"], force=True).record
    assert record["checks"]["forced"] is True
    assert record["checks"]["doubts"][0]["refuses"] is True
    assert record["warnings"][0].startswith("t2w looks like noise")
