"""One page for a whole data set of synthetic images: a table that sorts, the least sure studies on top."""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import medk2n
from medk2n.io.atomic import write_text
from medk2n.io.outputs import OutputFolder, output_folder
from medk2n.report.page import render
from medk2n.report.record import records
from medk2n.report.words import quality_words

GROUP = "group.html"
MOST_BYTES = 10_000_000
# Sorts a table by the column whose header is pressed. The page allows this script alone, by its hash.
_SORT = """
document.querySelectorAll("th button").forEach(function (button) {
  button.addEventListener("click", function () {
    var header = button.closest("th"), column = header.cellIndex, body = header.closest("table").tBodies[0];
    var down = header.getAttribute("aria-sort") === "ascending";
    header.closest("tr").querySelectorAll("th").forEach(function (other) { other.removeAttribute("aria-sort"); });
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    Array.from(body.rows).sort(function (a, b) {
      var x = a.cells[column].dataset.key, y = b.cells[column].dataset.key, numbers = header.dataset.kind === "number";
      var order = numbers ? parseFloat(x) - parseFloat(y) : x.localeCompare(y, undefined, { numeric: true });
      return down ? -order : order;
    }).forEach(function (row) { body.appendChild(row); });
  });
});
"""


def write_group(dataset: Path, absent: Sequence[str] = ()) -> Path:
    """Write `group.html` into a data set of results from its records; returns its path.

    Args:
        absent: studies that should be there and are not; named on top.
    """
    found = records(dataset)
    html = _page(dataset, found, absent, pictures=True)
    if len(html.encode()) > MOST_BYTES:
        html = _page(dataset, found, absent, pictures=False)
    with group_page(dataset) as folder, folder.whole(last=GROUP) as new:
        write_text(new / GROUP, html)
    return dataset / GROUP


@contextmanager
def group_page(dataset: Path) -> Iterator[OutputFolder]:
    """Hold the place of the page; raises OutputExistsError if a page of somebody else is there."""
    with output_folder(dataset, [], shared=[GROUP], part="group") as folder:
        yield folder


def _page(dataset: Path, found: Sequence[dict[str, Any]], absent: Sequence[str], *, pictures: bool) -> str:
    rows = sorted((_row(record) for record in found), key=lambda row: (row["worst"], row["study"]))
    return render(
        "group.html.j2",
        {
            "name": dataset.resolve().name,
            "version": medk2n.__version__,
            "rows": rows,
            "targets": sorted({name for row in rows for name in row["targets"]}),
            "absent": absent,
            "pictures": pictures,
            "script": _SORT,
            "script_hash": base64.b64encode(hashlib.sha256(_SORT.encode()).digest()).decode("ascii"),
        },
    )


def _row(record: dict[str, Any]) -> dict[str, Any]:
    worst = min(target["predicted_psnr_db"] for target in record["targets"].values())
    return {
        "study": record["study"],
        "report": record["report"],
        "inputs": record["inputs"],
        "targets": record["targets"],
        "worst": worst,
        "word": quality_words(worst)[0],
        "warnings": record["warnings"],
        "seconds": record["elapsed_s"],
    }
