"""Steps do what they say to scans whose truth is known, and a run of them can be stopped, repeated and trusted."""

import json
import pickle
import shutil
import signal
import subprocess
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from medk2n.cli.main import main
from medk2n.config.schema import load_config
from medk2n.data import stored as stored_module
from medk2n.data.batches import Augmentation, Store, draw_batch
from medk2n.data.discover import discover, discover_study
from medk2n.data.itk import RAS_TO_LPS
from medk2n.data.patient import is_stripped
from medk2n.data.prepared import read_record
from medk2n.data.stored import SLICES, Stored
from medk2n.data.working import Workspace, load_working
from medk2n.errors import DatasetError, OutputExistsError, SystemLimitError, UsageError
from medk2n.geometry.grid import Grid
from medk2n.io.names import folder_names
from medk2n.io.nifti import read_volume, write_int16
from medk2n.io.volume import LabelMap, Volume
from medk2n.phantom.cohort import make_cohort
from medk2n.preparation import run as run_module
from medk2n.preparation import study as study_module
from medk2n.preparation.ants import AntsRegister
from medk2n.preparation.draft import Draft, read_draft
from medk2n.preparation.n4 import N4
from medk2n.preparation.register import Register, largest_move
from medk2n.preparation.regrid import Regrid
from medk2n.preparation.run import prepare
from medk2n.preparation.strip import MaskCommand, Strip, words_of
from medk2n.preparation.study import Plan
from medk2n.training.reading import read_data

AFFINE = np.array([[-2.0, 0, 0, 30], [0, 2, 0, -40], [0, 0, 4, -20], [0, 0, 0, 1]])
PYTHON = sys.executable


