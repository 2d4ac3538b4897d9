"""Whether the weights, what a report calls a contribution, and the predicted errors are true: a CSV each, and a table.

    python recipes/weights.py MODEL DATA OUT [--subjects 12] [--every 20] [--device cpu]

Each of t1n, t1c, t2w and t2f is made from every subset of the other three. What an input is worth is its Shapley
value in the PSNR so measured (that of no input: predicting the target's mean, as the training subjects have it).
Beside it stand its expected worth, the same of the PSNR that the model predicts, as in reports, and W, the weight of
its step with all three given. Ranks are compared within each target, over all subjects and inputs; what is worth less
than 0.1 dB either way counts alike. All of it twice: with the inputs as they are, and with one of the three damaged
(`medk2n evaluate --damage`; which, how and how badly are drawn). The predicted error is the mean of the variance that
the model gives with its image, the true one the mean squared error, over all subjects and subsets; within an image
both are means over windows of 16 x 16 voxels. Writes OUT/weights.csv, a row an input, OUT/errors.csv, a row an image,
and OUT/weights.md.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from medk2n.checkpoint import find_model
from medk2n.cli.common import progress_bar
from medk2n.data.discover import discover
from medk2n.data.working import WorkingStudy, every_nth, load_working
from medk2n.evaluation.damage import DAMAGE, Case, damaged
from medk2n.evaluation.table import write_csv
from medk2n.inference.predictor import SlicePredictor, load_predictor
from medk2n.io.atomic import write_text
from medk2n.io.outputs import OutputFolder, output_folder
from medk2n.shapley import shapley

CORE = ("t1n", "t1c", "t2w", "t2f")
SEVERITIES = (0.25, 0.5, 1.0)
WHOLE = "none"
TIE_DB = 0.1
SIDE = 16
FILES = "weights.csv", "errors.csv", "weights.md"


@dataclass(frozen=True)
class Input:
    """One of three inputs: its weight, the dB that it is expected to add and those that it adds, on average over all
    orders. `damage` is what was done to one of the three, "none" or its name, kind and severity."""

    subject: str
    target: str
    damage: str
    source: str
    weight: float
    expected_db: float
    worth_db: float


@dataclass(frozen=True)
class Image:
    """One target from one subset: mean squared error as predicted and as it is, scaled units; `local` is the rank
    correlation of the two over windows."""

    subject: str
    target: str
    damage: str
    sources: str
    predicted: float
    true: float
    local: float


def measure(
    model: SlicePredictor, study: WorkingStudy, other: WorkingStudy, every: int, rng: np.random.Generator
) -> Iterator[Input | Image]:
    """All subsets of the other three, for each of the four, whole and with one of the three damaged."""
    at = every_nth(len(study.foreground), every)
    for target in CORE:
        whole = {name: study.images[name] for name in CORE if name != target}
        yield from compare(model, study, target, whole, WHOLE, at)
        source, kind, severity = str(rng.choice([*whole])), str(rng.choice(DAMAGE)), float(rng.choice(SEVERITIES))
        bad = damaged(study, other, Case(tuple(whole), source, target), kind, severity, rng)
        if bad is not None:
            yield from compare(model, study, target, whole | {source: bad}, f"{source} {kind} {severity:g}", at)


def compare(
    model: SlicePredictor,
    study: WorkingStudy,
    target: str,
    given: Mapping[str, np.ndarray],
    damage: str,
    at: Sequence[int],
) -> Iterator[Input | Image]:
    """One target from every subset of what is given."""
    inside, truth = study.foreground[at], study.images[target][at]
    j = model.modalities.index(target)
    mean = float(model.module.linear_maps.mean[j, j])
    worth = {(): decibel(float(np.mean((truth - mean)[inside] ** 2)))}
    expected = {(): decibel(model.config.statistics.variance[target])}
    names = tuple(given)
    for subset in (subset for k in (1, 2, 3) for subset in combinations(range(3), k)):
        found = model.infer({names[i]: given[names[i]] for i in subset}, [target], only=at)
        error, variance = (found.means[target][at] - truth) ** 2, found.variances[target][at]
        true, predicted = float(error[inside].mean()), float(variance[inside].mean())
        worth[subset], expected[subset] = decibel(true), decibel(predicted)
        local = rank_correlation(*(windows(x, inside) for x in (variance, error)))
        yield Image(study.id, target, damage, "+".join(names[i] for i in subset), predicted, true, local)
    weights = {model.modalities[step.source]: step.weight for step in (found.plan or {})[j]}
    for i, source in enumerate(names):
        gains = (shapley(of, (0, 1, 2), i) for of in (expected, worth))
        yield Input(study.id, target, damage, source, weights[source], *gains)


def decibel(error: float) -> float:
    """PSNR of a mean squared error."""
    return float(-10 * np.log10(error))


def windows(values: np.ndarray, inside: np.ndarray) -> list[float]:
    """Means of (s, h, w) over the windows that are at least half foreground, inside it."""
    s, (h, w) = len(values), (n - n % SIDE for n in values.shape[1:])
    shape = (s, h // SIDE, SIDE, w // SIDE, SIDE)
    total = np.where(inside, values, 0)[:, :h, :w].reshape(shape).sum(axis=(2, 4))
    mass = inside[:, :h, :w].reshape(shape).sum(axis=(2, 4))
    enough = mass >= SIDE**2 / 2
    return list(total[enough] / mass[enough])


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's, NaN where one of them does not vary."""
    return float(spearmanr(a, b).statistic) if len(set(a)) > 1 and len(set(b)) > 1 else float("nan")


