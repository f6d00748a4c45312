"""The page of SQL: a query in the store's sandbox."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from actstore.explorer.pages.numbers import short

if TYPE_CHECKING:
    from actstore.store.reader import Store

ROWS: Final = 1000
"""Rows that a page is given; `n` says how many there are."""
TIMEOUT_S: Final = 30.0
MEMORY: Final = 1 << 30
"""Bytes of a query: a server has other pages to make."""


def sql_page(store: Store, /, *, query: str = "", capture: str = "") -> dict[str, Any]:
    """What `sql --json` prints, of at most `ROWS` rows."""
    result = store.sql(query, capture or None, memory=MEMORY, timeout_s=TIMEOUT_S)
    return {
        "columns": result.column_names,
        "types": [str(field.type) for field in result.schema],
        "rows": short(result.slice(0, ROWS).to_pylist()),
        "n": result.num_rows,
    }
