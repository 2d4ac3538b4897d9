"""What a cohort loses when half of its scans are missing. Trains three models, prints a Markdown table.

    python recipes/incomplete.py DATA TEST WORK [--steps 3000] [--out docs/results/incomplete.md]

DATA and TEST have t1n, t1c, t2w and t2f of every subject. The three learn from all scans; from half of them, deleted
at random; and from those subjects alone that are still complete after that. Same settings, steps and seed. Each
model's run is a folder in WORK; a recipe that was stopped goes on where it was.
"""

import argparse
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np

from medk2n.checkpoint import CONFIG, read_config
from medk2n.cli.common import progress_bar
from medk2n.config.schema import TrainConfig, load_config
from medk2n.data.discover import discover
from medk2n.data.working import WorkingStudy, load_working
from medk2n.evaluation.evaluate import Record, evaluate
from medk2n.evaluation.summary import MEAN_ROW, Summary, summarise
from medk2n.inference.predictor import load_predictor
from medk2n.io.atomic import write_text
from medk2n.io.outputs import output_file
from medk2n.training.run import Report, resume, train

CORE = ("t1n", "t1c", "t2w", "t2f")
SEED = 0


def deleted(ids: list[str]) -> list[str]:
    """Half of all "ID:modality", at random."""
    scans = [f"{subject}:{name}" for subject in ids for name in CORE]
    return sorted(np.random.default_rng(SEED).permutation(scans)[: len(scans) // 2].tolist())


def arms(data: Path, steps: int) -> dict[str, TrainConfig]:
    """Name of each model -> what it learns from, and how."""
    ids = [subject.id for subject in discover(data)]
    gone = deleted(ids)
    whole = [i for i in ids if not any(f"{i}:{name}" in gone for name in CORE)]
    stated = ["spacing_mm=1.5", f"modalities=[{','.join(CORE)}]", "budget.minutes=null", f"budget.steps={steps}"]
    config = load_config("tiny", stated)
    config = config.model_copy(update={"data": [str(data)], "models": config.models[:1], "seed": SEED, "threads": 1})
    return {
        f"all {len(ids) * len(CORE)} scans of {len(ids)} subjects": config,
        f"half of the scans, {len(gone)} deleted": config.model_copy(update={"exclude": gone}),
        f"the {len(whole)} subjects that are then complete": config.model_copy(update={"subjects": whole}),
    }


def learn(config: TrainConfig, run: Path, report: Report) -> None:
    """Train to the end, from the run's last state where there is one."""
    if (run / "state").is_dir():
        resume(run, report=report)
    elif not (run / CONFIG).is_file():
        train(config, run, report=report)


def score(run: Path, name: str, test: Path, every: int) -> list[Record]:
    """All metrics of one model on the test subjects."""
    spacing = read_config(run).spacing_mm

    def studies() -> Iterator[WorkingStudy]:
        for subject in discover(test):
            yield load_working(subject, spacing)

    records = evaluate([load_predictor(run, every=every)], studies(), modalities=CORE, every=every)
    return [replace(record, method=name) for record in records]


def table(summary: Summary) -> str:
    """Mean of the 14 rows inside the foreground, and what is lost against all scans."""
    here = ("foreground", MEAN_ROW)
    cells = {(c.metric, c.method): c for c in summary.cells if (c.region, c.sources) == here}
    lost = {(d.metric, d.reference): d for d in summary.differences if (d.region, d.sources) == here}
    lines = ["| learned from | PSNR | lost, dB [95 % interval] | SSIM |", "|---|---|---|---|"]
    for (metric, method), cell in cells.items():
        if metric == "psnr":
            d = lost.get((metric, method))
            told = f"{d.mean:.2f} [{d.low:.2f}, {d.high:.2f}], p = {d.p:.2g}" if d else ""
            lines.append(f"| {method} | {cell.mean:.2f} | {told} | {cells['ssim', method].mean:.4f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--overwrite", action="store_true", help="replace what lies at --out")
    args = parser.parse_args()
    with output_file(args.out, overwrite=args.overwrite) if args.out else nullcontext():
        make(args)


def make(args: argparse.Namespace) -> None:
    """The table, on the screen and at --out."""
    configs = arms(args.data, args.steps)
    records: list[Record] = []
    for k, (name, config) in enumerate(configs.items()):
        with progress_bar() as bar:
            line = bar.add_task(name, total=1.0)
            learn(config, args.work / str(k), lambda stage, share, _: bar.update(line, completed=share))  # noqa: B023
        records += score(args.work / str(k), name, args.test, args.every)
    first, *others = configs
    summary = summarise(records, method=first, references=others, rng=np.random.default_rng(SEED))
    text = table(summary)
    sys.stdout.write(text + "\n")
    if args.out:
        minutes = [read_config(args.work / str(k)).training["wall_minutes"] for k in range(len(configs))]
        head = "# Half of the scans missing\n\nMade by `recipes/incomplete.py`, which says what is done:\n"
        head += f"{args.steps} steps a model, seed {SEED}, {len(discover(args.test))} test subjects, "
        head += f"every {args.every}th slice, the 14 rows of four contrasts.\n"
        head += f"{platform.machine()}, {os.cpu_count()} cores, one thread: "
        head += (
            f"{', '.join(f'{m:.0f}' for m in minutes)} minutes. PSNR in dB inside the foreground, paired by subject."
        )
        write_text(args.out, f"{head}\n\n{text}\n")


if __name__ == "__main__":
    main()
