"""A plan on disk: JSON that stays with a run, and YAML that `medk2n train --config` takes."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medk2n.config.yaml12 import dump
from medk2n.errors import CheckpointError
from medk2n.io.atomic import write_json
from medk2n.io.door import door, read_text
from medk2n.training.plan import Decision, Plan

FILE = "plan.json"
_KEPT = ("fingerprint", "machine", "decisions", "notes")


def keep_plan(plan: Plan | None, run: Path) -> None:
    """Write what was seen, decided and why into a run's folder; None takes away that of a run before."""
    if plan is None:
        (run / FILE).unlink(missing_ok=True)
        return
    write_json(run / FILE, {name: part for name, part in asdict(plan).items() if name in _KEPT})


def read_plan(run: Path) -> dict[str, Any] | None:
    """What `keep_plan` wrote; None for a run whose every setting was given.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = run / FILE
    if not path.exists():
        return None
    with door(CheckpointError, f"{path}: no plan of a run", "remove it, or train again"):
        kept = dict(json.loads(read_text(path)))
        return {name: kept[name] for name in _KEPT}


def as_yaml(plan: Plan, heading: Sequence[str]) -> str:
    """All settings, each planned one under its reason; `heading` becomes comments."""
    lines = [f"# {line}".rstrip() for line in (*heading, *plan.notes)]
    for key, value in plan.tree.items():
        about = [d for d in plan.decisions if d.field.split(".")[0] == key and d.by == "planned"]
        lines += ["", *(f"# {d.field}: {d.reason}." for d in about)]
        flow = None if isinstance(value, (dict, list)) else False  # innermost lists and mappings on one line
        lines.append(dump({key: value}, flow=flow).rstrip())
    return "\n".join(lines) + "\n"


def value_in_words(decision: Decision) -> str:
    """A value as people write it: "t1c t1n t2f", "30 minutes", "24 40 72 112 144"."""
    match decision.value:
        case dict() as budget:
            return ", ".join(f"{number:g} {unit}" for unit, number in budget.items())
        case list() as parts:
            return " ".join(map(str, parts))
        case value:
            return f"{value:g}"
