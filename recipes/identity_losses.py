"""What L_causal and L_metric do to the images: the same model trained without them, with them, and with more of them.

    python recipes/identity_losses.py DATA VAL WORK --judge MODEL [--steps 2000] [--every 8] [--out OUT.md]

Every run is `medk2n train` on DATA (preset tiny, 2 mm, one seed), in a folder of WORK; it goes on where it was stopped.
V learns for a quarter of the steps in each, so all synthesizers learn equally long. Then, on VAL: PSNR inside the
foreground; images that the judge V' of MODEL, which none of these losses has asked, names as what they claim to be; how
often the judge sees one target become the other when that is asked of the same inputs (do(target)); and false
enhancement, the share of the brain where a made T1c enhances and the real one does not, beside what really enhances. A
voxel enhances where T1c lies three robust deviations above what T1 foretells there.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np

from medk2n.checkpoint import CONFIG, read_config
from medk2n.cli.common import progress_bar
from medk2n.config.schema import TrainConfig, load_config
from medk2n.data.discover import discover
from medk2n.data.working import WorkingStudy, every_nth, load_working
from medk2n.evaluation.evaluate import ask
from medk2n.evaluation.identity import seen
from medk2n.evaluation.rows import Row
from medk2n.identity.identity import Identity
from medk2n.inference.predictor import SlicePredictor, load_predictor
from medk2n.io.atomic import write_text
from medk2n.metrics.psnr import psnr
from medk2n.training import state
from medk2n.training.run import Report, resume, train

COMMON = "modalities=[t1c, t1n, t2f, t2w]", "spacing_mm=2", "threads=1", "identity.share=0.25"
RUNS = {
    "without": ("identity.asked=0",),
    "with (as by default)": (),
    "more of them": ("identity.asked=0.5", "losses.causal=0.1", "losses.metric=0.1"),
}
INPUTS = ("t1n",), ("t2f",), ("t1n", "t2f")


@dataclass
class Found:
    """What was counted of one run; a list a measure, a value a case."""

    psnr: list[float] = field(default_factory=list)
    named: list[bool] = field(default_factory=list)
    flips: list[bool] = field(default_factory=list)
    false: list[float] = field(default_factory=list)
    real: list[float] = field(default_factory=list)


def enhancing(t1c: np.ndarray, t1n: np.ndarray, fit: tuple[float, float, float]) -> np.ndarray:
    """Where T1c lies above what T1 foretells by (slope, intercept, robust deviation)."""
    slope, intercept, deviation = fit
    return t1c - (slope * t1n + intercept) > 3 * deviation


def foretold(t1c: np.ndarray, t1n: np.ndarray) -> tuple[float, float, float]:
    """T1c from T1 by least squares without what lies far off, and the robust deviation of the rest."""
    keep = np.ones(t1c.shape, bool)
    for _ in range(5):
        slope, intercept = np.polyfit(t1n[keep], t1c[keep], 1)
        off = t1c - (slope * t1n + intercept)
        deviation = 1.4826 * float(np.median(np.abs(off[keep] - np.median(off[keep]))))
        keep = np.abs(off) < 3 * deviation
    return float(slope), float(intercept), deviation


def learned(config: TrainConfig, run: Path, report: Report) -> Path:
    """The folder of a run that has come to its end."""
    if not ((run / CONFIG).is_file() and read_config(run).training["finished"]):
        if state.newest(run / "state"):
            resume(run, device="cpu", report=report)
        else:
            train(config, run, device="cpu", overwrite=True, report=report)
    return run


def look(found: Found, predictor: SlicePredictor, identity: Identity, study: WorkingStudy, every: int) -> None:
    """All cases of one study."""
    at = every_nth(len(study.foreground), every)
    inside = study.foreground[at]
    for inputs in INPUTS:
        targets = tuple(n for n in predictor.modalities if n in study.images and n not in inputs)
        if not set(inputs) <= set(study.images) or len(targets) < 2:
            continue
        made = {t: answer.image[at] for t, answer in ask(predictor, study, Row(inputs, targets)).items()}
        named = {t: seen(identity, made[t], study.id, "", "", t).named for t in targets}
        found.psnr += [psnr(made[t], study.images[t][at], inside, data_range=1.0) for t in targets]
        found.named += [named[t] == t for t in targets]
        found.flips += [(named[j], named[k]) == (j, k) for j, k in combinations(targets, 2)]
        if "t1c" in targets and "t1n" in inputs:
            t1n, real, ours = (x[inside] for x in (study.images["t1n"][at], study.images["t1c"][at], made["t1c"]))
            fit = foretold(real, t1n)
            truly, told = (enhancing(x, t1n, fit) for x in (real, ours))
            found.false.append(100 * float((told & ~truly).mean()))
            found.real.append(100 * float(truly.mean()))


def page(found: Mapping[str, Found], about: str) -> str:
    """The table that people read."""
    lines = [
        "# What the losses of identity do",
        "",
        f"Made by `recipes/identity_losses.py`, which says what is measured: {about}",
        "",
        "| L_causal, L_metric | PSNR, dB | named rightly by the judge, % | do(target) turns the image, % | "
        "false enhancement, % of the brain | real enhancement, % |",
        "|---" * 6 + "|",
    ]
    for name, f in found.items():
        told = [f"{np.mean(f.psnr):.2f}", f"{100 * np.mean(f.named):.0f}", f"{100 * np.mean(f.flips):.0f}"]
        told += [f"{np.mean(f.false):.2f}", f"{np.mean(f.real):.2f}"]
        lines.append(f"| {name} | " + " | ".join(told) + " |")
    first: Sequence[bool] = next(iter(found.values())).flips
    lines += ["", f"{len(next(iter(found.values())).psnr)} images and {len(first)} pairs of targets a run."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train what was not yet, then look at all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("val", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--judge", type=Path, required=True, help="a model folder with an identity module")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("docs/results/identity/losses.md"))
    asked = parser.parse_args()
    identity, found = Identity.load(asked.judge), {}
    subjects = discover(asked.val)
    with progress_bar() as bar:
        for k, (name, settings) in enumerate(RUNS.items()):
            config = load_config("tiny", [*COMMON, *settings, f"budget={{steps: {asked.steps}}}"])
            told = {"data": [str(asked.data)], "validation": str(asked.val), "models": config.models[:1]}
            line = bar.add_task(name, total=1.0)
            report: Report = lambda stage, share, _, line=line: bar.update(line, completed=share)  # noqa: E731
            run = learned(config.model_copy(update=told), asked.work / f"run-{k}", report)
            predictor, found[name] = load_predictor(run, "cpu", every=asked.every), Found()
            for subject in subjects:
                look(found[name], predictor, identity, load_working(subject, predictor.config.spacing_mm), asked.every)
    about = (
        f"{asked.steps} steps on {len(discover(asked.data))} subjects of {asked.data.parent.name}/{asked.data.name}, "
    )
    about += f"{len(subjects)} of {asked.val.parent.name}/{asked.val.name}, 1 slice in {asked.every}, from "
    about += f"{', '.join('+'.join(i) for i in INPUTS)}; one seed, CPU."
    text = page(found, about)
    write_text(asked.out, text)
    print(text)


if __name__ == "__main__":
    main()
