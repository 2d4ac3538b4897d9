"""One axial row a subject, all modalities: the picture of the cohort in the docs.

    python recipes/phantom_figure.py COHORT [--out docs/figures/phantom.png] [--subjects 5]

One subject of each kind of lesion comes first. Each row is cut
where the lesion is largest, or in the middle of the brain where there is none.
"""

import argparse
import csv
from pathlib import Path

import matplotlib as mpl
import nibabel as nib
import numpy as np

from medk2n.io.names import bids_name
from medk2n.vocabulary import modality

mpl.use("Agg")
import matplotlib.pyplot as plt  # after the backend is chosen

MODALITIES = ("t1n", "t1c", "t2w", "t2f", "pd", "dwi", "adc", "ct")
WINDOWS = {"adc": (0, 3000), "ct": (-60, 140)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/figures/phantom.png"))
    parser.add_argument("--subjects", type=int, default=5)
    args = parser.parse_args()
    with (args.cohort / "participants.tsv").open() as handle:
        people = list(csv.DictReader(handle, delimiter="\t"))
    largest = sorted(people, key=lambda person: -float(person["lesion_ml"]))
    kinds = {person["lesion"]: person for person in reversed(largest)}  # of each kind the largest, then the others
    people = (list(kinds.values()) + [person for person in largest if person not in kinds.values()])[: args.subjects]
    figure, axes = plt.subplots(len(people), len(MODALITIES), figsize=(16, 2.45 * len(people)), squeeze=False)
    for row, person in zip(axes, people, strict=True):
        draw_row(row, args.cohort, person["participant_id"], person["lesion"])
    for axis, name in zip(axes[0], MODALITIES, strict=True):
        axis.set_title(name, fontsize=12)
    figure.subplots_adjust(0.025, 0, 1, 0.96, 0.01, 0.01)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=90)


def draw_row(row: np.ndarray, cohort: Path, subject: str, lesion: str) -> None:
    """All modalities of one subject in one slice."""
    truth = cohort / "derivatives" / "truth" / subject / "anat"
    brain = nib.load(truth / f"{subject}_desc-brain_mask.nii.gz").get_fdata() > 0
    where = nib.load(truth / f"{subject}_desc-lesion_mask.nii.gz").get_fdata() > 0
    area = where.sum((0, 1)) if where.any() else (brain.sum((0, 1)) > 0).astype(float)
    k = int(np.argmax(area)) if where.any() else int(np.flatnonzero(area).mean())
    for axis, name in zip(row, MODALITIES, strict=True):
        path = cohort / subject / modality(name).bids_datatype / bids_name(subject, name)
        image = nib.load(path).get_fdata()
        low, high = WINDOWS.get(name, (0, np.percentile(image[brain], 99.7)))
        axis.imshow(image[:, :, k].T, origin="lower", cmap="gray", vmin=low, vmax=high)
        axis.set(xticks=[], yticks=[])
    row[0].set_ylabel(f"{subject}: {lesion.replace('_', ' ')}", fontsize=9)


if __name__ == "__main__":
    main()
