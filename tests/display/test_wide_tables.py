"""Tables of many columns: split into parts that fit, each with what its rows are; and what real names and numbers take."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from actstore.display import terminal, wide_tables
from actstore.display.wide_tables import fitted_table, folded_lists, transposed

if TYPE_CHECKING:
    import pytest
    from rich.console import RenderableType


def lines_of(table: RenderableType) -> list[str]:
    """What a pipe gets."""
    console = terminal.Screen(file=io.StringIO(), width=1 << 16)
    console.print(table)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_a_table_that_fits_is_one() -> None:
    lines = lines_of(fitted_table("title", ["name", ("n", "right")], [("a", 1), ("b", None)]))
    assert lines == ["title", "name  n", "a     1", "b     –"]


def test_a_table_that_does_not_fit_goes_on_below_with_its_keys() -> None:
    columns = ["name", *((f"c{i}", "right") for i in range(6))]
    lines = lines_of(fitted_table("t", columns, [("first", *range(6)), ("second", *range(6, 12))], width=20))
    assert lines == [
        "t", "name    c0  c1  c2", "first    0   1   2", "second   6   7   8", "",
        "name    c3  c4  c5", "first    3   4   5", "second   9  10  11",
    ]  # fmt: skip


@given(st.integers(1, 3), st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(60, 120), st.booleans())
def test_every_cell_is_there_once_and_no_line_is_longer(
    n_keys: int, widths: list[int], width: int, styled: bool
) -> None:
    keys, columns = [f"k{i}" for i in range(n_keys)], [f"c{i}" for i in range(len(widths))]
    cells: list[Any] = [chr(ord("A") + i) * n for i, n in enumerate(widths)]
    row = [*keys, *(Text(cell) if styled else cell for cell in cells)]
    lines = lines_of(fitted_table(None, [*keys, *columns], [row], n_keys=n_keys, width=width))
    assert max(map(len, lines)) <= width
    found = [word for line in lines[1::3] for word in line.split()[n_keys:]]
    assert found == cells
    assert all(line.split()[:n_keys] == keys for i, line in enumerate(lines) if i % 3 < 2)


def test_the_width_is_that_of_a_narrow_terminal_and_never_more_than_a_readable_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    columns, row = ["k", *("x" * 9 for _ in range(30))], ["k", *("y" * 9 for _ in range(30))]
    for out, longest in ((1 << 16, 120), (200, 120), (80, 80)):
        monkeypatch.setattr(wide_tables.terminal, "out", SimpleNamespace(width=out))
        lines = lines_of(fitted_table(None, columns, [row]))
        assert longest - 11 < max(map(len, lines)) <= longest


def test_long_lists_go_on_below_whole_item_by_whole_item() -> None:
    columns = ["query", ("n", "right"), "neurons"]
    text = ", ".join(f"L{i}.N{1000 * i} 0.{i}" for i in range(10, 20))
    rows = folded_lists(columns, [("q", 10, text), ("r", 1, "L1.N1 0.5"), ("s", 0, "–")], width=60)
    lines = lines_of(terminal.table(None, columns, rows))
    assert max(map(len, lines)) <= 60
    assert lines[1].startswith("q      10  L10.N10000 0.10, L11.N11000 0.11,")
    assert lines[-2:] == ["r       1  L1.N1 0.5", "s       0  –"]
    assert " ".join(line[11:] for line in lines[1:-2]) == text


def test_transposed_tables_have_a_row_per_column() -> None:
    columns, rows = transposed("measure", ["method", ("a", "right"), "b"], [("one", 1, 2), ("two", 3, 4)])
    assert columns == ["measure", ("one", "right"), ("two", "right")]
    assert rows == [["a", 1, 3], ["b", 2, 4]]


def test_an_edits_evaluation_fits_with_every_kind_of_case_and_every_baseline() -> None:
    from actstore.commands.edit.evaluate import tables
    from actstore.engine.edit.case_kinds import CASE_KINDS
    from actstore.engine.edit.evaluate import Evaluation

    kinds = {
        kind: {
            "cases": 12345,
            "p_before": 0.123,
            "p_after": 0.456,
            "generated": 0.5,
            "entropy_before": 1.0,
            **dict.fromkeys(of.measures, 1.0),
        }
        for kind, of in CASE_KINDS.items()
    }
    draw = {"by_kind": kinds, "questions": {}, "perplexity": {"change": 0.1234}}
    found = Evaluation({"edit": [draw], "fine-tune": [draw] * 3, "random": [draw] * 3}, [], None)
    ((title, columns, rows),) = tables(found)
    assert title is None
    assert max(map(len, lines_of(fitted_table(None, *transposed("measure (cases)", columns, rows))))) <= 120
    named = [
        line.split("  ")[0] for line in lines_of(fitted_table(None, *transposed("measure (cases)", columns, rows)))
    ]
    assert named[0] == "measure (cases)"
    assert {"image-locality ordered top 10 (12,345)", "reliability whole answers (12,345)", "perplexity"} <= set(named)
