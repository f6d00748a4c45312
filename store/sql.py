"""SQL over a store: DuckDB on its Parquet tables, read in place.

Views `neurons`, `documents`, `windows`, `tokens` are those of the chosen capture; a capture's own schema holds them under
its name (`corpus.neurons`; a name that DuckDB keeps for itself, or that differs from another only in capital letters, gets
none); a capture of questions has `prompts` and `queries` too, one of images `patches`. `vocabulary` and `model` (the neurons as
the weights alone know them) belong to the store, and so do `graph_nodes` and `graph_lines`, whose column `graphs` says of which
set of neuron graphs. A query makes what it names, and nothing else is read.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import duckdb

from actstore.store.capture.answers import answer_tables, has_attributions
from actstore.store.capture.record import read_capture
from actstore.store.capture.tables import expected_of
from actstore.store.errors import FormatError, InvalidInputError
from actstore.store.files.parquet import check_table, read_table
from actstore.store.graphs.record import graph_names
from actstore.store.graphs.tables import graph_tables
from actstore.store.layout import VOCABULARY_KEY, table_key

if TYPE_CHECKING:
    import pyarrow as pa

    from actstore.store.capture.captures import Captures
    from actstore.store.capture.reader import Capture
    from actstore.store.files.records import CaptureRecord
    from actstore.store.model.root import Root


READING: Final = {"SELECT", "EXPLAIN", "MULTI"}
"""Kinds of statements that write nothing; the last is how DuckDB calls a pivot."""
CAPTURE_TABLES: Final = ("documents", "windows", "patches", "neurons", "prompts", "queries", "tokens")
GRAPH_TABLES: Final = ("graph_nodes", "graph_lines")
RESERVED_SCHEMAS: Final = ("main", "temp", "system", "pg_catalog", "information_schema")
_CATALOGS: Final = ("information_schema", "duckdb_", "pg_", "sqlite_", "show", "describe", "pragma")
"""One of these is in every query that may ask which tables there are."""


class _Query:
    """What of a store a query needs: nothing else is opened. A name that it does not contain, it cannot ask for."""

    def __init__(self, text: str) -> None:
        self._text = text.lower()
        self._lists_tables = any(word in self._text for word in _CATALOGS)

    def contains(self, name: str) -> bool:
        """Whether the table or capture is named."""
        return name.lower() in self._text

    def needs(self, name: str) -> bool:
        """Whether the query may see that there is a table or capture of this name."""
        return self._lists_tables or self.contains(name)


_ALL_TABLES: Final = _Query("show tables")


def run_sql(store: Captures, query: str, capture: str | None) -> pa.Table:
    """The result of one query; `InvalidInputError` with DuckDB's reason where it cannot be run."""
    with duckdb.connect() as connection:
        _add_views(connection, store, capture, _Query(query))
        try:
            kinds = {statement.type.name for statement in connection.extract_statements(query)}
            if kinds - READING:
                raise InvalidInputError(
                    f"A query only reads, and this is one of {', '.join(sorted(kinds - READING))}: begin it with select. "
                    "To write a result, use `export`, or write the table that a query returns."
                )
            result = connection.sql(query)
            if result is not None:
                return result.to_arrow_table()
        except duckdb.Error as error:
            reason = " ".join(str(error).split("\n\n")[0].split("Did you mean")[0].split())
            if "Table with name" in reason:
                tables = ", ".join(_tables(store, capture))
                reason += f" Tables: {tables}; of a capture by name, NAME.tokens and so on."
            raise InvalidInputError(f"The query cannot be run: {reason}") from None
    raise InvalidInputError('The query gives no table. Ask something, such as "select * from neurons limit 5".')


