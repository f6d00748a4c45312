"""Tables as text and as HTML."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from actstore.api.results import Answer
from actstore.display.tables import table_text
from actstore.store.table import Table

if TYPE_CHECKING:
    import pytest


def text(columns: dict[str, object], width: int = 80) -> list[str]:
    return table_text(Table(pa.table(columns)), width).splitlines()


def test_numbers_stand_to_the_right_and_nothing_is_a_dash() -> None:
    assert text({"name": ["a", None], "count": [1234, 5], "mean": [0.123456, None]}) == [
        "name  count    mean",
        "a     1,234  0.1235",
        "–         5       –",
        "2 rows × 3 columns",
    ]


def test_of_a_long_table_the_first_and_the_last_rows_are_shown() -> None:
    lines = text({"n": list(range(1000))})
    assert [line.strip() for line in lines] == [
        "n", *map(str, range(10)), "…", *map(str, range(990, 1000)), "1,000 rows × 1 column; rows not shown: 980"
    ]  # fmt: skip
    assert len(text({"n": list(range(20))})) == 22


def test_columns_that_find_no_room_are_named() -> None:
    lines = text({"first": ["x" * 10], "second": ["y" * 10], "third": [3], "fourth": [4]}, width=24)
    assert lines[:2] == ["first       second", "xxxxxxxxxx  yyyyyyyyyy"]
    assert "".join(lines[2:]).replace(" ", "") == "1row×4columns;columnsnotshown:third,fourth"


def test_one_column_is_shown_however_wide() -> None:
    assert text({"first": ["x" * 30], "second": [1]}, width=10)[0].startswith("first")


def test_long_values_are_shortened_and_controls_visible() -> None:
    lines = text({"tokens": [["a" * 50, "b"]], "text": ["line\nbreak\x1b[2J"]})
    assert lines[1] == "a" * 39 + "…  line↵break␛[2J"


def test_columns_of_one_name_are_all_shown() -> None:
    table = Table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["n", "n"]))
    assert table_text(table, 80).splitlines()[:2] == ["n  n", "1  2"]


def test_an_empty_table_says_what_it_is() -> None:
    assert text({"n": pa.array([], pa.int64())}) == ["n", "0 rows × 1 column"]
    assert table_text(Table(pa.table({})), 80) == "0 rows × 0 columns"


def test_a_notebook_shows_every_column_escaped() -> None:
    html = Table(pa.table({"<b>": ["<script>"], **{f"column{i}": [i] for i in range(40)}}))._repr_html_()
    assert "&lt;script&gt;" in html
    assert "<script" not in html
    assert "column39" in html
    assert "1 row × 41 columns" in html


WIDE = Table(
    pa.table(
        {
            "name": [f"L0.N{i}" for i in range(1234)],
            "text": ["<" + "long " * 30] * 1234,
            "mean": [0.123456789] * 1234,
            "h" * 60: [1] * 1234,
            **{f"column{i}": [i] * 1234 for i in range(40)},
        }
    )
)
"""More columns, rows and characters than a screen holds."""


def test_a_wide_table_fits_into_a_line_of_120_characters() -> None:
    for width in (120, 80):
        lines = table_text(WIDE, width).splitlines()
        assert max(map(len, lines)) <= width
    shown = "".join(table_text(WIDE, 120).split())
    assert "1,234rows×44columns;rowsnotshown:1,214;columnsnotshown:" in shown
    assert shown.endswith("column39")


def test_a_notebook_scrolls_a_wide_table_in_a_box_of_its_own() -> None:
    html = WIDE._repr_html_()
    box = html[html.index("<div style='overflow-x:auto") :]
    assert box.index("<table") < box.index("</table></div>")
    assert html.count("white-space:nowrap") == 44 * 21 + 1


def test_a_notebook_shortens_long_cells_and_has_the_whole_at_the_pointer() -> None:
    html = WIDE._repr_html_()
    whole = "&lt;" + "long " * 30
    assert html.count(f"<span title='{whole}'>&lt;long long") == 20
    assert f">{whole}" not in html
    assert f"<span title='{'h' * 60}'>{'h' * 39}…</span>" in html
    longest = Table(pa.table({"values": [list(range(100_000))]}))._repr_html_()
    assert len(longest) < 5000


def test_a_notebook_says_how_many_rows_there_are_more_and_puts_numbers_to_the_right() -> None:
    html = WIDE._repr_html_()
    assert html.count("<tr>") == 1 + 20 + 1
    between = html.index("… 1,214 more rows</td>")
    assert html.index("L0.N9<") < between < html.index("L0.N1224<")
    assert "colspan='44'" in html
    assert "text-align:right;vertical-align:top;padding:1px 10px 1px 0;white-space:nowrap'>0.1235</td>" in html
    assert WIDE["mean"][0].as_py() == 0.123456789
    assert "more row" not in Table(pa.table({"n": list(range(20))}))._repr_html_()


def test_an_answer_shows_its_warnings_in_a_notebook_too() -> None:
    html = Answer(Table(pa.table({"n": [1]})), None, ("Few tokens & fewer <labels>.",))._repr_html_()
    assert "<div>Warning: Few tokens &amp; fewer &lt;labels&gt;.</div>" in html


def test_a_table_is_text_in_a_notebook_too(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(pa.table({"name": ["L3.N17"], "max": [2.5]}))
    expected = str(table)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert str(table) == expected
    assert "L3.N17" in expected
