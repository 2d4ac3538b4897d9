"""Real scans made into DICOM studies, anonymous, and completed by the bundled model: one command each."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medk2n.cli.main import main

from .sources import CONTRASTS, Patient, classic, enhanced
from .test_synth_dicom import complaints, read, values

ADC = {"SeriesDescription": "ep2d_diff ADC", "ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]}
DWI = {"SeriesDescription": "ep2d_diff", "ScanningSequence": "EP", "DiffusionBValue": 1000.0}
ATTRIBUTES = CONTRASTS | {"flair": CONTRASTS["t2f"], "adc": ADC, "dwi": DWI}
STUDIES = {
    "BraTS-GLI-00000-000": (("t1n", "t1c", "t2w"), "t2f", classic),
    "openMS-patient07": (("t1n", "t2w", "t2f"), "t1c", enhanced),
    "ISLES22-0009": (("dwi", "adc", "flair"), "t2w", classic),
}


def make(folder: Path, source: Path, names: tuple[str, ...], writer) -> None:
    """Write the images of a study as series of 16-bit integers with a slope."""
    patient = Patient()
    for number, name in enumerate(names, 1):
        image = nib.load(source / f"{name}.nii.gz")
        array = np.asarray(image.dataobj, np.float64)
        slope = float(f"{np.abs(array).max() / 32000:.6g}")
        place = folder / name / "image" if writer is enhanced else folder / name
        stored = np.rint(array / slope).astype(np.int16)
        writer(place, stored, image.affine, patient, number=number, slope=slope, **ATTRIBUTES[name])


@pytest.mark.slow
@pytest.mark.skipif("MEDK2N_REAL_DATA" not in os.environ, reason="MEDK2N_REAL_DATA names no folder of real scans")
@pytest.mark.parametrize("name", STUDIES)
def test_a_real_study_is_completed(tmp_path, name):
    names, target, writer = STUDIES[name]
    make(tmp_path / "study", Path(os.environ["MEDK2N_REAL_DATA"]) / "volumes" / name, names, writer)
    out = tmp_path / "out"
    arguments = ["-t", target, "-o", str(out), "--format", "both", "--no-burn-in", "--device", "cpu"]
    assert main(["synth", str(tmp_path / "study"), *arguments]) == 0
    images = sorted(out.glob("*.nii.gz"))
    assert len(images) == 2
    for path in images:
        series = read(path.with_name(path.name.removesuffix(".nii.gz") + "_dicom"))
        step = float(series[0].RescaleSlope)
        assert np.abs(values(series) - np.asarray(nib.load(path).dataobj)).max() <= 0.501 * step + 1e-3
        assert complaints("dciodvfy", Path(series[len(series) // 2].filename)) == []