def _add_views(connection: duckdb.DuckDBPyConnection, store: Captures, capture: str | None, query: _Query) -> None:
    """Show the store's tables that the query needs."""
    names = [name for name in store.folder.names("captures") if query.needs(name)]
    names = [name for name in names if read_capture(store.folder, name) is not None]
    taken = Counter([*RESERVED_SCHEMAS, *(name.lower() for name in names)])
    for name in names:
        if taken[name.lower()] == 1:  # SQL does not tell capital letters from small ones
            connection.execute(f"CREATE SCHEMA {_quoted(name)}")
            _add_capture(connection, store.capture(name), _quoted(name) + ".", query)
    if capture is not None:
        _add_capture(connection, store.capture(capture), "", query)
    elif any(map(query.needs, CAPTURE_TABLES)) and (default := store.default_capture()) is not None:
        _add_capture(connection, store.capture(default), "", query)
    _add_table(connection, store, "vocabulary", VOCABULARY_KEY, query)
    _add_table(connection, store, "model", table_key(None, "neurons"), query)
    for table in GRAPH_TABLES:
        if query.contains(table):
            for rows in graph_tables(store, table):
                _add_arrow(connection, table, rows)


def _tables(store: Captures, capture: str | None) -> list[str]:
    """The tables that a query can name without a capture's name, those included that are made when one is named."""
    with duckdb.connect() as connection:
        _add_views(connection, store, capture, _ALL_TABLES)
        query = "select table_name from information_schema.tables where table_schema = 'main'"
        made = {name for (name,) in connection.execute(query).fetchall() if not name.startswith("_arrow_")}
    return sorted(made | {"tokens"} | (set(GRAPH_TABLES) if graph_names(store.folder) else set()))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _add_capture(connection: duckdb.DuckDBPyConnection, capture: Capture, prefix: str, query: _Query) -> None:
    for table in ("documents", "windows", "patches"):
        _add_table(
            connection, capture.store, f"{prefix}{table}", table_key(capture.record.name, table), query, capture.record
        )
    if capture.is_finished:
        _add_table(
            connection,
            capture.store,
            f"{prefix}neurons",
            table_key(capture.record.name, "neurons"),
            query,
            capture.record,
        )
    elif query.needs("neurons"):
        _add_arrow(connection, f"{prefix}neurons", capture.neurons().to_arrow())
    if has_attributions(capture) and (query.needs("prompts") or query.needs("queries")):
        for table, rows in answer_tables(capture).items():
            _add_arrow(connection, f"{prefix}{table}", rows)
    if query.contains("tokens"):
        _add_arrow(connection, f"{prefix}tokens", capture.tokens().to_arrow())


def _add_table(
    connection: duckdb.DuckDBPyConnection,
    store: Root,
    view: str,
    key: str,
    query: _Query,
    record: CaptureRecord | None = None,
) -> None:
    """Show the table under `key`, one of the capture of a record where there is one, as `view`.

    Where the query names it, every byte is checked first, as DuckDB does not.
    """
    table = view.rpartition(".")[2]
    if not query.needs(table) or not store.folder.exists(key):
        return
    local_path = store.folder.local_path(key)
    if local_path is None:
        expected = {} if record is None else expected_of(record, table)
        _add_arrow(connection, view, read_table(store.folder, key, **expected))
        return
    is_named = query.contains(table)
    if is_named:
        check_table(store.folder, key, **({} if record is None else expected_of(record, table)))
    path = str(local_path.absolute()).replace("'", "''")
    try:
        connection.execute(f"CREATE VIEW {view} AS SELECT * FROM read_parquet('{path}')")
    except (duckdb.Error, RuntimeError) as error:
        if is_named:  # what nobody asks about may be damaged
            raise FormatError(f"{store.folder}/{key} is damaged: {' '.join(str(error).split())}.") from None


def _add_arrow(connection: duckdb.DuckDBPyConnection, view: str, table: pa.Table) -> None:
    hidden = f"_arrow_{id(table)}"  # the connection keeps the table alive, so no other will have its id
    connection.register(hidden, table)
    connection.execute(f"CREATE VIEW {view} AS SELECT * FROM {hidden}")
