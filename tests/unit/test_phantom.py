"""The digital cohort on a coarse grid: files, determinism, and images that agree with their truth."""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from medk2n.errors import OutputExistsError, UsageError, VolumeReadError
from medk2n.io.names import bids_name
from medk2n.phantom.anatomy import load_icbm152
from medk2n.phantom.body import build_body
from medk2n.phantom.cohort import make_cohort
from medk2n.phantom.lesions import draw_lesions, lesion_fractions
from medk2n.phantom.segment import load_head
from medk2n.phantom.tissues import TISSUES
from medk2n.vocabulary import modality

MODALITIES = ("t1n", "t1c", "t2w", "t2f", "pd", "dwi", "adc", "ct")
SEED, SPACING = 5, 5.0


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "cohort"
    return make_cohort(out, subjects=2, seed=SEED, spacing_mm=SPACING, protocols="random", workers=1)


def image(cohort: Path, name: str, subject: str = "001", **entities: str) -> np.ndarray:
    folder = cohort / f"sub-{subject}" / modality(name).bids_datatype
    return nib.load(folder / bids_name(subject, name, **entities)).get_fdata()


def truth(cohort: Path, what: str, subject: str = "001") -> np.ndarray:
    path = cohort / "derivatives" / "truth" / f"sub-{subject}" / "anat" / f"sub-{subject}_desc-{what}.nii.gz"
    return nib.load(path).get_fdata()


def voxels(root: Path) -> dict[str, np.ndarray]:
    """Every image under a subject, by its path within the cohort."""
    return {str(p.relative_to(root)): nib.load(p).get_fdata() for p in sorted(root.rglob("sub-001*.nii.gz"))}


def test_every_modality_has_image_sidecar_and_noise_free_truth(cohort: Path) -> None:
    for name in MODALITIES:
        folder = cohort / "sub-002" / modality(name).bids_datatype
        stored = nib.load(folder / bids_name("002", name))
        assert stored.get_data_dtype() == np.int16
        assert nib.aff2axcodes(stored.affine) == ("R", "A", "S")
        assert np.allclose(stored.header.get_zooms(), SPACING)
        sidecar = json.loads((folder / bids_name("002", name).replace(".nii.gz", ".json")).read_text())
        assert sidecar["Units"] == modality(name).unit
        there = cohort / "derivatives" / "truth" / "sub-002" / modality(name).bids_datatype
        assert (there / bids_name("002", name, desc="noisefree")).is_file()
    assert json.loads((cohort / "sub-002/anat/sub-002_FLAIR.json").read_text())["InversionTime"] == pytest.approx(2.64)


def test_tables_speak_of_every_subject(cohort: Path) -> None:
    with (cohort / "participants.tsv").open() as handle:
        people = list(csv.DictReader(handle, delimiter="\t"))
    assert [row["participant_id"] for row in people] == ["sub-001", "sub-002"]
    with (cohort / "derivatives" / "truth" / "ceilings.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert {(r["subject"], r["modality"], r["region"]) for r in rows} == {
        (f"sub-{s}", m, r) for s in ("001", "002") for m in MODALITIES for r in ("brain", "head")
    }
    for row in rows:
        assert 15 < float(row["noise_psnr_db"]) < 60
        known = row["modality"] not in ("adc", "ct")
        assert (row["unknown_protocol_psnr_db"] != "n/a") == known


def test_not_knowing_the_protocol_costs_more_than_noise(cohort: Path) -> None:
    with (cohort / "derivatives" / "truth" / "ceilings.csv").open() as handle:
        rows = [r for r in csv.DictReader(handle) if r["modality"] in ("t1n", "t2w") and r["region"] == "brain"]
    assert np.mean([float(r["unknown_protocol_psnr_db"]) for r in rows]) < np.mean(
        [float(r["noise_psnr_db"]) for r in rows]
    )


def test_not_knowing_the_protocol_never_beats_noise(cohort: Path) -> None:
    with (cohort / "derivatives" / "truth" / "ceilings.csv").open() as handle:
        rows = [r for r in csv.DictReader(handle) if r["unknown_protocol_psnr_db"] != "n/a"]
    assert rows
    assert all(float(r["unknown_protocol_psnr_db"]) <= float(r["noise_psnr_db"]) for r in rows)


def test_a_diffusion_image_states_its_b_value(cohort: Path) -> None:
    (bval,) = (cohort / "sub-001").rglob("sub-001_dwi.bval")
    assert bval.read_text() == "1000\n"
    assert bval.with_suffix(".bvec").read_text() == "0\n0\n0\n"


@pytest.mark.parametrize("what", ["thesis.txt", "sub-001/anat/sub-001_T1w.nii.gz"])
def test_what_others_made_is_never_replaced(tmp_path: Path, what: str) -> None:
    (tmp_path / "c" / what).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "c" / what).write_text("years of work")
    with pytest.raises(OutputExistsError, match="is not as medk2n left it and would be lost"):
        make_cohort(tmp_path / "c", subjects=1, seed=0, spacing_mm=8.0, workers=1, overwrite=True)
    assert (tmp_path / "c" / what).read_text() == "years of work"


