"""Which metric sees an erased lesion? Prints a Markdown table.

    python recipes/erasure.py DATA [--subjects 4] [--targets t1n,t1c,t2w,t2f] [--out docs/results/erasure.md]

DATA is any data set with lesion masks. `medk2n.evaluation.erasure` says what is erased, how the hole is filled, and
what the number means.
"""

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from medk2n.cli.common import progress_bar
from medk2n.data.discover import discover
from medk2n.data.working import WorkingStudy, load_working
from medk2n.evaluation.erasure import MILD_DB, Sensitivity, erase, sensitivities
from medk2n.evaluation.panel import PROTOCOLS
from medk2n.io.atomic import write_text
from medk2n.io.outputs import output_file
from medk2n.metrics.psnr import psnr
from medk2n.registry import names, resolve


def with_lesion(data: Path, most: int) -> list[WorkingStudy]:
    """The first subjects that have one, on their own grids."""
    found = (load_working(subject, None) for subject in discover(data) if "lesion" in subject.masks)
    return [study for study, _ in zip((s for s in found if s.lesion.any()), range(most), strict=False)]


def contrast(study: WorkingStudy, target: str) -> float:
    """PSNR of the erased image inside the lesion, dB: how much there is to see."""
    tissue = study.foreground if study.brain is None else study.brain
    truth, lesion = study.images[target], study.lesion > 0
    return psnr(erase(truth, lesion, tissue, np.random.default_rng(0)), truth, lesion, data_range=1.0)


def verdict(value: float) -> str:
    """In a word."""
    return "blind" if value < 0.1 else "hardly" if value < 1 else "sees it"


def table(values: dict[tuple[str, str, str], list[Sensitivity]]) -> str:
    """Markdown, most sensitive first; scores are medians over images."""
    header = ("protocol", "region", "metric", "mild", "doubled", "erased", "sensitivity", "least", "most", "")
    rows = []
    for (protocol, region, metric), found in values.items():
        scores = np.median([(s.mild, s.doubled, s.erased) for s in found], axis=0)
        middle, *ends = (float(f([s.value for s in found])) for f in (np.nanmedian, np.nanmin, np.nanmax))
        digits = resolve("metrics", metric).decimals
        words = [f"`{protocol}`", region, metric, *(f"{x:.{digits}f}" for x in scores)]
        rows.append((-middle, [*words, *(f"{x:.2f}" for x in (middle, *ends)), verdict(middle)]))
    lines = ["| " + " | ".join(words) + " |" for _, words in sorted(rows)]
    return "\n".join(["| " + " | ".join(header) + " |", "|---" * len(header) + "|", *lines])


def head(of: str, studies: list[WorkingStudy], seen: list[float]) -> str:
    """What the table shows, on which data."""
    share = [np.mean(study.lesion[study.foreground] > 0) for study in studies]
    return f"""# Which metric sees an erased lesion?

Made by `recipes/erasure.py`. Scores of the truth with noise of {MILD_DB:.0f} dB (mild), with twice its power (doubled),
and with the mild noise and without its lesion (erased). Sensitivity: what erasing costs in units of what doubling
costs, by `medk2n.evaluation.erasure`. Medians, then the least and the most, over {of}.
Noise and fill seeded with 0. Lesions fill {min(share):.1%} to {max(share):.1%} of the foreground; inside them the
erased image is {min(seen):.1f} to {max(seen):.1f} dB from the truth. Last column: blind is below 0.1, hardly below 1.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--subjects", type=int, default=4)
    parser.add_argument("--targets", default="t1n,t1c,t2w,t2f")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--overwrite", action="store_true", help="replace what lies at --out")
    args = parser.parse_args()
    with output_file(args.out, overwrite=args.overwrite) if args.out else nullcontext():
        make(args)


def make(args: argparse.Namespace) -> None:
    """The table, on the screen and at --out."""
    targets = args.targets.split(",")
    protocols = [resolve(PROTOCOLS, name) for name in names(PROTOCOLS)]
    studies = with_lesion(args.data, args.subjects)
    values: dict[tuple[str, str, str], list[Sensitivity]] = {}
    seen = []
    with progress_bar() as bar:
        for study in bar.track(studies, description="erasing"):
            for target in (t for t in targets if t in study.images):
                seen.append(contrast(study, target))
                for s in sensitivities(study, target, protocols, np.random.default_rng(0)):
                    values.setdefault((s.protocol, s.region, s.metric), []).append(s)
    text = table(values)
    sys.stdout.write(text + "\n")
    if args.out:
        of = f"{len(seen)} images ({', '.join(targets)}) of {len(studies)} subjects of {args.data.name}"
        write_text(args.out, f"{head(of, studies, seen)}\n{text}\n")


if __name__ == "__main__":
    main()
