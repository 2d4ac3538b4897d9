"""What each choice of Med-K2N is worth when trained with it: the full model and the same with one switch turned.

    python recipes/ablate.py DATA VAL WORK [--minutes 3 | --steps N] [--seeds 1] [--only NAME ...] [--encoder FOLDER]
        [--every 10] [--device cpu] [--out docs/results/trained-ablation.csv]

The switches stand in recipes/ablate.yaml; what a trained model loses without a part is `medk2n ablate`'s to say. Every
run trains as `medk2n train` does on DATA, in a folder of WORK, and is asked all cases of `medk2n evaluate --damage all`
on VAL, of which nothing is learned; its answers stay in its folder. It is one row of the CSV; beside that lies a page
(.md), all seeds together. A recipe that was stopped goes on where it was. `medk2n prepare` both folders first, or every
run reads them anew.
"""

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from medk2n.checkpoint import CONFIG, read_config
from medk2n.cli.common import progress_bar
from medk2n.config.schema import TrainConfig, load_config
from medk2n.data.discover import discover
from medk2n.data.working import load_working
from medk2n.errors import ConfigError, DatasetError
from medk2n.evaluation.ablation import FULL, Worth, worth
from medk2n.evaluation.damage import DAMAGE, DamageRecord, measure_damage
from medk2n.evaluation.table import interval_text, write_csv
from medk2n.inference.predictor import load_predictor
from medk2n.io.atomic import atomic_write, write_text
from medk2n.metrics.psnr import COMPONENT as PSNR
from medk2n.training import state
from medk2n.training.begin import chosen
from medk2n.training.run import Report, resume, train

SWITCHES = Path(__file__).with_suffix(".yaml")


@dataclass(frozen=True)
class Switch:
    """One change of the full model, by settings; `says` tells it in words."""

    name: str
    says: str
    settings: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """One row: PSNR in dB inside the foreground, means over subjects; changes from the full model of the same seed,
    paired by subject, with 95 % bootstrap intervals over them. `minutes` is the training alone."""

    switch: str
    seed: int
    learned: str
    scored: str
    budget: str
    every: int
    steps: int
    minutes: float
    parameters: int
    hardware: str
    subjects: int
    clean_db: float
    clean_change: float
    clean_low: float
    clean_high: float
    damaged_db: float
    damaged_change: float
    damaged_low: float
    damaged_high: float


def read_switches(encoder: Path | None) -> tuple[list[str], list[Switch], list[Switch]]:
    """Settings of the full model; the switches that can be run; those that want an encoder's folder."""
    tree = yaml.safe_load(SWITCHES.read_text(encoding="utf-8"))
    ready, wanting = [], []
    for entry in tree["switches"]:
        settings = tuple(s.replace("{encoder}", str(encoder.resolve())) if encoder else s for s in entry["set"])
        switch = Switch(entry["name"], entry["says"], settings)
        (wanting if any("{encoder}" in s for s in settings) else ready).append(switch)
    return tree["full"], ready, wanting


def picked(only: Sequence[str] | None, ready: Sequence[Switch]) -> list[Switch]:
    """The switches to run; all without a choice."""
    names = [switch.name for switch in ready]
    if unknown := sorted(set(only or ()) - set(names)):
        raise ConfigError(
            f"--only {', '.join(unknown)}: no such switch, or it needs --encoder; there are {', '.join(names)}"
        )
    return [switch for switch in ready if not only or switch.name in only]


def configured(settings: Sequence[str], data: Path, val: Path, budget: str, seed: int) -> TrainConfig:
    """The configuration of one run; raises ConfigError for what this medk2n does not know."""
    number, unit = budget.split()
    config = load_config("tiny", [*settings, f"budget={{{unit}: {number}}}"])
    told = {"data": [str(data)], "validation": str(val), "models": config.models[:1], "seed": seed}
    config = config.model_copy(update=told)
    chosen(config.models[0])
    return config


