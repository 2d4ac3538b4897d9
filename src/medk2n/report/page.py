"""Self-contained HTML pages: a template filled, nothing fetched, nothing run."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medk2n.io.shown import writable


def render(template: str, context: Mapping[str, Any]) -> str:
    """One of `templates/` as HTML text; what is missing from `context` is an error, not a gap."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,  # file names and study ids come from outside
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["db"] = lambda value: "n/a" if value is None or math.isnan(value) else f"{value:.1f} dB"
    environment.filters["number"] = lambda value: "n/a" if value is None or math.isnan(value) else f"{value:.2f}"
    return writable(environment.get_template(template).render(**context))


def flat(record: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A nested record as rows of a table: {"a": {"b": 1}} -> [("a b", "1")]."""
    rows: list[tuple[str, str]] = []
    for key, value in dict(record).items():
        name = f"{prefix} {key}".strip().replace("_", " ")
        rows += flat(value, name) if isinstance(value, dict) else [(name, str(value))]
    return rows
