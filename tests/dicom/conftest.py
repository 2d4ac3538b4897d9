"""Small studies of DICOM, made anew for each test."""

from pathlib import Path

import numpy as np
import pytest

from medk2n.cli.main import main

from .sources import CONTRASTS, Patient, classic

SHAPE = (24, 30, 16)
AFFINE = np.array([[-1.9, 0.1, 0.05, 20], [0.1, -1.9, 0.2, 26], [0.08, -0.18, 2.5, -18], [0, 0, 0, 1.0]])


def scan(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """A ball with texture in constant air; int16."""
    rng = np.random.default_rng(seed)
    radius = sum(((np.arange(n) - n / 2) / (n / 2.4)).reshape([-1 if a == axis else 1 for a in range(3)]) ** 2
                 for axis, n in enumerate(shape))  # fmt: skip
    return np.where(radius < 1, 300 + 200 * radius + rng.normal(0, 20, shape), 0).astype(np.int16)


def right_angled(affine: np.ndarray) -> np.ndarray:
    """The nearest affine without shear: slices above each other."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    u, _, v = np.linalg.svd(affine[:3, :3] / spacing)
    out = affine.copy()
    out[:3, :3] = u @ v * spacing
    return out


AFFINE = right_angled(AFFINE)


@pytest.fixture
def patient() -> Patient:
    return Patient()


@pytest.fixture
def study(tmp_path, patient) -> Path:
    """A folder with T1 and T2."""
    folder = tmp_path / "study"
    classic(folder / "a", scan(0), AFFINE, patient, number=2, **CONTRASTS["t1n"])
    classic(folder / "b" / "c", scan(1), AFFINE, patient, number=3, **CONTRASTS["t2w"])
    return folder


@pytest.fixture
def synth(model, tmp_path):
    """Run the command with the test model into `out`; returns its exit code."""

    def run(*arguments: object, out: Path = tmp_path / "out") -> int:
        return main(["synth", *map(str, arguments), "-o", str(out), "--model", str(model), "--device", "cpu"])

    return run