def test_a_strangers_file_in_a_cohort_is_kept(tmp_path: Path) -> None:
    options = {"subjects": 1, "seed": 0, "spacing_mm": 8.0, "workers": 1}
    out = make_cohort(tmp_path / "c", **options)
    make_cohort(out, **options, overwrite=True)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"notes\.txt is there, is not as medk2n left it"):
        make_cohort(out, **options, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"


def test_a_subject_depends_on_seed_and_number_alone(cohort: Path, tmp_path: Path) -> None:
    """Neither on how many subjects there are nor on who makes them."""
    options = {"spacing_mm": SPACING, "protocols": "random"}
    parallel = make_cohort(tmp_path / "more", subjects=3, seed=SEED, workers=2, **options)
    first, again = voxels(cohort), voxels(parallel)
    assert first.keys() == again.keys()
    assert all(np.array_equal(first[name], again[name]) for name in first)
    other = make_cohort(tmp_path / "other", subjects=1, seed=SEED + 1, workers=1, **options)
    assert not np.array_equal(image(cohort, "t1n"), image(other, "t1n"))
    assert not np.array_equal(image(cohort, "t1n"), image(cohort, "t1n", "002"))


def test_random_protocols_add_inputs_and_leave_the_fixed_images_alone(cohort: Path, tmp_path: Path) -> None:
    fixed = make_cohort(tmp_path / "fixed", subjects=1, seed=SEED, spacing_mm=SPACING, workers=1)
    assert not list(fixed.rglob("*acq-random*"))
    assert np.array_equal(image(fixed, "t2w"), image(cohort, "t2w"))
    for name in ("t1n", "t1c", "t2w", "t2f", "pd", "dwi"):
        assert image(cohort, name, acq="random").shape == image(cohort, name).shape
    assert not list(cohort.rglob("*acq-random*_ADC*"))


def test_contrasts_are_those_of_a_textbook(cohort: Path) -> None:
    labels = truth(cohort, "tissue_dseg")
    mean = {
        (m, t): image(cohort, m)[labels == TISSUES[t].label].mean()
        for m in MODALITIES
        for t in ("grey", "white", "csf", "bone")
    }
    assert mean["t1n", "white"] > mean["t1n", "grey"] > mean["t1n", "csf"]
    assert mean["t2w", "csf"] > mean["t2w", "grey"] > mean["t2w", "white"]
    assert mean["t2f", "csf"] < mean["t2f", "white"]
    assert mean["adc", "csf"] > 1.5 * mean["adc", "white"]
    assert mean["ct", "bone"] > 300 > mean["ct", "grey"]
    assert image(cohort, "ct").min() <= -1000


def test_the_stored_adc_recovers_the_tables(cohort: Path) -> None:
    white = binary_erosion(truth(cohort, "tissue_dseg") == TISSUES["white"].label)
    assert np.median(image(cohort, "adc")[white]) == pytest.approx(TISSUES["white"].adc, rel=0.15)


def test_labels_masks_and_head_nest(cohort: Path) -> None:
    brain, head = truth(cohort, "brain_mask") > 0, truth(cohort, "head_mask") > 0
    assert brain.sum() * SPACING**3 / 1e6 == pytest.approx(1.5, abs=0.6)  # litres
    assert head.sum() > 1.5 * brain.sum()
    assert (head | ~brain).mean() > 0.999


def test_stripped_leaves_nothing_around_the_brain(tmp_path: Path) -> None:
    out = make_cohort(tmp_path / "s", subjects=1, seed=1, spacing_mm=6.0, stripped=True, workers=1)
    outside = truth(out, "brain_mask") == 0
    assert not image(out, "t1n")[outside].any()
    assert (image(out, "ct")[outside] == -1000).all()


def test_an_existing_folder_is_refused_then_replaced(tmp_path: Path) -> None:
    out = make_cohort(tmp_path / "c", subjects=2, seed=0, spacing_mm=8.0, workers=1)
    with pytest.raises(OutputExistsError, match="exists already"):
        make_cohort(out, subjects=1, seed=0, spacing_mm=8.0, workers=1)
    assert (out / "sub-002").exists()
    make_cohort(out, subjects=1, seed=0, spacing_mm=8.0, workers=1, overwrite=True)
    assert not (out / "sub-002").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c"]


@pytest.mark.parametrize("wrong", [{"subjects": 0}, {"spacing_mm": 0.1}, {"protocols": "any"}, {"seed": -1}])
def test_senseless_arguments_are_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="expected subjects"):
        make_cohort(tmp_path / "c", **({"subjects": 1, "seed": 0} | wrong))
    assert not list(tmp_path.iterdir())


def test_fractions_fill_the_head() -> None:
    body = build_body(load_icbm152(), np.random.default_rng(3), 6.0)
    total = sum(body.dense(name) for name in body.fractions)
    assert total.max() <= 1.001
    assert np.median(total[body.brain]) == pytest.approx(1, abs=0.01)
    assert total[0].max() == 0  # air beside the head


