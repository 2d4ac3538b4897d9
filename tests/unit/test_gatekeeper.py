"""The gatekeeper tells bad scans by what they show, says how far they lie off, and is quiet about good ones."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from medk2n.cli.main import main
from medk2n.data.agreement import Agreement, compare
from medk2n.data.coarse import coarse
from medk2n.data.doubts import REFUSED, of_identity, of_pair
from medk2n.data.scan import look
from medk2n.errors import DoubtfulScanError
from medk2n.gatekeeper import Gatekeeper
from medk2n.geometry.grid import Grid
from medk2n.identity.texts import NOTHING
from medk2n.io.volume import Volume

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
SHAPE = (72, 80, 40)


def brain(seed: int, contrast: int) -> np.ndarray:
    """Smooth lumps with the same borders in every contrast, in quite other grey levels; not alike on both sides."""
    rng = np.random.default_rng(seed)
    lumps = ndimage.gaussian_filter(rng.standard_normal(SHAPE), (3, 3, 2))
    labels = np.digitize(lumps, np.quantile(lumps, [0.2, 0.4, 0.6, 0.8]))
    levels = np.random.default_rng(10 + contrast).permutation(5) * 100 + 200
    x, y, z = (np.linspace(-1, 1, n) for n in SHAPE)
    head = (x[:, None, None] / 0.7) ** 2 + (y[:, None] / 0.8) ** 2 + (z / 0.85) ** 2 < 1
    noise = np.random.default_rng(99 * seed + contrast).normal(0, 12, SHAPE)
    return np.where(head, levels[labels] + noise, 0).astype(np.float32)


def volume(array: np.ndarray, name: str = "t1n", affine: np.ndarray = AFFINE, **about: str) -> Volume:
    return Volume(array.astype(np.float32), Grid(array.shape, affine), name, about)


GOOD = volume(brain(0, 0))
INSIDE = GOOD.array > 0


@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1e11])
def test_no_unit_makes_two_scans_less_alike(scale: float) -> None:
    other = volume(brain(0, 1), "t2w")
    seen, scaled = (compare(coarse(GOOD), coarse(volume(other.array * factor, "t2w"))) for factor in (1.0, scale))
    assert seen is not None
    assert scaled is not None
    assert (scaled.alike, scaled.mirrored) == pytest.approx((seen.alike, seen.mirrored), rel=0.02)


@pytest.mark.parametrize("voxels", [(0, 0, 0), (3, 0, 0), (0, -4, 2), (5, 5, 0), (-6, 0, -3)])
def test_a_displacement_is_measured_in_mm(voxels: tuple[int, int, int]) -> None:
    seen = compare(coarse(GOOD), coarse(volume(np.roll(brain(0, 1), voxels, (0, 1, 2)), "t2w")))
    assert seen is not None
    np.testing.assert_allclose(seen.shift_mm, voxels * np.diag(AFFINE)[:3], atol=0.6)
    assert seen.move_mm == pytest.approx(np.linalg.norm(seen.shift_mm), abs=1.0)
    told = of_pair("t2w", seen, "t1n")
    if not any(voxels):
        assert told == []
    else:
        (doubt,) = told
        assert (doubt.kind, doubt.refuses) == ("displaced", False)
        assert doubt.what == f"lies {seen.move_mm:.1f} mm off t1n on average over the head"


def test_how_the_axes_are_stored_is_no_displacement_and_no_mirror_image() -> None:
    stored = np.diag([-2.0, 2.0, 3.0, 1.0])
    stored[0, 3] = 2.0 * (SHAPE[0] - 1)
    seen = compare(coarse(GOOD), coarse(volume(brain(0, 1)[::-1], "t2w", stored)))
    assert seen is not None
    assert of_pair("t2w", seen, "t1n") == []


def test_a_mirrored_scan_and_another_patients_are_told_apart() -> None:
    (mirrored,) = of_pair("t2w", compare(coarse(GOOD), coarse(volume(brain(0, 1)[::-1], "t2w"))), "t1n")
    (stranger,) = of_pair("t2w", compare(coarse(GOOD), coarse(volume(brain(5, 1), "t2w"))), "t1n")
    assert (mirrored.kind, stranger.kind) == ("mirrored", "patient")


def test_single_slices_are_not_compared() -> None:
    thin = volume(brain(0, 0)[..., 20:22])
    assert compare(coarse(thin), coarse(thin)) is None
    assert of_pair("t2w", None, "t1n") == []


RNG = np.random.default_rng(3)
BAD = {
    "noise": np.abs(RNG.normal(300, 100, SHAPE)),
    "noise inside a head": np.where(INSIDE, RNG.normal(300, 60, SHAPE), 0),
    "mask": INSIDE * 1.0,
    "label map": np.where(INSIDE, np.digitize(brain(0, 0), [250, 350, 450, 550]) + 1.0, 0),
    "cut off": np.minimum(brain(0, 0), 290),
    "negative": brain(0, 0).max() - brain(0, 0),
    "negative below zero": -brain(0, 0),
}
LIKE = {
    "negative below zero": "negative",
    "noise inside a head": "noise",
    "mask": "mask or label map",
    "label map": "mask or label map",
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_scan_is_refused(kind: str) -> None:
    found = Gatekeeper().examine({"t1n": volume(BAD[kind], path="a.nii"), "t2w": volume(brain(0, 1), "t2w")}, "t1n")
    assert [(doubt.modality, doubt.kind) for doubt in found.doubts] == [("t1n", "scan")]
    assert found.doubts[0].certainty >= REFUSED
    with pytest.raises(DoubtfulScanError, match=rf"a.nii: named t1n looks .*{LIKE.get(kind, kind)}.*add --force"):
        found.admitted()


def test_a_good_study_is_left_in_peace_and_measured() -> None:
    volumes = {name: volume(brain(0, k), name) for k, name in enumerate(("t1n", "t2w", "t2f"))}
    found = Gatekeeper().examine(volumes, "t2w")
    found.admitted()
    assert found.doubts == ()
    assert found.lines() == []
    assert list(found.pairs) == ["t1n", "t2f"]
    assert found.placed().startswith("off t2w by: t1n 0.")
    assert found.unknown == ("t1n", "t2w", "t2f")
    assert found.to_json()["alignment"]["t1n"]["unit"] == "mm"
    assert Gatekeeper().examine(volumes, "t2w", pairs=False).placed() == ""


def test_without_millimetres_distances_are_in_voxels() -> None:
    volumes = {name: volume(brain(0, k), name, np.eye(4), spacing="unknown") for k, name in enumerate(("t1n", "t2w"))}
    volumes["t2w"] = replace(volumes["t2w"], array=np.roll(volumes["t2w"].array, 5, axis=1))
    (doubt,) = Gatekeeper().examine(volumes, "t1n").doubts
    assert " voxels off t1n" in doubt.line


def test_too_little_of_an_image_says_nothing() -> None:
    assert look(volume(np.ones((4, 4, 4)))) is None


@pytest.mark.parametrize("thickness", [1.0, 3.0, 8.0])
def test_one_slice_is_noise_or_not_however_thick_it_is(thickness: float) -> None:
    affine = np.diag([1.0, 1.0, thickness, 1.0])
    steady = [look(volume(array[..., 20:21], affine=affine)).steady for array in (brain(0, 0), BAD["noise"])]
    assert steady[0] > 0.4 > 0.15 > steady[1]


def test_a_certainty_rises_with_what_was_measured() -> None:
    pairs = [Agreement(mm, (mm, 0, 0), 1.2, 0.6, 0.3) for mm in (1.9, 2.1, 3.0, 9.0)]
    told = [of_pair("t2w", pair, "t1n") for pair in pairs]
    assert told[0] == []
    certainties = [doubts[0].certainty for doubts in told[1:]]
    assert certainties == sorted(certainties)
    assert certainties[1] == pytest.approx(REFUSED)
    assert of_pair("t2w", replace(pairs[3], gain=1.01), "t1n") == [], "no more alike there"


class Seer:
    """An identity that sees t2w in everything."""

    names = ("t1n", "t2w", NOTHING)
    acquired = ("t1n", "t2w")

    def probabilities(self, slices: np.ndarray) -> dict[str, float]:
        assert slices.ndim == 3
        return {"t1n": 0.005, "t2w": 0.99, NOTHING: 0.005}


def test_a_scan_that_is_recognised_as_another_is_refused_and_one_that_v_never_learned_is_not_judged() -> None:
    volumes = {name: volume(brain(0, k), name) for k, name in enumerate(("t1n", "t2w", "adc"))}
    found = Gatekeeper(Seer(), 2.0).examine(volumes, "t2w")
    (doubt,) = found.doubts
    assert doubt.line == "t1n looks like t2w (certainty 0.99)"
    assert found.unknown == ("adc",)
    assert found.recognised == {"t1n": 0.005, "t2w": 0.99}
    with pytest.raises(DoubtfulScanError, match="t1n: named t1n looks like t2w"):
        found.admitted()


def test_names_are_judged_by_what_they_leave_open() -> None:
    known = ("t1c", "t1n", "t2w")
    assert of_identity("t1n", "t1n", {"t1n": 0.6, "t1c": 0.4}, known) == []
    assert of_identity("t1n", "t1n", {"t1n": 0.15, "t1c": 0.85}, known) == []
    assert of_identity("t1n", "t1n", {"t1n": 0.05, "t1c": 0.95}, known)[0].refuses is False
    assert of_identity("t1n", "t1n", {"t1n": 0.01, NOTHING: 0.99}, known) == [], "V has met few bodies"
    assert of_identity("t1c", "t1c", {"t1c": 0.01, "t1n": 0.985, "t2w": 0.005}, known)[0].refuses
    assert of_identity("adc", "adc", {"t1n": 0.5, "t1c": 0.5}, known) == []
    assert of_identity("adc", "adc", {"adc": 0.01, "t2w": 0.985}, known)[0].refuses is False, (
        "only digital ones were met"
    )


# --- the verbs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good study, one with noise for a t2w, and one with a t2w mirrored left to right."""
    root = tmp_path_factory.mktemp("studies")
    for study, t2w in (("A", brain(0, 1)), ("B", BAD["noise inside a head"]), ("C", brain(0, 1)[::-1])):
        (root / study).mkdir()
        for name, array in (("t1n", brain(0, 0)), ("t2w", t2w)):
            nib.save(nib.Nifti1Image(array.astype(np.float32), AFFINE), root / study / f"{study}-{name}.nii.gz")
    return root


