"""The table that questions about a store are answered with: an Arrow table that prints as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from actstore.store import hooks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from pandas import DataFrame  # type: ignore[import-untyped]  # one of the reader's, if at all


class Table:
    """An Arrow table; `print` shows it as a table, and so does a notebook.

    It has every attribute and method of `pyarrow.Table`; those that give a table give one of this class. DuckDB, polars,
    pandas and `pyarrow.table` take it as it is, through the Arrow PyCapsule interface; `to_arrow` gives the plain table.

    >>> neurons = store.neurons()
    >>> neurons.column_names, len(neurons)
    >>> neurons["mean"].to_numpy()
    >>> neurons.sort_by([("max", "descending")])[:10]
    >>> neurons.to_pandas()
    >>> duckdb.sql("select layer, avg(positive) from neurons group by layer")
    """

    __slots__ = ("_arrow",)
    __hash__ = None  # type: ignore[assignment]  # as tables that compare by their values

    def __init__(self, arrow: pa.Table) -> None:
        """The table around `arrow`, which is not copied."""
        self._arrow = arrow

    def to_arrow(self) -> pa.Table:
        """The `pyarrow.Table`; not a copy."""
        return self._arrow

    def to_pandas(self, **options: Any) -> DataFrame:
        """The table as a pandas data frame, with the options of `pyarrow.Table.to_pandas`; needs pandas."""
        return self._arrow.to_pandas(**options)

    def to_pylist(self) -> list[dict[str, Any]]:
        """One dict per row."""
        rows: list[dict[str, Any]] = self._arrow.to_pylist()
        return rows

    @property
    def column_names(self) -> list[str]:
        """The names of the columns, in their order."""
        names: list[str] = self._arrow.column_names
        return names

    @property
    def num_rows(self) -> int:
        """The number of rows."""
        return int(self._arrow.num_rows)

    @property
    def schema(self) -> pa.Schema:
        """Names, types and metadata of the columns."""
        return self._arrow.schema

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what is not defined below is not promised to protocols
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        value = getattr(self._arrow, name)
        return _returning_tables(value) if callable(value) else value

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *(name for name in dir(self._arrow) if not name.startswith("_"))})

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, key: str | int | slice | Sequence[str]) -> Any:
        """A column by name or number; some rows, as a table, by a slice; some columns, as a table, by a list of names."""
        if isinstance(key, list | tuple):
            return Table(self._arrow.select(key))
        return _as_table(self._arrow[key])

    def __eq__(self, other: object) -> bool:
        other = _as_arrow(other)
        return bool(self._arrow.equals(other)) if isinstance(other, pa.Table) else NotImplemented

    def __reduce__(self) -> tuple[type[Table], tuple[pa.Table]]:
        return Table, (self._arrow,)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._arrow.__arrow_c_stream__(requested_schema)

    def __dataframe__(self, *arguments: Any, **options: Any) -> Any:
        return self._arrow.__dataframe__(*arguments, **options)

    def __array__(self, dtype: np.dtype[Any] | None = None, copy: bool | None = None) -> NDArray[Any]:
        values: NDArray[Any] = self._arrow.__array__(dtype=dtype, copy=copy)
        return values

    def __repr__(self) -> str:
        return hooks.table_text(self)

    def _repr_html_(self) -> str:
        return hooks.notebook_html(self)


def _as_table(value: Any) -> Any:
    return Table(value) if isinstance(value, pa.Table) else value


def _as_arrow(value: Any) -> Any:
    return value.to_arrow() if isinstance(value, Table) else value


def _returning_tables(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of an Arrow table that takes and gives tables of this module's class."""

    def call(*arguments: Any, **options: Any) -> Any:
        options = {name: _as_arrow(value) for name, value in options.items()}
        return _as_table(method(*map(_as_arrow, arguments), **options))

    call.__doc__ = method.__doc__
    call.__name__ = getattr(method, "__name__", "call")
    return call
