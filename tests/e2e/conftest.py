"""A study of small scans: with the model of random weights enough to walk every path of the command line."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medk2n.cli.main import main

SHAPE = (22, 26, 18)
AFFINE = np.array([[2.0, 0.1, 0, -20], [-0.1, 2.0, 0, -24], [0, 0, 2.5, -18], [0, 0, 0, 1]])


def scan(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """A ball with texture in a constant background, like a skull-stripped brain; int16."""
    rng = np.random.default_rng(seed)
    radius = sum(((np.arange(n) - n / 2) / (n / 2.4)).reshape([-1 if a == axis else 1 for a in range(3)]) ** 2
                 for axis, n in enumerate(shape))  # fmt: skip
    return np.where(radius < 1, 300 + 200 * radius + rng.normal(0, 20, shape), 0).astype(np.int16)


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


@pytest.fixture
def study(tmp_path) -> Path:
    """A folder with t1n and t2w."""
    for seed, name in enumerate(("t1n", "t2w")):
        save(tmp_path / "patient-7" / f"{name}.nii.gz", scan(seed))
    return tmp_path / "patient-7"


@pytest.fixture
def synth(model, tmp_path):
    """Run the command with the test model into `out`; returns its exit code."""

    def run(*arguments: object, out: Path = tmp_path / "out") -> int:
        return main(["synth", *map(str, arguments), "-o", str(out), "--model", str(model), "--device", "cpu"])

    return run