def test_index_tells_what_is_no_scan_and_what_is_mirrored(data: Path, tmp_path: Path) -> None:
    assert main(["index", str(data), "--out", str(tmp_path / "out")]) == 0
    told = json.loads((tmp_path / "out" / "index.json").read_text())["complaints"]
    told = [(c["kind"], c["subject"], c["modality"]) for c in told if c["kind"] != "duplicate"]
    assert told == [("no scan", "B", "t2w"), ("mirrored", "C", "t2w")]


def test_prepare_refuses_noise_unless_it_is_forced_and_keeps_what_it_doubted(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["prepare", str(data), "--jobs", "1", "--out"]
    assert main([*command, str(tmp_path / "out")]) == 3
    told = capsys.readouterr().err
    assert "B-t2w.nii.gz: named t2w looks like noise" in told
    assert "warning: C: t2w looks mirrored left to right against t1n" in told
    assert sorted(p.name for p in (tmp_path / "out").glob("[ABC]")) == ["A", "C"]
    read = json.loads((tmp_path / "out" / "C" / "study.json").read_text())["steps"][0]
    assert [doubt["kind"] for doubt in read["checks"]["doubts"]] == ["mirrored"]
    assert main([*command, str(tmp_path / "all"), "--force", "--subjects", "B"]) == 0
    forced = json.loads((tmp_path / "all" / "B" / "study.json").read_text())["steps"][0]["checks"]
    assert forced["forced"] is True
    assert forced["doubts"][0]["refuses"] is True


def test_evaluate_leaves_out_what_it_refuses_and_writes_what_it_was_told(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studies = tmp_path / "studies"
    for study, t2w in (("A", brain(0, 1)), ("B", BAD["noise inside a head"]), ("C", brain(0, 1)[::-1])):
        (studies / study).mkdir(parents=True)
        for name, array in (("t1n", brain(0, 0)), ("t2w", t2w), ("t2f", brain(0, 2))):  # three: one can be damaged
            image = nib.Nifti1Image(array[..., ::3].astype(np.float32), AFFINE @ np.diag([1, 1, 3, 1]))
            nib.save(image, studies / study / f"{study}-{name}.nii.gz")
    command = ["evaluate", "--data", str(studies), "--model", str(model), "--every", "16", "--device", "cpu"]
    assert main([*command, "--damage", "noise", "--out", str(tmp_path / "out")]) == 3
    told = capsys.readouterr().err
    assert "B-t2w.nii.gz: named t2w looks like noise" in told
    assert "warning: C: t2w looks mirrored" in told
    facts = json.loads((tmp_path / "out" / "table.json").read_text())
    assert list(facts["data"]["failed"]) == ["B"]
    assert {s: [d["kind"] for d in found["doubts"]] for s, found in facts["checks"].items()} == {
        "A": [], "B": ["scan"], "C": ["mirrored"],
    }  # fmt: skip
    table = (tmp_path / "out" / "table.md").read_text()
    assert "The gatekeeper looked at the scans of 3 subjects; it cannot judge the names of t1n, t2f, t2w" in table
    assert re.search(r"\| B \| not scored: .*B-t2w.nii.gz: named t2w looks like noise", table)
    assert re.search(r"\| C \| t2w looks mirrored .* \(certainty [01].\d\d\) \|", table)
    damaged = {row["subject"] for row in csv.DictReader((tmp_path / "out" / "damage.csv").read_text().splitlines())}
    assert damaged == {"A", "C"}, "what was refused is scored nowhere"
    command += ["--subjects", "B", "--modalities", "t1n,t2w", "--force"]
    assert main([*command, "--out", str(tmp_path / "forced")]) == 0
    assert re.search(r"\| B \| t2w looks like noise.*, forced \|", (tmp_path / "forced" / "table.md").read_text())
