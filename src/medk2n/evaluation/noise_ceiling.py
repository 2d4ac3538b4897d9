"""The best a predictor can hope for on a digital cohort: its noise-free image, against the scan with its noise.

`medk2n phantom` keeps each scan without noise under `derivatives/truth`. Brought to the working grid and scaled as its
scan, it is measured as any prediction is. What is left is noise, which nobody can predict.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from medk2n.data.discover import discover
from medk2n.data.intensity import Scaling
from medk2n.data.subject import Subject
from medk2n.data.working import WorkingStudy, every_nth, load_working
from medk2n.io.volume import Volume

CEILING = "noise ceiling"
"""Its name beside the methods."""
_TRUTH = Path("derivatives") / "truth"


def noise_free_subjects(data: Path) -> Mapping[str, Subject]:
    """Subject -> its scans without noise; none if `data` is no cohort of `medk2n phantom`."""
    truth = data / _TRUTH
    if not any(truth.glob("sub-*/*/*_desc-noisefree_*")):
        return {}
    return {subject.id: subject for subject in discover(truth)}


def noise_free_images(
    subject: Subject, study: WorkingStudy, spacing_mm: float | None, *, every: int = 1
) -> dict[str, np.ndarray]:
    """Modality -> (s, h, w) without noise, scaled as the scans of `study` are, 0 outside their foreground.

    Args:
        study: the scans on the working grid of `spacing_mm`, every nth slice of it.
    """
    readers = {
        name: partial(_scaled_as, read, study.scalings[name])
        for name, read in subject.readers.items()
        if name in study.images
    }
    whole = load_working(Subject(subject.id, readers), spacing_mm)
    clean = whole.thinned(every_nth(len(whole.foreground), every))
    return {name: np.where(study.foreground, image, 0) for name, image in clean.images.items()}


def _scaled_as(read: Callable[[], Volume], scaling: Scaling) -> Volume:
    volume = read()
    return replace(volume, provenance={**volume.provenance, "scaling": scaling.to_json()})