@pytest.mark.parametrize(
    ("kind", "names"), [("tumour", {"oedema"}), ("stroke", {"stroke"}), ("wm_lesions", {"wm_lesion"})]
)
def test_lesions_of_a_kind_stay_in_their_place(kind: str, names: set[str]) -> None:
    anatomy, rng = load_icbm152(), np.random.default_rng(2)
    plan = draw_lesions(anatomy, rng, kind)
    points = rng.uniform((-60, -90, -30), (60, 60, 60), (4000, 3)).astype(np.float32)
    tissue = {name: np.full(4000, 0.0, np.float32) for name in TISSUES}
    tissue["white"] += 1
    made = lesion_fractions(plan, points, tissue, np.zeros((2, 4000), np.float32), np.full(4000, 30.0, np.float32))
    assert names <= made.keys()
    assert all(share.min() >= 0 and share.max() <= 1 for share in made.values())
    if kind == "tumour":
        away = np.linalg.norm(points - plan.centre_mm, axis=1) > 5 * plan.radius_mm
        assert sum(made.values())[away].max(initial=0) < 0.01
    tissue["white"][:], tissue["csf"][:] = 0, 1
    made = lesion_fractions(plan, points, tissue, np.zeros((2, 4000), np.float32), np.full(4000, 30.0, np.float32))
    assert sum(made.values()).max() < 0.5  # fluid is not ill


def test_mass_effect_moves_tissue_outwards_and_never_folds() -> None:
    plan = draw_lesions(load_icbm152(), np.random.default_rng(0), "tumour")
    along = plan.centre_mm + np.linspace(0.1, 80, 400)[:, None] * np.array([0.0, 1.0, 0.0])
    before = np.linalg.norm(plan.displaced(along.astype(np.float32)) - plan.centre_mm, axis=1)
    after = np.linalg.norm(along - plan.centre_mm, axis=1)
    assert (before <= after + 1e-3).all()
    assert before[30] < 0.97 * after[30]
    assert (np.diff(before) > 0).all()


@pytest.mark.slow
def test_lesion_masks_agree_with_what_is_bright(tmp_path: Path) -> None:
    """In the first subjects of a seed that have one: oedema and white-matter lesions on FLAIR, strokes on DWI."""
    out = make_cohort(tmp_path / "c", subjects=6, seed=0, spacing_mm=4.0, workers=2)
    seen = set()
    for number in range(1, 7):
        subject = f"{number:03d}"
        lesion, white = truth(out, "lesion_mask", subject), truth(out, "tissue_dseg", subject) == TISSUES["white"].label
        for label, name, least in ((2, "t2f", 1.15), (5, "t2f", 1.15), (4, "dwi", 1.3)):
            if (lesion == label).sum() >= 8:
                picture = image(out, name, subject)
                assert picture[lesion == label].mean() > least * picture[white].mean()
                seen.add(label)
        if (lesion == 3).sum() >= 8:
            gained = image(out, "t1c", subject)[lesion == 3].mean() / image(out, "t1n", subject)[lesion == 3].mean()
            usual = image(out, "t1c", subject)[white].mean() / image(out, "t1n", subject)[white].mean()
            assert gained > 1.3 * usual
            seen.add(3)
        if (lesion == 4).sum() >= 8:
            assert image(out, "adc", subject)[lesion == 4].mean() < 0.85 * image(out, "adc", subject)[white].mean()
    assert len(seen) >= 2


@pytest.mark.slow
def test_a_head_can_be_segmented_and_lent(tmp_path: Path) -> None:
    """A digital head, whole, stands for the real one."""
    source = make_cohort(tmp_path / "source", subjects=1, seed=3, spacing_mm=2.0, workers=1)
    anatomy = load_head(source / "sub-001" / "anat" / "sub-001_T1w.nii.gz")
    inside = anatomy.maps[6] > 0
    reference = load_icbm152().maps[6] > 0
    assert 2 * (inside & reference).sum() / (inside.sum() + reference.sum()) > 0.85
    for channel in (0, 1):
        assert 0.2 < anatomy.maps[channel][inside].mean() < 0.7
    assert not anatomy.blurred
    own = nib.load(source / "derivatives/truth/sub-001/anat/sub-001_desc-brain_mask.nii.gz").get_fdata().sum() * 2**3
    assert inside.sum() * np.prod(anatomy.life_size) == pytest.approx(own, rel=0.2)  # lent at its own size


def test_an_image_without_a_brain_is_refused(tmp_path: Path) -> None:
    block = np.zeros((30, 31, 32), np.float32)
    block[10:20, 10:20, 10:20] = np.arange(1000).reshape(10, 10, 10) + 50
    nib.save(nib.Nifti1Image(block, np.diag([2, 2, 2, 1])), tmp_path / "block.nii.gz")
    with pytest.raises(VolumeReadError, match="no brain found"):
        load_head(tmp_path / "block.nii.gz")
