"""One self-contained HTML file about one training run: how its models learned, what they made of a watched slice."""

import base64
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import medk2n
from medk2n import checkpoint
from medk2n.errors import CheckpointError
from medk2n.io.door import door, read_text
from medk2n.report.page import flat, render
from medk2n.training.log import METRICS, VALIDATION, Point, read_log
from medk2n.training.plan import Decision
from medk2n.training.planfile import FILE as PLAN
from medk2n.training.planfile import read_plan, value_in_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#0b7285", "#d9480f", "#5f3dc4", "#2b8a3e")
_PANEL_INCHES = (3.4, 2.4)
_COLUMNS = 3
_DPI = 100


def render_training(run: Path) -> str:
    """The report of a run, finished or not, as HTML text.

    Args:
        run: the folder that `medk2n train --out` writes.

    Raises:
        CheckpointError: no run.
    """
    points, settings = read_log(run / METRICS), _settings(run)
    listed = [choice["name"] for choice in settings.get("models", ())]  # the one that was wanted first
    models = sorted({p.model for p in points}, key=lambda name: listed.index(name) if name in listed else len(listed))
    watched = [p for p in points if p.name == VALIDATION]
    return render(
        "training.html.j2",
        {
            "run": run.resolve().name,
            "version": medk2n.__version__,
            "progress": min((max(p.progress for p in points if p.model == m) for m in models), default=0.0),
            "models": models,
            "costs": _costs(run),
            "validation_figure": _curves({VALIDATION: watched}, models) if watched else None,
            "validation": _table(watched, models),
            "samples": [(path.stem, _address(path.read_bytes())) for path in _samples(run)],
            "losses": _curves(_by_name([p for p in points if p.name != VALIDATION]), models),
            "plan": _plan(run),
            "settings": flat(settings),
        },
    )


def _settings(run: Path) -> dict[str, Any]:
    path = run / "train.json"
    with door(CheckpointError, f"{path}: no settings of a run", "expected the folder of medk2n train"):
        return dict(json.loads(read_text(path)))


def _plan(run: Path) -> dict[str, Any] | None:
    """What was seen and decided before the run, in words; None where nothing was planned."""
    kept = read_plan(run)
    if kept is None:
        return None
    with door(CheckpointError, f"{run / PLAN}: no plan of a run", "remove it, or train again"):
        return _plan_in_words(kept)


def _plan_in_words(kept: dict[str, Any]) -> dict[str, Any]:
    facts, decisions = kept["fingerprint"], [Decision(**decision) for decision in kept["decisions"]]
    seen = {"subjects": facts["subjects"], "images": facts["images"], "modalities together": facts["patterns"]}
    seen |= {"first image of": facts["grids"], "looked at": ", ".join(facts["looked_at"])}
    return {
        "rows": [(each.field, value_in_words(each), each.by, each.reason) for each in decisions],
        "notes": kept["notes"],
        "seen": flat(seen),
    }


def _costs(run: Path) -> list[dict[str, Any]]:
    """What each saved model took, as its checkpoint says; none before the first save."""
    folders = [run, *sorted((run / "reference").glob("*"))]
    found = [checkpoint.read_config(folder) for folder in folders if (folder / checkpoint.CONFIG).is_file()]
    names = ("wall_minutes", "steps", "crops", "parameters", "hardware", "finished")
    return [{"model": config.model} | {name: config.training.get(name) for name in names} for config in found]


def _table(watched: Sequence[Point], models: Sequence[str]) -> list[dict[str, Any]]:
    """One row a validation: minutes and dB of each model; what was logged again after a stop counts once."""
    series = {model: {p.step: p for p in watched if p.model == model} for model in models}
    rows = zip(*(sorted(points.values(), key=lambda p: p.step) for points in series.values()), strict=False)
    return [{"progress": row[0].progress, "points": row, "best": max(p.value for p in row)} for row in rows]


def _samples(run: Path) -> list[Path]:
    """In the order in which they were drawn."""
    return sorted((run / "samples").glob("[!.]*.png"), key=lambda path: int(path.stem.split("-")[0]))


def _by_name(points: Sequence[Point]) -> dict[str, list[Point]]:
    named: dict[str, list[Point]] = {}
    for p in points:
        named.setdefault(p.name, []).append(p)
    return named


def _curves(named: dict[str, list[Point]], models: Sequence[str]) -> str:
    """A panel a number over minutes, a line a model; as an address."""
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, max(1, len(named)))
    lines = math.ceil(len(named) / columns) or 1
    width, height = (_PANEL_INCHES[0] * columns, _PANEL_INCHES[1] * lines) if len(named) > 1 else (8.0, 3.4)
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, (name, points) in zip(panels, named.items(), strict=False):
        _panel(axes, name, points, models)
    for axes in panels[len(named) :]:
        axes.axis("off")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return _address(buffer.getvalue())


def _panel(axes: "Axes", name: str, points: Sequence[Point], models: Sequence[str]) -> None:
    for model, colour in zip(models, _COLOURS * len(models), strict=False):
        mine = [p for p in points if p.model == model]
        if mine:
            minutes, values = [p.seconds / 60 for p in mine], [p.value for p in mine]
            dots = "o" if name == VALIDATION else None
            axes.plot(minutes, values, color=colour, linewidth=1.2, marker=dots, markersize=3.5, label=model)
    title = "validation: PSNR inside the foreground (dB)" if name == VALIDATION else name.replace("_", " ")
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("minutes of learning", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7)


def _address(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
