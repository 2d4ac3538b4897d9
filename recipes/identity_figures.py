"""What V and the judge V' of a model recognise real scans as, on whole held-out images.

    python recipes/identity_figures.py MODEL OUT.md --data DIR [--data DIR ...] [--subjects A,B] [--every 4]

For each data folder: the share of slices and of volumes named right by each network, the confusion of the volumes,
retrieval (each text finds its image among those of the same study), and the calibration error of the volumes.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from medk2n.checkpoint import read_config
from medk2n.data.discover import discover
from medk2n.data.stored import ENOUGH
from medk2n.data.working import load_working
from medk2n.identity.identity import Identity, calibration_error
from medk2n.io.atomic import write_text


def volumes(data: Path, spacing_mm: float, every: int, subjects: list[str]) -> Iterator[tuple[str, str, np.ndarray]]:
    """Subject, modality and the slices (s, h, w) with enough of the patient, of every image."""
    for subject in discover(data, subjects=subjects or None):
        study = load_working(subject, spacing_mm)
        at = np.flatnonzero(study.foreground.mean(axis=(1, 2)) > ENOUGH)[::every]
        for name, image in study.images.items():
            yield study.id, name, image[at]


def row(identity: Identity, told: list[tuple[str, str, np.ndarray]], *, judge: bool) -> tuple[str, np.ndarray]:
    """What one network says of all volumes: a line of the table, and (names, names) how often which is named what."""
    names, of_slices, of_volumes = list(identity.names), [], []
    for _, _, images in told:
        logits = identity.logits(images, judge=judge)
        of_slices.append(identity.of_slices(logits, judge=judge))
        of_volumes.append(list(identity.of_study(logits, judge=judge).values()))
    truth, volumes = np.array([names.index(name) for _, name, _ in told]), np.array(of_volumes)
    each, repeated = np.concatenate(of_slices), np.repeat(truth, [len(e) for e in of_slices])
    found = []
    for study in dict.fromkeys(subject for subject, *_ in told):
        own = np.array([subject == study for subject, *_ in told])
        if own.sum() > 1:
            found += (volumes[own][:, truth[own]].argmax(axis=0) == np.arange(own.sum())).tolist()
    cells = [
        "V' (judge)" if judge else "V",
        f"{100 * (each.argmax(axis=1) == repeated).mean():.1f}",
        f"{100 * (volumes.argmax(axis=1) == truth).mean():.1f}",
        f"{100 * np.mean(found):.1f} ({len(found)})" if found else "n/a",
        f"{calibration_error(volumes, truth):.3f}",
        f"{calibration_error(each, repeated):.3f}",
    ]
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (truth, volumes.argmax(axis=1)), 1)
    return "| " + " | ".join(cells) + " |", counts


def section(identity: Identity, data: Path, spacing_mm: float, every: int, subjects: list[str]) -> list[str]:
    """Of one data folder."""
    names = identity.names
    told = [v for v in volumes(data, spacing_mm, every, subjects) if v[1] in names]
    rows = [row(identity, told, judge=judge) for judge in (False, True)]
    counts = rows[1][1]
    shown = [j for j in range(len(names)) if counts[:, j].any() or counts[j].any()]
    held = f"{len({subject for subject, *_ in told})} subjects, {len(told)} volumes"
    return [
        f"## {data.name}: {held}, {sum(len(v) for *_, v in told)} slices",
        "",
        "| network | slices named right, % | volumes, % | retrieval at 1, % | calibration error | of slices |",
        "|---" * 6 + "|",
        *(line for line, _ in rows),
        "",
        "Volumes: what they are (rows), what the judge recognises them as (columns).",
        "",
        "| | " + " | ".join(names[j] for j in shown) + " |",
        "|---" * (len(shown) + 1) + "|",
        *(f"| {names[i]} | " + " | ".join(str(counts[i, j]) for j in shown) + " |" for i in shown if counts[i].any()),
        "",
    ]


def main() -> None:
    """All folders, one section each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--subjects", default="")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--spacing", type=float, help="of the working grid in mm; the model's if left out")
    asked = parser.parse_args()
    identity = Identity.load(asked.model)
    spacing = asked.spacing or read_config(asked.model).spacing_mm
    training = identity.described.training
    lines = [
        f"Learned from {training.get('subjects')} in {training.get('steps')} steps; every {asked.every}. slice.",
        "",
    ]
    for data in asked.data:
        lines += section(identity, data, spacing, asked.every, [s for s in asked.subjects.split(",") if s])
    write_text(asked.out, "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
