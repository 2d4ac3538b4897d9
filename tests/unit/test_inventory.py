"""An inventory tells what is there and what looks wrong, and keeps quiet about what is right."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medk2n.cli.main import main
from medk2n.data.discover import discover
from medk2n.data.inventory import Found, take_inventory
from medk2n.errors import VolumeReadError
from medk2n.gatekeeper import Gatekeeper
from medk2n.io.volume import Volume

AFFINE = np.diag([1.5, 1.5, 3.0, 1.0])


def brain(seed: int, contrast: int) -> np.ndarray:
    """Blobs with the same borders in every contrast, in quite other grey levels."""
    rng = np.random.default_rng(seed)
    x, y, z = np.mgrid[-1:1:40j, -1:1:44j, -1:1:20j]
    labels = np.zeros(x.shape, int)
    for k in range(1, 7):
        cx, cy, cz, r = *rng.uniform(-0.4, 0.4, 3), rng.uniform(0.2, 0.5)
        labels[(x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2 < r**2] = k
    head = x**2 + y**2 + z**2 < 0.8
    levels = np.random.default_rng(10 + contrast).permutation(7) * 100 + 100
    noise = np.random.default_rng(99 * seed + contrast).normal(0, 8, x.shape)
    return np.where(head, levels[labels] + noise, 0).astype(np.float32)


def test_a_spacing_that_nobody_stated_is_not_made_up(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", t1n=brain(0, 0).astype(np.uint8))
    (image,) = take_inventory(discover(tmp_path)).images
    assert image.spacing_mm is None


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four studies: a good one, one that lacks t2w and has the first one's t1n, one displaced, one damaged."""
    root = tmp_path_factory.mktemp("studies")

    def save(study: str, name: str, array: np.ndarray) -> None:
        (root / study).mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(array, AFFINE), root / study / f"{study}-{name}.nii.gz")

    for study, seed in (("A", 0), ("C", 2), ("D", 3)):
        for contrast, name in enumerate(("t1n", "t2w")):
            save(study, name, brain(seed, contrast))
    save("B", "t1n", brain(0, 0))
    save("B", "t1c", brain(0, 2))
    save("C", "t2f", np.roll(brain(2, 3), 3, axis=1))
    (root / "D" / "D-t2f.nii.gz").write_bytes(b"no image")
    return root


def test_complaints_are_what_is_wrong_and_nothing_else(data: Path) -> None:
    def examine(volumes, first) -> Found:
        examined = Gatekeeper().examine(volumes, first)
        return examined.doubts, examined.pairs

    inventory = take_inventory(discover(data), examine=examine)
    told = {(c.kind, c.subject, c.modality): c.what for c in inventory.complaints}
    assert set(told) == {
        ("duplicate", "A", "t1n"),
        ("duplicate", "B", "t1n"),
        ("displaced", "C", "t2f"),
        ("unreadable", "D", "t2f"),
    }
    assert told["duplicate", "A", "t1n"] == "has the same voxels as t1n of B"
    assert "t2f lies 4." in told["displaced", "C", "t2f"]
    shifts = {(i.subject, i.modality): i.shift for i in inventory.images}
    assert [key for key in shifts if shifts[key] is None] == [("A", "t1n"), ("B", "t1c"), ("C", "t1n"), ("D", "t1n")]
    np.testing.assert_allclose(shifts["C", "t2f"], (0, 4.5, 0), atol=0.5)
    np.testing.assert_allclose(shifts["C", "t2w"], (0, 0, 0), atol=0.5)
    assert inventory.patterns() == {("t1n", "t2w"): ["A", "D"], ("t1n", "t1c"): ["B"], ("t1n", "t2w", "t2f"): ["C"]}


def test_index_writes_tables_and_a_figure_and_ends_with_3(data: Path, tmp_path: Path, capsys) -> None:
    assert main(["index", str(data), "--out", str(tmp_path / "out")]) == 3
    assert "4 subjects, 9 images" in capsys.readouterr().out
    names = sorted(p.name for p in (tmp_path / "out").glob("[!.]*"))
    assert names == ["index.csv", "index.json", "index.md", "index.png"]
    rows = list(csv.DictReader((tmp_path / "out" / "index.csv").read_text().splitlines()))
    assert [r["shape"] for r in rows] == ["40 44 20"] * 9
    assert json.loads((tmp_path / "out" / "index.json").read_text())["images"][0]["orientation"] == "RAS"
    assert "| unreadable | D | t2f |" in (tmp_path / "out" / "index.md").read_text()
    assert main(["index", str(data), "--out", str(tmp_path / "out")]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_a_study_that_cannot_be_examined_ends_nothing(tmp_path: Path) -> None:
    for subject in ("a", "b"):
        place = tmp_path / subject / "t1n.nii.gz"
        place.parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(brain(ord(subject), 0), AFFINE), place)

    def examine(volumes: Mapping[str, Volume], reference: str) -> Found:
        if "/a/" in volumes[reference].provenance["path"]:
            raise VolumeReadError("no contrast inside the foreground")
        return (), {}

    found = take_inventory(discover(tmp_path), examine=examine)
    assert [(c.subject, c.kind, c.what) for c in found.complaints] == [
        ("a", "unreadable", "no contrast inside the foreground")
    ]
    assert [image.subject for image in found.images] == ["a", "b"]
