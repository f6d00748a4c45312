"""Columns of the table of nodes, and its values as arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    from numpy.typing import NDArray

IGNORE, BOUNDARY = -1, -2
"""Tokens of nodes that stand for any one token, and for what comes before a window's first token."""

COLUMNS: Final = ("parent", "token", "depth", "probability", "value", "count", "fires", "importance")


def column(table: pa.Table, name: str) -> NDArray[Any]:
    """A column of an Arrow table as an array, without a copy where it lies in one piece."""
    values: NDArray[Any] = table[name].to_numpy()
    return values


def pieces(table: pa.Table, name: str) -> Iterator[tuple[int, NDArray[Any]]]:
    """A column as it lies in memory, piece by piece, each with the row it begins at."""
    first = 0
    for chunk in table[name].chunks:
        yield first, chunk.to_numpy()
        first += len(chunk)


def gather(table: pa.Table, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
    """A column's values at some rows; only the pieces that hold them are touched."""
    gathered = np.empty(len(rows), table.schema.field(name).type.to_pandas_dtype())
    for first, values in pieces(table, name):
        in_piece = (rows >= first) & (rows < first + len(values))
        if in_piece.all():
            return values[rows - first]
        gathered[in_piece] = values[rows[in_piece] - first]
    return gathered