def planned(
    switches: Sequence[Switch], full: Sequence[str], args: argparse.Namespace, budget: str
) -> dict[tuple[str, int], TrainConfig]:
    """Switch and seed -> how it is trained; the full model first."""
    configs = {
        (s.name, seed): configured([*full, *s.settings], args.data, args.val, budget, seed)
        for seed in range(args.seeds)
        for s in (Switch(FULL, "", ()), *switches)
    }
    for (name, seed), config in configs.items():
        if name != FULL and _resolved(config) == _resolved(configs[FULL, seed]):
            raise ConfigError(f"{SWITCHES.name}: {name} changes nothing; expected settings that the {FULL} has not")
    return configs


def _resolved(config: TrainConfig) -> tuple[TrainConfig, object]:
    """Two settings that mean the same look the same."""
    return config.model_copy(update={"models": []}), chosen(config.models[0])


def learn(config: TrainConfig, run: Path, device: str, report: Report) -> None:
    """Train to the end, from the run's last state where there is one."""
    if (run / "train.json").is_file() and load_config(run / "train.json") != config:
        raise ConfigError(f"{run} was trained with other settings; give another WORK or remove it")
    if (run / CONFIG).is_file() and read_config(run).training["finished"]:
        return
    if state.newest(run / "state"):
        resume(run, device=device, report=report)
    else:
        train(config, run, device=device, overwrite=True, report=report)


@dataclass(frozen=True)
class Work:
    """The folder of all runs, and under which name each keeps its answers: that says on what and how it was scored."""

    root: Path
    val: Path
    every: int

    def run(self, switch: str, seed: int) -> Path:
        """The folder of a run."""
        return self.root / f"{switch.replace(' ', '-')}-{seed}"

    def answers(self, switch: str, seed: int) -> Path:
        """A run's answers; there once it was scored."""
        return self.run(switch, seed) / f"damage-{self.val.name}-every-{self.every}.csv"

    def seeds(self, switch: str) -> list[int]:
        """On which both a switch and the full model were scored."""
        found = {int(path.parent.name.rpartition("-")[2]) for path in self.root.glob(f"*/{self.answers('', 0).name}")}
        return [s for s in sorted(found) if all(self.answers(name, s).is_file() for name in (FULL, switch))]

    def score(self, switch: str, seed: int, device: str) -> None:
        """Ask a run every case, clean and damaged."""
        predictor = load_predictor(self.run(switch, seed), device, every=self.every)
        names = predictor.modalities
        studies = (load_working(subject, predictor.config.spacing_mm) for subject in discover(self.val))
        records = measure_damage(
            [predictor], studies, modalities=names, kinds=DAMAGE, severities=[1.0], every=self.every
        )
        if not records:
            raise DatasetError(f"{self.val}: no subject has three of {', '.join(names)}: two inputs and a truth")
        atomic_write(self.answers(switch, seed), lambda path: write_csv(path, DamageRecord, records))

    def compared(self, switch: str, seeds: Sequence[int]) -> Worth:
        """A switch against the full model, on some seeds; each subject's mean over them."""
        records = [
            replace(record, method=name)
            for name in dict.fromkeys((FULL, switch))
            for seed in seeds
            for record in read_records(self.answers(name, seed))
        ]
        return worth(records, seed=0)[-1]

    def row(self, switch: str, seed: int, conditions: Mapping[str, Any]) -> Run:
        """The row of a run that was scored."""
        cost, found = read_config(self.run(switch, seed)).training, asdict(self.compared(switch, [seed]))
        told = {"steps": cost["steps"], "minutes": cost["wall_minutes"]}
        told |= {name: cost[name] for name in ("parameters", "hardware")}
        told |= {f.name: found[f.name] for f in fields(Run) if f.name in found}
        return Run(switch=switch, seed=seed, **conditions, **told)


