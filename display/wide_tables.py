"""Tables of as many columns as there are labels, layers or measures, in a width that can be read: split, not wrapped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Group
from rich.text import Text

from actstore.display import terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

WIDTH = 120
"""Characters of a line at most, on a wider terminal and in a file, too."""
GAP = 2
"""Characters between two columns."""


def fitted_table(
    title: str | None,
    columns: Sequence[str | Sequence[str]],
    rows: Sequence[Sequence[object]],
    *,
    n_keys: int = 1,
    width: int | None = None,
) -> RenderableType:
    """A table like `terminal.table`, in as many parts below one another as its columns need to fit into `width`.

    Each part begins with the first `n_keys` columns, which say what a row is, and has at least one more. `width` is that of
    standard output unless given, at most `WIDTH`.
    """
    limit = min(WIDTH, terminal.out.width) if width is None else width
    widths = [_width(column, [row[i] for row in rows]) for i, column in enumerate(columns)]
    taken = sum(widths[:n_keys]) + GAP * max(0, n_keys - 1)
    parts: list[list[int]] = [[]]
    room = limit - taken
    for i in range(n_keys, len(columns)):
        if parts[-1] and widths[i] + GAP > room:
            parts.append([])
            room = limit - taken
        parts[-1].append(i)
        room -= widths[i] + GAP
    made: list[RenderableType] = []
    for number, part in enumerate(parts):
        shown = [*range(n_keys), *part]
        made += [""] if number else []
        made.append(
            terminal.table(
                title if number == 0 else None, [columns[i] for i in shown], [[row[i] for i in shown] for row in rows]
            )
        )
    return Group(*made) if len(made) > 1 else made[0]


def transposed(
    heading: str, columns: Sequence[str | Sequence[str]], rows: Sequence[Sequence[object]]
) -> tuple[list[str | Sequence[str]], list[list[Any]]]:
    """Columns and rows with the two exchanged: for few rows of many columns. The first column's cells become headings."""
    names = [column if isinstance(column, str) else column[0] for column in columns]
    turned = [[name, *(row[i] for row in rows)] for i, name in enumerate(names) if i]
    return [heading, *((str(row[0]), "right") for row in rows)], turned


def folded_lists(
    columns: Sequence[str | Sequence[str]], rows: Sequence[Sequence[object]], *, width: int | None = None
) -> list[list[object]]:
    """The rows of a table whose last column holds lists such as "L0.N1 0.5, L3.N2 0.4": put on several lines, to fit."""
    limit = min(WIDTH, terminal.out.width) if width is None else width
    others = [_width(column, [row[i] for row in rows]) + GAP for i, column in enumerate(columns[:-1])]
    room = max(cell_len(columns[-1] if isinstance(columns[-1], str) else columns[-1][0]), limit - sum(others))
    return [[*row[:-1], Text(_folded(str(row[-1]), room))] for row in rows]


def _folded(text: str, room: int) -> str:
    lines = [""]
    for item in text.split(", "):
        longer = f"{lines[-1]}, {terminal.visible(item)}" if lines[-1] else terminal.visible(item)
        if lines[-1] and cell_len(longer) + 1 > room:
            lines[-1] += ","
            longer = terminal.visible(item)
            lines.append("")
        lines[-1] = longer
    return "\n".join(lines)


def _width(column: str | Sequence[str], values: Sequence[object]) -> int:
    name = column if isinstance(column, str) else column[0]
    texts = (value.plain if isinstance(value, Text) else terminal.cell(value) for value in values)
    return max(cell_len(name), *(cell_len(text) for text in texts), 0)
