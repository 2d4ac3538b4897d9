"""How a name or a message from outside is shown: nothing in it is obeyed by what shows it."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_MARKDOWN = {c: f"\\{c}" for c in "\\`*[]|#"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"}


def writable(text: str) -> str:
    """`text` with what no UTF-8 can say, such as a byte of an old file name, as an escape; its lines as they are."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def visible(text: str) -> str:
    """`text` with what a terminal would obey (line breaks, escape sequences, marks of direction) made visible."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    """`text` on one line, its line breaks as spaces, the rest `visible`."""
    return visible(" ".join(text.split()))


def in_markdown(text: str) -> str:
    """`text` as a cell or a heading of a Markdown page: no markup, no HTML, one line."""
    return "".join(_MARKDOWN.get(c, c) for c in one_line(text))


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as CSV; a text that a spreadsheet would take for a formula begins with an apostrophe."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    shown = one_line(value)
    return f"'{shown}" if shown.startswith(_FORMULA) or value.startswith(_FORMULA) else shown