def head(seed: int, levels: tuple[float, ...], shape: tuple[int, int, int] = (32, 40, 12)) -> np.ndarray:
    """A stripped head of blobs, the same borders for the same seed."""
    rng = np.random.default_rng(seed)
    x, y, z = (np.linspace(-1, 1, n).reshape([-1 if a == k else 1 for a in range(3)]) for k, n in enumerate(shape))
    array = np.where(x**2 + y**2 + z**2 < 0.8, levels[0], 0.0)
    for k in range(1, 8):
        cx, cy, cz, r = *rng.uniform(-0.4, 0.4, 3), rng.uniform(0.15, 0.4)
        array[(x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2 < r**2] = levels[k % len(levels)]
    return np.where(array > 0, array + rng.normal(0, 3, shape), 0).astype(np.float32)


T1, T2, FLAIR = (200.0, 300, 120, 80), (150.0, 90, 330, 240), (220.0, 120, 40, 330)


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three studies in whole numbers; the second has no t2f."""
    for k, name in enumerate(("A", "B", "C")):
        for modality, levels in (("t1n", T1), ("t2w", T2), ("t2f", FLAIR)):
            if (name, modality) != ("B", "t2f"):
                save(tmp_path / "data" / name / f"{modality}.nii.gz", np.rint(head(k, levels)).astype(np.int16))
        lesion = (head(k, T2) > 300).astype(np.uint8)
        save(tmp_path / "data" / name / "lesion_mask.nii.gz", lesion)
    return tmp_path / "data"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cohort(
        tmp_path_factory.mktemp("phantom") / "c", subjects=1, seed=3, spacing_mm=4.0, protocols="random", workers=1
    )


def prepared(data: Path, out: Path, plan: Plan | None = None, **options: object) -> run_module.Result:
    return prepare(discover(data), data, out, plan or Plan(), **options)


def volume(array: np.ndarray, affine: np.ndarray = AFFINE, name: str = "t1n", **facts: object) -> Volume:
    return Volume(array.astype(np.float32), Grid(array.shape, affine), name, facts)


def turned(degrees: float, *shift_mm: float) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, -s, 0, shift_mm[0]], [s, c, 0, shift_mm[1]], [0, 0, 1, shift_mm[2]], [0, 0, 0, 1]])


# --- registration


def test_a_planted_displacement_of_a_digital_patient_is_found(cohort: Path) -> None:
    whole = read_draft(discover(cohort)[0], None)
    reference = whole.scans["t1n"]
    there = turned(4, 5, -7, 3)
    scans = {"t1n": reference}
    for name in ("t2w", "ct"):
        scan = whole.scans[name]
        scans[name] = Volume(scan.array, Grid(scan.grid.shape, there @ scan.grid.affine), name)
    outcome = Register().apply(Draft("p", scans, {}))
    assert not outcome.warnings
    for name in ("t2w", "ct"):
        left = np.array(outcome.facts[name]["transform"]) @ there
        assert largest_move(there, reference.grid) > 2.5
        assert largest_move(left, reference.grid) < 0.5, "at the corner of the field of view"
        moved = outcome.draft.scans[name]
        assert moved.array is scans[name].array, "nothing is resampled"
        np.testing.assert_allclose(moved.grid.affine, reference.grid.affine @ np.eye(4), atol=2.0)
    again = Register().apply(Draft("p", {k: scans[k] for k in ("t1n", "ct")}, {}))
    assert again.facts["ct"] == outcome.facts["ct"], "to the last bit"


def test_ants_finds_a_planted_displacement(cohort: Path) -> None:
    pytest.importorskip("ants", reason="antspyx is not installed: pip install 'medk2n[ants]'")
    reference = read_draft(discover(cohort)[0], None).scans["t1n"]
    there = turned(4, 5, -7, 3)
    moving = read_draft(discover(cohort)[0], None).scans["t2w"]
    moving = Volume(moving.array, Grid(moving.grid.shape, there @ moving.grid.affine), "t2w")
    outcome = AntsRegister().apply(Draft("p", {"t1n": reference, "t2w": moving}, {}))
    assert largest_move(np.array(outcome.facts["t2w"]["transform"]) @ there, reference.grid) < 0.5


def test_what_ants_finds_is_read_as_millimetres_of_the_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for ants tells a turn about a centre: from points of the reference to those of the other."""
    there, seen = turned(4, 5, -7, 3), []

    def registration(fixed, moving, outprefix, **options):
        seen.append((fixed, options["type_of_transform"], options["random_seed"]))
        found = sitk.AffineTransform(3)
        found.SetCenter((3.0, -2.0, 5.0))
        in_lps = RAS_TO_LPS @ there @ RAS_TO_LPS
        found.SetMatrix(in_lps[:3, :3].ravel().tolist())
        found.SetTranslation((in_lps[:3, 3] - (np.eye(3) - in_lps[:3, :3]) @ found.GetCenter()).tolist())
        sitk.WriteTransform(found, f"{outprefix}0GenericAffine.mat")
        return {"fwdtransforms": [f"{outprefix}0GenericAffine.mat"]}

    module = types.SimpleNamespace(registration=registration, from_numpy=lambda array, **place: (array, place))
    monkeypatch.setitem(sys.modules, "ants", module)
    reference = volume(head(0, T1))
    moving = Volume(head(0, T2), Grid(reference.grid.shape, there @ reference.grid.affine), "t2w")
    outcome = AntsRegister().apply(Draft("p", {"t1n": reference, "t2w": moving}, {}))
    np.testing.assert_allclose(outcome.draft.scans["t2w"].grid.affine, reference.grid.affine, atol=1e-3)
    (array, place), kind, _ = seen[0]
    assert kind == "Rigid"
    assert array.shape == reference.grid.shape
    np.testing.assert_allclose(place["direction"] @ np.diag(place["spacing"]), (RAS_TO_LPS @ AFFINE)[:3, :3])


def test_ants_is_asked_for_with_register_and_has_to_be_there(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    command = ["prepare", str(cohort), "--out", str(tmp_path / "out"), "--ants"]
    assert main(command) == 2
    assert "expected --register with it" in capsys.readouterr().err
    monkeypatch.setattr("medk2n.preparation.ants.find_spec", lambda name: None)
    assert main([*command, "--register"]) == 2
    assert "pip install 'medk2n[ants]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_scans_in_place_are_not_touched() -> None:
    draft = Draft("p", {"t1n": volume(head(0, T1)), "t2w": volume(head(0, T2), name="t2w")}, {})
    outcome = Register().apply(draft)
    assert outcome.facts["t2w"]["kept"] == "in place"
    assert outcome.draft.scans == draft.scans


def test_a_move_that_makes_nothing_more_alike_is_refused_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    far = (np.linalg.inv(turned(0, 30, 0, 0)), 1.001)
    monkeypatch.setattr(Register, "_find", lambda *_: far)
    draft = Draft("p", {"t1n": volume(head(0, T1)), "t2w": volume(head(9, T2), name="t2w")}, {})
    outcome = Register().apply(draft)
    assert outcome.draft.scans == draft.scans
    assert outcome.warnings == (
        "t2w is left where it is: a move by up to 15.0 voxels changes its mutual information with t1n by +0.1%, "
        "expected +1%; look at preview.png",
    )


def test_a_mask_moves_with_the_scan_that_it_was_drawn_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Register, "_find", lambda *_: (turned(0, 4, 0, 0), 1.5))
    own = AFFINE @ np.diag([2.0, 2, 1, 1])
    thick = head(0, T2, (16, 20, 12))
    masks = {"lesion": LabelMap(np.ones(thick.shape, int), Grid(thick.shape, own)),
             "brain": LabelMap(np.ones((32, 40, 12), int), Grid((32, 40, 12), AFFINE))}  # fmt: skip
    scans = {"t1n": volume(head(0, T1)), "dwi": volume(thick, own, "dwi")}
    moved = Register().apply(Draft("p", scans, masks)).draft
    assert moved.masks["lesion"].grid.same_as(moved.scans["dwi"].grid)
    np.testing.assert_allclose(moved.scans["dwi"].grid.affine[:3, 3] - own[:3, 3], [4, 0, 0])
    assert moved.masks["brain"] is masks["brain"]


def test_without_a_spacing_nothing_is_registered() -> None:
    scans = {k: volume(head(0, T1), np.eye(4), k, spacing="unknown") for k in ("t1n", "t2w")}
    assert Register().apply(Draft("p", scans, {})).facts == {"skipped": "spacing unknown"}


# --- shading


def test_n4_takes_away_a_planted_shading_and_leaves_what_has_none() -> None:
    shape = (40, 44, 24)
    x = np.linspace(-1, 1, shape[0])[:, None, None]
    z = np.linspace(-1, 1, shape[2])
    shading = np.exp(0.6 * x - 0.4 * z**2 + 0 * np.zeros(shape)).astype(np.float32)
    true = head(1, T1, shape)
    scans = {"t1n": volume(true * shading), "adc": volume(true, name="adc"), "ct": volume(true, name="ct")}
    outcome = N4().apply(Draft("p", scans, {}))
    inside = true > 0
    before, after = (np.std(np.log(a[inside] / true[inside])) for a in
                     (scans["t1n"].array, outcome.draft.scans["t1n"].array))  # fmt: skip
    assert before > 0.18
    assert after < 0.25 * before
    assert (outcome.draft.scans["t1n"].array[~inside] == 0).all()
    assert np.exp(np.log(outcome.draft.scans["t1n"].array[inside]).mean()) == pytest.approx(
        np.exp(np.log(scans["t1n"].array[inside]).mean()), rel=1e-3
    )
    for name in ("adc", "ct"):
        assert outcome.draft.scans[name] is scans[name]
        assert "skipped" in outcome.facts[name]


# --- skull stripping


def brain_draft() -> Draft:
    rng = np.random.default_rng(0)
    array = rng.uniform(50, 90, (16, 16, 12)).astype(np.float32)
    inside = np.zeros(array.shape, int)
    inside[4:12, 4:12, 2:10] = 1
    ct = volume(array - 60, np.eye(4), "ct")
    return Draft(
        "p", {"t1n": volume(array, np.eye(4)), "ct": ct}, {"brain": LabelMap(inside, Grid(array.shape, np.eye(4)))}
    )


def test_what_is_outside_the_mask_becomes_air() -> None:
    draft = brain_draft()
    stripped = Strip("brain").apply(draft).draft
    inside = draft.masks["brain"].array > 0
    for name, air in (("t1n", 0), ("ct", -1000)):
        assert (stripped.scans[name].array[~inside] == air).all()
        np.testing.assert_array_equal(stripped.scans[name].array[inside], draft.scans[name].array[inside])
        assert is_stripped(stripped.scans[name])
    with pytest.raises(DatasetError, match=r"p: no head mask to strip by \(masks: brain\); use --strip-command"):
        Strip("head").apply(draft)


COPY = (
    "import nibabel as n, sys; i = n.load(sys.argv[1]); "
    "n.save(n.Nifti1Image((i.get_fdata() > 70) * 1., {affine}), sys.argv[2])"
)


def command(code: str) -> MaskCommand:
    return MaskCommand(words_of(f"{PYTHON} -c '{code}' {{input}} {{mask}}"))


def test_a_program_makes_the_mask() -> None:
    draft = replace(brain_draft(), masks={})
    made = command(COPY.format(affine="i.affine")).apply(draft).draft
    np.testing.assert_array_equal(made.masks["brain"].array > 0, draft.scans["t1n"].array > 70)
    hostile = MaskCommand(words_of(f"{PYTHON} -c 'import sys; sys.exit(len(sys.argv))' {{input}} {{mask}} ; rm -rf x"))
    with pytest.raises(DatasetError, match="ended with code 7"):  # no shell: `; rm -rf x` are words like others
        hostile.apply(draft)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ('import sys; sys.exit("no licence")', "p: --strip-command ended with code 1: no licence; try it by hand"),
        ("pass", r"wrote no \{mask\}; expected a mask there"),
        (COPY.format(affine="i.affine * 2"), "an affine of its own; expected the grid of its input"),
        (COPY.format(affine="i.affine").replace("70", "999"), "is empty; expected a brain"),
    ],
)
def test_a_program_that_fails_is_told(code: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        command(code).apply(brain_draft())


def test_a_command_that_cannot_be_one_is_refused() -> None:
    with pytest.raises(UsageError, match=r"expected \{input\} and \{mask\} in it"):
        words_of("hd-bet {input}")
    with pytest.raises(UsageError, match="No closing quotation"):
        words_of("'hd-bet {input} {mask}")
    with pytest.raises(UsageError, match="nowhere-to-be-found cannot be started"):
        MaskCommand(("nowhere-to-be-found", "{input}", "{mask}")).apply(brain_draft())


# --- the common grid


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_oblique_study_keeps_its_values_and_places_whichever_axis_is_sliced(axis: int, tmp_path: Path) -> None:
    spacing = np.ones(3)
    spacing[axis] = 3.0
    affine = turned(20, 5, -3, 8) @ np.diag([*spacing, 1]) @ np.diag([-1, 1, -1, 1])
    array = head(2, T1, (12, 14, 16))
    draft = Draft("p", {"t1n": volume(array, affine)}, {})
    made = Regrid(None).apply(draft).draft.scans["t1n"]
    assert made.provenance["slice_axis"] == axis
    write_int16(made, tmp_path / "a.nii")
    back = read_volume(tmp_path / "a.nii", "t1n")
    assert back.grid.same_as(made.grid)
    here = np.argwhere(array > 0)[::37]
    world = here @ affine[:3, :3].T + affine[:3, 3]
    there = np.rint((world - back.grid.affine[:3, 3]) @ np.linalg.inv(back.grid.affine[:3, :3]).T).astype(int)
    np.testing.assert_allclose(back.array[tuple(there.T)], array[tuple(here.T)], atol=0.01)
    assert back.grid.spacing_mm[2] == pytest.approx(3.0), "NIfTI's last axis is its slowest: a slice is one piece"


def test_a_scan_on_another_grid_is_resampled_once_and_by_its_affine(tmp_path: Path) -> None:
    """As in ISLES: diffusion at 2 mm, a finer FLAIR in thick slices, in one scanner space."""
    fine = AFFINE @ np.diag([0.5, 0.5, 1.5, 1])
    fine[:3, 3] += turned(0, 3, 2, 1)[:3, 3]
    for name, affine, shape in (("dwi", AFFINE, (32, 40, 12)), ("t2f", fine, (60, 76, 9))):
        index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
        world = index @ affine[:3, :3].T + affine[:3, 3]
        ramp = 500 + world @ [3.0, -2.0, 1.0]  # linear interpolation gives it back exactly
        save(tmp_path / "d" / "p" / f"{name}.nii.gz", ramp.astype(np.float32), affine)
    result = prepared(tmp_path / "d", tmp_path / "out")
    assert result.prepared == ["p"]
    (subject,) = discover(tmp_path / "out")
    dwi, flair = (subject.readers[name]() for name in ("dwi", "t2f"))
    assert flair.grid.same_as(dwi.grid)
    inner = (slice(4, 26), slice(4, 34), slice(1, 11))
    seen = flair.array[inner]
    covered = np.abs(seen - dwi.array[inner]) < 0.5
    assert covered.mean() > 0.9
    (step,) = (s for s in read_record(tmp_path / "out" / "p").steps if s["step"] == "regrid")
    assert step["done"]["kept_voxels"] == ["dwi"]


def test_a_resampled_stripped_image_stays_stripped_and_keeps_its_scaling(data: Path, tmp_path: Path) -> None:
    prepared(data, tmp_path / "out", Plan(spacing_mm=3.0))
    for subject in discover(tmp_path / "out"):
        source = load_working(discover(data, subjects=[subject.id])[0], 3.0)
        mine = load_working(subject, 3.0)
        assert mine.scalings == source.scalings
        assert mine.stripped
        np.testing.assert_array_equal(mine.foreground, source.foreground)
        apart = np.abs(mine.images["t1n"] - source.images["t1n"])[mine.foreground] * 255
        assert np.median(apart) < 1
        assert np.percentile(apart, 95) < 6, "a source is cut to its scaling before it is resampled"


# --- what is written


@pytest.mark.parametrize(
    ("low", "high", "exact"),
    [(0, 30000, True), (-1000, 3000, True), (0.0, 4.8, False), (-7e-4, 3e-3, False), (1e6, 1e6 + 50, False)],
)
def test_sixteen_bits_hold_an_image_in_its_unit(tmp_path: Path, low: float, high: float, exact: bool) -> None:
    rng = np.random.default_rng(0)
    array = rng.uniform(low, high, (20, 20, 20)).astype(np.float32)
    array = np.rint(array) if exact else array
    array[:3] = 0 if low < 1e6 else low
    assert write_int16(volume(array), tmp_path / "a.nii") == 0
    back = read_volume(tmp_path / "a.nii", "t1n")
    assert np.abs(back.array - array).max() <= (0 if exact else (high - low) / 1000)
    assert len(np.unique(back.array[:3])) == 1
    assert (low >= 1e6) or (back.array[:3] == 0).all()
    assert nib.load(tmp_path / "a.nii").get_data_dtype() == np.int16


def test_a_faulty_voxel_does_not_take_the_bits_of_all_others(tmp_path: Path) -> None:
    array = np.random.default_rng(0).uniform(0, 1, (20, 20, 20)).astype(np.float32)
    array[0, 0, 0] = 1e9
    assert write_int16(volume(array), tmp_path / "a.nii") == 1
    back = read_volume(tmp_path / "a.nii", "t1n").array
    assert np.abs(back - array).ravel()[1:].max() < 1 / 500
    assert 20 < back[0, 0, 0] < 50


def test_ct_stays_in_hounsfield_units(cohort: Path, tmp_path: Path) -> None:
    prepared(cohort, tmp_path / "out", Plan(n4=False, strip="brain"))
    (subject,) = discover(tmp_path / "out")
    source = discover(cohort)[0]
    made, given = subject.readers["ct"]().array, source.readers["ct"]().array
    inside = source.masks["brain"]().array > 0
    np.testing.assert_array_equal(made[inside], given[inside])
    assert (made[~inside] == -1000).all()
    record = read_record(tmp_path / "out" / "sub-001")
    assert record.images["ct"].scaling == {"low": -1000.0, "high": 2000.0, "kind": "fixed"}
    assert "acq-random_run-1_dwi" in {image for image, facts in record.images.items() if not facts.target}
    assert set(subject.inputs_only) == set(source.inputs_only)
    with Image.open(tmp_path / "out" / "sub-001" / "preview.png") as preview:
        assert preview.size == (14 * 224, 16 + 3 * 224)
    loose = discover_study(tmp_path / "out" / "sub-001")
    assert loose.readers["ct"]().provenance["slice_axis"] == 2, "one folder of it is known as prepared too"


def test_arrays_without_a_spacing_stay_so(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    stack = {
        name: np.rint(head(0, levels, (30, 24, 9)).T).astype(np.uint8) for name, levels in (("t1n", T1), ("t2w", T2))
    }
    np.savez(tmp_path / "d" / "p.npz", **stack)
    prepared(tmp_path / "d", tmp_path / "out", Plan(spacing_mm=1.5, register=True))
    (subject,) = discover(tmp_path / "out")
    made = subject.readers["t1n"]()
    assert made.provenance["spacing"] == "unknown"
    assert made.grid.shape == (30, 24, 9)
    assert read_record(tmp_path / "out" / "p").at_spacing(7.0)
    assert Workspace.around(made, 7.0).working.grid.shape == (30, 24, 9)


# --- training from it

NAMES = ("t1n", "t2f", "t2w")
PLAIN = {"batch_size": 4, "crop": 32, "slices": 3, "augmentation": Augmentation(restyle=0.5, corrupt=0.2)}


def batches(studies: list) -> list:
    store = Store(studies, NAMES)
    return [draw_batch([store], [1.0], np.random.default_rng(k), **PLAIN) for k in range(8)]


def test_batches_from_the_disk_are_those_of_the_source(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within one grey level, noise and damage included; the slices are mapped, not read."""
    prepared(data, tmp_path / "out")
    loaded = []
    load = np.load
    monkeypatch.setattr(stored_module.np, "load", lambda *a, **k: loaded.append(load(*a, **k)) or loaded[-1])
    opened = [Stored.opened(s.prepared, NAMES, NAMES) for s in discover(tmp_path / "out")]
    from_disk = batches(opened)
    assert loaded
    assert all(isinstance(array, np.memmap) for array in loaded)
    assert len(pickle.dumps(opened[0])) < 40_000, "a worker gets the path, not the voxels"
    from_source = batches([load_working(s, None) for s in discover(data)])
    for a, b in zip(from_disk, from_source, strict=True):
        assert (a.acquired == b.acquired).all()
        assert (a.foreground == b.foreground).all()
        assert not a.images[~a.acquired].isfinite().any()
        for mine, theirs in ((a.images, b.images), (a.targets, b.targets)):
            assert (mine - theirs)[a.acquired].abs().max() <= 1 / 255 + 1e-6


def test_a_run_reads_sidecars_alone_where_the_spacing_is_its_own(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(data, tmp_path / "out", Plan(spacing_mm=3.0))
    settings = [f"modalities=[{', '.join(NAMES)}]", f"data=['{tmp_path / 'out'}']", "exclude=['C:t2f']"]
    monkeypatch.setattr("medk2n.training.reading.load_working", lambda *a: pytest.fail("voxels were read"))
    mapped = read_data(load_config("tiny", [*settings, "spacing_mm=3.0"]), lambda *a: None)
    monkeypatch.undo()
    assert mapped.subjects == {str(tmp_path / "out"): ["A", "B", "C"]}
    present = [[bool(channels) for channels in study.channels] for study in mapped.stores[0].studies]
    assert present == [[True, True, True], [True, False, True], [True, False, True]], "C has one, but it is left out"
    other = read_data(load_config("tiny", [*settings, "spacing_mm=2.0"]), lambda *a: None)
    assert isinstance(other.stores[0].studies[0].slices, np.ndarray), "at another spacing it is read as any data set"
    monkeypatch.setattr("medk2n.data.prepared.StudyRecord.at_spacing", lambda *a: False)
    read = read_data(load_config("tiny", [*settings, "spacing_mm=3.0"]), lambda *a: None)
    np.testing.assert_allclose(mapped.statistics.slope, read.statistics.slope, atol=1e-6)
    assert mapped.statistics.typical_scaling == read.statistics.typical_scaling


def test_the_same_image_is_known_in_two_prepared_sets(data: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        prepared(data, tmp_path / name, Plan(spacing_mm=3.0))
    settings = [f"modalities=[{', '.join(NAMES)}]", f"data=['{tmp_path / 'one'}']", "spacing_mm=3.0"]
    config = load_config("tiny", [*settings, f"validation='{tmp_path / 'two'}'"])
    with pytest.raises(DatasetError, match=r"A:t1n of .*two is also learned from, as A:t1n of .*one"):
        read_data(config, lambda *a: None)


def test_a_damaged_cache_is_one_line(data: Path, tmp_path: Path) -> None:
    prepared(data, tmp_path / "out")
    folder = tmp_path / "out" / "A"
    (folder / SLICES).write_bytes((folder / SLICES).read_bytes()[:5000])
    with pytest.raises(DatasetError, match=r"cannot be read as a prepared study .*; remove the folder"):
        Stored.opened(folder, NAMES, NAMES)
    (folder / "study.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"study\.json: expected a sidecar of medk2n prepare, format 1"):
        discover(tmp_path / "out")


# --- a run that is stopped, repeated, changed


def stamps(out: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("*/study.json")}


def test_a_stopped_run_goes_on_and_leaves_nothing_half_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    save_cache = Stored.save

    def dies(self: Stored, folder: Path, modalities: tuple[str, ...]) -> None:
        if "B" in folder.name:
            raise KeyboardInterrupt
        save_cache(self, folder, modalities)

    monkeypatch.setattr(Stored, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        prepared(data, out)
    assert sorted(path.name for path in out.glob("[!.]*")) == ["A", "prepared.json"]
    monkeypatch.undo()
    (out / ".medk2n" / "new-0badcafe" / "B").mkdir(parents=True)  # as a killed process leaves it
    (out / ".medk2n" / "new-0badcafe" / "B" / "t1n.nii").write_bytes(b"half")
    before = stamps(out)
    result = prepared(data, out)
    assert (result.there, result.prepared) == (["A"], ["B", "C"])
    assert stamps(out)["A"] == before["A"]
    assert sorted(path.name for path in out.glob("[!.]*")) == ["A", "B", "C", "prepared.json"]
    assert not list((out / ".medk2n").glob("new-*")), "what a killed process left is gone"
    assert [s.id for s in discover(out)] == ["A", "B", "C"]


@pytest.mark.slow
def test_a_killed_run_goes_on(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = [PYTHON, "-m", "medk2n.cli.main", "prepare", str(data), "--out", str(out), "--n4", "--jobs", "1"]
    running = subprocess.Popen(line, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(out.glob("*/study.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    whole = stamps(out)
    assert 1 <= len(whole) < 3
    assert main(line[3:]) == 0
    assert len(stamps(out)) == 3
    assert {name: stamps(out)[name] for name in whole} == whole
    assert not list(out.glob(".medk2n/new-*"))


@pytest.mark.slow
def test_processes_make_the_same_as_one(data: Path, tmp_path: Path) -> None:
    plan = Plan(spacing_mm=3.0, register=True, n4=True)
    for jobs in (1, 2):
        prepared(data, tmp_path / str(jobs), plan, jobs=jobs)
    for file in (tmp_path / "1").rglob("*"):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / "2" / file.relative_to(tmp_path / "1")).read_bytes(), file.name


def test_changed_sources_are_refused_and_the_others_go_on(data: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert main(["prepare", str(data), "--out", str(out), "--jobs", "1"]) == 0
    save(data / "B" / "t2w.nii.gz", np.rint(head(8, T2)).astype(np.int16))
    assert main(["prepare", str(data), "--out", str(out), "--jobs", "1"]) == 3
    told = capsys.readouterr()
    assert r"B was prepared from other files (B/t2w.nii.gz is not what it was); remove the folder" in told.err
    assert "0 subjects prepared, 2 were there before, 1 failed" in told.out
    shutil.rmtree(out / "B")
    assert main(["prepare", str(data), "--out", str(out), "--jobs", "1"]) == 0
    assert "1 subjects prepared, 2 were there before" in capsys.readouterr().out


def test_other_settings_are_refused_unless_all_is_to_be_made_again(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepared(data, out)
    with pytest.raises(OutputExistsError, match=r"other settings \(regrid: spacing_mm None, now spacing_mm 3.0\)"):
        prepared(data, out, Plan(spacing_mm=3.0))
    with pytest.raises(OutputExistsError, match=r"other settings \(n4: off, now levels 4"):
        prepared(data, out, Plan(n4=True))
    (out / "notes").mkdir()
    assert prepared(data, out, Plan(spacing_mm=3.0), overwrite=True).prepared == ["A", "B", "C"]
    assert (out / "notes").is_dir(), "what is not ours stays"
    (out / "B" / "desc-brain_mask.nii").write_text("corrected by hand")
    with pytest.raises(OutputExistsError, match=r"desc-brain_mask\.nii is there, is not as medk2n left it"):
        prepared(data, out, overwrite=True)
    with pytest.raises(OutputExistsError, match=r"A/\w+\.nii\.gz is there, is not as medk2n left it"):
        prepared(data, data, overwrite=True)


def test_one_bad_subject_is_a_complaint(data: Path, tmp_path: Path, capsys) -> None:
    (data / "B" / "t2w.nii.gz").write_bytes(b"no image")
    manifest = tmp_path / "m.json"
    line = ["prepare", str(data), "-o", str(tmp_path / "out"), "--jobs", "1", "--manifest", str(manifest)]
    assert main(line) == 3
    assert "medk2n: B failed: " in capsys.readouterr().err
    told = json.loads(manifest.read_text())
    assert (told["prepared"], list(told["failed"]), told["exit_code"]) == (["A", "C"], ["B"], 3)
    assert [s.id for s in discover(tmp_path / "out")] == ["A", "C"]
    assert main(["prepare", str(data), "-o", str(tmp_path / "all"), "--strip", "brain", "--jobs", "1"]) == 2
    assert "all 3 subjects failed; the first: A: no brain mask to strip by" in capsys.readouterr().err


def test_a_full_disk_ends_the_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise SystemLimitError("disk full")

    monkeypatch.setattr(study_module, "write_labels", full)
    with pytest.raises(SystemLimitError, match="disk full"):
        prepared(data, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".medk2n", "prepared.json"]


def test_folders_of_ids_that_no_folder_may_have_are_told_apart() -> None:
    assert folder_names(["sub-01_ses-2"]) == {"sub-01_ses-2": "sub-01_ses-2"}
    ids = ["a/b", "a b", "..", ".hidden", "a-b", "", "x" * 300, "x" * 301, "\udce9", "B", "b"]
    names = set(folder_names(ids).values())
    assert len({name.casefold() for name in names}) == len(ids)
    assert max(map(len, names)) < 200
    assert all(name[0] != "." and "/" not in name for name in names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--strip", "brain", "--strip-command", "x {input} {mask}"], "expected one of them"),
        (["--spacing", "0"], "--spacing 0: expected from 0.01 to 50 mm"),
        (["--spacing", "inf"], "--spacing inf: expected from 0.01 to 50 mm"),
        (["--spacing", "1e9"], "--spacing 1e+09: expected from 0.01 to 50 mm"),
        (["--reference", "t9"], "--reference t9: unknown modality"),
        (["--strip-command", "hd-bet {input}"], "expected {input} and {mask} in it"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(data: Path, tmp_path: Path, capsys, options, message) -> None:
    assert main(["prepare", str(data), "--out", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_reference_can_be_chosen(data: Path, tmp_path: Path) -> None:
    wide = AFFINE @ np.diag([1.0, 1, 2, 1])
    save(data / "A" / "t2w.nii.gz", np.rint(head(0, T2, (32, 40, 6))).astype(np.int16), wide)
    prepared(data, tmp_path / "out", Plan(reference="t2w"))
    a, b, _ = discover(tmp_path / "out")
    assert a.readers["t1n"]().grid.shape == (32, 40, 6)
    assert b.readers["t1n"]().grid.shape == (32, 40, 12)


def test_a_scan_that_changes_meanwhile_is_not_prepared(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = study_module._through_steps

    def changed_meanwhile(subject: object, plan: Plan, keeper: object) -> object:
        done = whole(subject, plan, keeper)
        if subject.id == "A":
            save(data / "A" / "t1n.nii.gz", np.rint(head(9, T1)).astype(np.int16))
        return done

    monkeypatch.setattr(study_module, "_through_steps", changed_meanwhile)
    result = prepared(data, tmp_path / "out")
    assert "t1n.nii.gz: was changed while it was prepared; prepare it again" in result.failed["A"]
    assert sorted(result.prepared) == ["B", "C"]
