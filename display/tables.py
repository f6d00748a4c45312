"""The tables that a store's questions are answered with, as text and as HTML: some rows, and how many there are."""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING, Final

import pyarrow as pa
from rich.cells import cell_len, set_cell_size

from actstore.display import terminal
from actstore.display.wide_tables import GAP, WIDTH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actstore.store.table import Table

ROWS: Final = 20
"""Rows shown; of a longer table the first and the last half of as many."""
CELL_WIDTH: Final = 40
"""Characters of a value, and of a column's name, at most."""
_ELLIPSIS: Final = "…"


def shown_rows(table: Table) -> tuple[list[list[str]], list[list[str]]]:
    """The cells, in full, of the first rows that are shown and of the last; of a table without more rows, all are first."""
    arrow = table.to_arrow()
    if arrow.num_rows <= ROWS:
        return _cells(arrow), []
    half = ROWS // 2
    return _cells(arrow.slice(0, half)), _cells(arrow.slice(arrow.num_rows - half, half))


def shortened(text: str) -> str:
    """A text of at most `CELL_WIDTH` characters: a longer one without its end."""
    return text if cell_len(text) <= CELL_WIDTH else set_cell_size(text, CELL_WIDTH - 1) + _ELLIPSIS


def table_columns(table: Table) -> list[tuple[str, str]]:
    """Name and justification of every column: numbers to the right."""
    return [(field.name, "right" if is_number(field.type) else "left") for field in table.schema]


def size_of(table: Table) -> str:
    """The size in words, such as `1,234 rows × 5 columns`."""
    return f"{terminal.plural(table.num_rows, 'row')} × {terminal.plural(len(table.schema), 'column')}"


def is_number(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type are numbers."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def table_text(table: Table, width: int | None = None) -> str:
    """The table as plain text: as many columns as `width` holds, then its size and what of it is not shown.

    `width` is that of standard output unless given, at most `WIDTH`.
    """
    limit = min(WIDTH, terminal.out.width) if width is None else width
    columns = [(shortened(terminal.visible(name)), justify) for name, justify in table_columns(table)]
    first, last = ([[shortened(text) for text in row] for row in rows] for rows in shown_rows(table))
    rows = [*first, [_ELLIPSIS] * len(columns), *last] if last else first
    n_columns = _n_fitting(columns, rows, limit)
    buffer = StringIO()
    # In a notebook, rich would show what it prints there and then, and write nothing into the buffer.
    screen = terminal.Screen(file=buffer, width=max(limit, 1), color_system=None, force_jupyter=False)
    if n_columns:
        screen.print(terminal.table(None, columns[:n_columns], [row[:n_columns] for row in rows]))
    size = size_of(table)
    if last:
        size += f"; rows not shown: {table.num_rows - len(first) - len(last):,}"
    if n_columns < len(columns):
        size += f"; columns not shown: {', '.join(name for name, _ in columns[n_columns:])}"
    screen.print(size)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def _n_fitting(columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]], limit: int) -> int:
    """How many of the first columns a line holds; at least one, where there is one."""
    taken = 0
    for i, (name, _) in enumerate(columns):
        taken += max(cell_len(text) for text in (name, *(row[i] for row in rows))) + (GAP if i else 0)
        if i and taken > limit:
            return i
    return len(columns)


def _cells(arrow: pa.Table) -> list[list[str]]:
    return [[terminal.cell(value) for value in row.values()] for row in _rows(arrow)]


def _rows(arrow: pa.Table) -> list[dict[str, object]]:
    """Rows by number of the column: two columns of a query's result may have one name."""
    return arrow.rename_columns([str(i) for i in range(arrow.num_columns)]).to_pylist()  # type: ignore[no-any-return]
