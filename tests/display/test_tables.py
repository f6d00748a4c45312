"""Tables as text and as HTML."""

from __future__ import annotations

import pyarrow as pa

from actstore.display.tables import table_text
from actstore.store.table import Table


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
        "n", *map(str, range(10)), "…", *map(str, range(990, 1000)), "1,000 rows × 1 column"
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
