"""Names from outside are shown, never obeyed: by a terminal, a Markdown page, a spreadsheet or a browser."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medk2n.cli.complaints import say
from medk2n.io.shown import csv_text, in_markdown, one_line, visible

NASTY = ["\x1b[2J\x1b[31mEVIL", "a\nb", "\u202egnp", "\x07", '=HYPERLINK("http://x","y")', "<img src=x onerror=y>",
         "a|b", "\udce9", "+1", "-cmd", "@x", "\t=1", "[a](javascript:b)", "`x`"]  # fmt: skip


@given(st.text() | st.sampled_from(NASTY))
def test_nothing_that_a_terminal_would_obey_is_left(text: str) -> None:
    assert visible(text).isprintable()
    assert one_line(text).isprintable()
    visible(text).encode("utf-8")


@given(st.text() | st.sampled_from(NASTY))
def test_a_cell_of_markdown_stays_one_cell_without_markup(text: str) -> None:
    cell = in_markdown(text)
    assert cell.isprintable()
    assert not set("<>") & set(cell)
    for mark in "|`[":
        assert cell.count(mark) == cell.count(f"\\{mark}")


@given(st.lists(st.text() | st.sampled_from(NASTY) | st.integers(-9, 9) | st.floats(-9, 9), min_size=1, max_size=4))
def test_no_cell_of_a_table_is_a_formula_and_numbers_stay_numbers(row: list) -> None:
    header, read = csv.reader(io.StringIO(csv_text([f"c{k}" for k in range(len(row))], [row])))
    assert len(read) == len(header)
    for value, cell in zip(row, read, strict=True):
        if isinstance(value, str):
            assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
        else:
            assert float(cell) == pytest.approx(value)


def test_what_is_said_is_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    say(*NASTY)
    assert len(capsys.readouterr().out.splitlines()) == len(NASTY)