def agreement(inputs: Sequence[Input], told: str) -> float:
    """Rank correlation of what is told of inputs ("weight" or "expected_db") with what they are worth."""
    worth = [x.worth_db if abs(x.worth_db) >= TIE_DB else 0.0 for x in inputs]
    return rank_correlation([getattr(x, told) for x in inputs], worth)


def table(inputs: Sequence[Input], images: Sequence[Image]) -> list[str]:
    """Rank correlations of every target, and their mean."""
    columns = ("target", "W", "W, one damaged", "expected", "expected, one damaged", "inputs", "error", "in an image")
    lines = ["| " + " | ".join((*columns, "images")) + " |", "|---" * 9 + "|"]
    rows = []
    for target in CORE:
        here, made = [x for x in inputs if x.target == target], [x for x in images if x.target == target]
        groups = [[x for x in here if (x.damage == WHOLE) == whole] for whole in (True, False)]
        row = [agreement(group, told) for told in ("weight", "expected_db") for group in groups]
        row += [rank_correlation([x.predicted for x in made], [x.true for x in made])]
        rows.append([*row, float(np.mean([x.local for x in made]))])
        lines.append(_line(target, rows[-1], len(here), len(made)))
    return [*lines, _line("mean", np.mean(rows, axis=0), len(inputs), len(images))]


def _line(name: str, row: Sequence[float], inputs: int, images: int) -> str:
    said = ["n/a" if np.isnan(x) else f"{x:.2f}" for x in row]
    return "| " + " | ".join([name, *said[:4], str(inputs), *said[4:], str(images)]) + " |"


def main() -> None:
    """Ask, write the rows, then the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--subjects", type=int, default=12)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier run left in `out`")
    args = parser.parse_args()
    with output_folder(args.out, FILES, overwrite=args.overwrite) as place:
        make(args, place)


def make(args: argparse.Namespace, place: OutputFolder) -> None:
    """The rows and the table, all or none."""
    model = load_predictor(find_model(args.model), args.device)
    subjects = [subject for subject in discover(args.data) if set(CORE) <= set(subject.modalities)][: args.subjects]
    found: list[Input | Image] = []
    studies = [load_working(subject, model.config.spacing_mm) for subject in subjects]
    rng = np.random.default_rng(0)
    with progress_bar() as bar:
        for n, study in enumerate(bar.track(studies, description="measuring")):
            found.extend(measure(model, study, studies[n - 1], args.every, rng))
    inputs, images = ([x for x in found if isinstance(x, kind)] for kind in (Input, Image))
    head = f"""# Whether the weights, the expected contributions and the predicted errors are true

Spearman's rank correlations with what was measured. Made by `recipes/weights.py`, which says what is compared: model
{args.model}, {len(subjects)} subjects of {args.data.name}, every {args.every}th slice; half of the inputs and images
with one of the three inputs damaged."""
    text = "\n".join([head, "", *table(inputs, images)]) + "\n"
    with place.whole(last=FILES[-1]) as new:
        write_csv(new / "weights.csv", Input, inputs)
        write_csv(new / "errors.csv", Image, images)
        write_text(new / "weights.md", text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