def read_records(path: Path) -> list[DamageRecord]:
    """What `write_csv` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            DamageRecord(**{f.name: _value(f.type, line[f.name]) for f in fields(DamageRecord)})
            for line in csv.DictReader(file)
        ]


def _value(kind: object, text: str) -> Any:
    return text if kind is str else float(text) if text else None


def page(work: Work, rows: Sequence[Run], switches: Sequence[Switch], missing: Mapping[str, str], source: str) -> str:
    """The table that people read; `missing` says why a switch has no run."""
    first, full = rows[0], [row for row in rows if row.switch == FULL]
    seeds = "One seed: a screen."
    if len(full) > 1:
        clean, damaged = ([getattr(row, name) for row in full] for name in ("clean_db", "damaged_db"))
        seeds = f"Seeds of the {FULL} alone are up to {max(clean) - min(clean):.2f} dB apart clean, "
        seeds += f"{max(damaged) - min(damaged):.2f} damaged."
    lines = [
        "# What each choice is worth, trained",
        "",
        f"Made by `recipes/ablate.py` (`{source}` has a row a run): {len(rows)} runs of {first.budget} on",
        f"{first.learned}, scored on {first.subjects} subjects ({first.scored}), one slice in {first.every}:",
        f"every target from two and from three inputs, clean and with one damaged ({', '.join(DAMAGE)}).",
        f"{'; '.join(sorted({row.hardware for row in rows}))}.",
        f"{sum(row.minutes for row in rows):.0f} minutes of training.",
        "",
        f"PSNR in dB inside the foreground; changes from the {FULL}, paired by subject (mean over seeds first), 95 %",
        f"bootstrap intervals. They say what subjects differ in, not what another training would give. {seeds}",
        "",
        "| switch | what changes | seeds | steps | clean | change | damaged | change |",
        "|---" * 8 + "|",
    ]
    for switch in (Switch(FULL, "", ()), *switches):
        own = [row for row in rows if row.switch == switch.name]
        cells = [switch.name, switch.says, f"not run: {missing.get(switch.name, 'no run yet')}", *[""] * 5]
        if own:
            w = work.compared(switch.name, [row.seed for row in own])
            cells[2:4] = [str(len(own)), f"{np.mean([row.steps for row in own]):.0f}"]
            cells[4:] = [f"{w.clean_db:.2f}", "", f"{w.damaged_db:.2f}", ""]
            if switch.name != FULL:
                cells[5] = interval_text(w.clean_change, w.clean_low, w.clean_high, PSNR)
                cells[7] = interval_text(w.damaged_change, w.damaged_low, w.damaged_high, PSNR)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def refuse_other(path: Path, conditions: Mapping[str, str | int]) -> None:
    """Refuse a table that was made under other conditions."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            for name, wanted in conditions.items():
                if line.get(name) != str(wanted):
                    raise ConfigError(
                        f"{path}: its rows have {name} {line.get(name)!r}, expected {str(wanted)!r}; give another --out"
                    )


def main() -> None:
    """Train and score what was not yet, then write the table and the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("val", type=Path)
    parser.add_argument("work", type=Path)
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, default=3.0)
    budget.add_argument("--steps", type=int)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--encoder", type=Path, help="what recipes/pretrain.py made, or SAM2's own")
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("docs/results/trained-ablation.csv"))
    args = parser.parse_args()
    told = f"{args.steps} steps" if args.steps else f"{args.minutes:g} minutes"
    learned = f"{args.data.name} with {len(discover(args.data))} subjects"
    conditions = {"learned": learned, "scored": args.val.name, "budget": told, "every": args.every}
    full, ready, wanting = read_switches(args.encoder)
    refuse_other(args.out, conditions)
    work, every_name = Work(args.work, args.val, args.every), [FULL, *(s.name for s in (*ready, *wanting))]
    configs = planned(picked(args.only, ready), full, args, told)
    with progress_bar() as bar:
        for (name, seed), config in configs.items():
            line = bar.add_task(f"{name}, seed {seed}", total=1.0)
            learn(config, work.run(name, seed), args.device, lambda stage, share, _: bar.update(line, completed=share))  # noqa: B023
            if not work.answers(name, seed).is_file():
                work.score(name, seed, args.device)
            rows = [work.row(name, s, conditions) for name in every_name for s in work.seeds(name)]
            atomic_write(args.out, lambda path: write_csv(path, Run, rows))  # noqa: B023
    missing = {switch.name: "needs `--encoder`" for switch in wanting}
    text = page(work, rows, [*ready, *wanting], missing, args.out.name)
    write_text(args.out.with_suffix(".md"), text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
