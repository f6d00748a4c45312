"""SQL over a store: DuckDB on its Parquet tables, read in place.

Views `neurons`, `documents`, `windows`, `tokens` are those of the chosen capture; a capture's own schema holds them under
its name (`corpus.neurons`; a name that DuckDB keeps for itself, or that differs from another only in capital letters, gets
none); a capture of questions has `prompts` and `queries` too, one of images `patches`. `vocabulary` and `model` (the neurons as
the weights alone know them) belong to the store, and so do `graph_nodes` and `graph_lines`, whose column `graphs` says of which
set of neuron graphs. Knows nothing about what the columns mean.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import duckdb

from actstore.store.capture.answers import answer_tables, has_attributions
from actstore.store.errors import FormatError, InvalidInputError
from actstore.store.files.parquet import check_table, read_table
from actstore.store.graphs.record import graph_names
from actstore.store.graphs.tables import graph_tables
from actstore.store.layout import DEFAULT_CAPTURE, VOCABULARY_KEY, table_key

if TYPE_CHECKING:
    import pyarrow as pa

    from actstore.store.capture.captures import Captures
    from actstore.store.capture.reader import Capture
    from actstore.store.model.root import Root


ASKING: Final = {"SELECT", "EXPLAIN", "MULTI"}
"""Kinds of statements that write nothing; the last is how DuckDB calls a pivot."""
GRAPH_TABLES: Final = ("graph_nodes", "graph_lines")
RESERVED_SCHEMAS: Final = ("main", "temp", "system", "pg_catalog", "information_schema")


def run_sql(store: Captures, query: str, capture: str | None) -> pa.Table:
    """The result of one query; `InvalidInputError` with DuckDB's reason where it cannot be run."""
    with duckdb.connect() as connection:
        named = query.lower()
        captures = store.captures
        taken = Counter([*RESERVED_SCHEMAS, *(name.lower() for name in captures)])
        for name in captures:
            if taken[name.lower()] == 1:  # SQL does not tell capital letters from small ones
                connection.execute(f"CREATE SCHEMA {_quoted(name)}")
                _add_capture(connection, store.capture(name), _quoted(name) + ".", named)
        if capture is not None or len(captures) == 1 or DEFAULT_CAPTURE in captures:
            _add_capture(connection, store.capture(capture), "", named)
        _add_table(connection, store, "vocabulary", VOCABULARY_KEY, named)
        _add_table(connection, store, "model", table_key(None, "neurons"), named)
        for table in GRAPH_TABLES:
            if table in named:
                for rows in graph_tables(store, table):
                    _add_arrow(connection, table, rows)
        try:
            kinds = {statement.type.name for statement in connection.extract_statements(query)}
            if kinds - ASKING:
                raise InvalidInputError(
                    f"A query only reads, and this is one of {', '.join(sorted(kinds - ASKING))}: begin it with select. "
                    "--json and `export` write what is found elsewhere."
                )
            result = connection.sql(query)
            if result is not None:
                return result.to_arrow_table()
        except duckdb.Error as error:
            reason = " ".join(str(error).split("\n\n")[0].split("Did you mean")[0].split())
            if "Table with name" in reason:
                reason += (
                    f" Tables: {', '.join(_tables(connection, store))}; of a capture by name, NAME.tokens and so on."
                )
            raise InvalidInputError(f"The query cannot be run: {reason}") from None
    raise InvalidInputError('The query gives no table. Ask something, such as "select * from neurons limit 5".')


def _tables(connection: duckdb.DuckDBPyConnection, store: Captures) -> list[str]:
    """The tables that a query can name without a capture's name, those included that are made when one is named."""
    query = "select table_name from information_schema.tables where table_schema = 'main'"
    made = {name for (name,) in connection.execute(query).fetchall() if not name.startswith("_arrow_")}
    return sorted(made | {"tokens"} | (set(GRAPH_TABLES) if graph_names(store.folder) else set()))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _add_capture(connection: duckdb.DuckDBPyConnection, capture: Capture, prefix: str, named: str) -> None:
    for table in ("documents", "windows", "patches"):
        _add_table(connection, capture.store, f"{prefix}{table}", table_key(capture.record.name, table), named)
    if capture.is_finished:
        _add_table(connection, capture.store, f"{prefix}neurons", table_key(capture.record.name, "neurons"), named)
    else:
        _add_arrow(connection, f"{prefix}neurons", capture.neurons())
    if has_attributions(capture):
        for table, rows in answer_tables(capture).items():
            _add_arrow(connection, f"{prefix}{table}", rows)
    if "tokens" in named:
        _add_arrow(connection, f"{prefix}tokens", capture.tokens())


def _add_table(connection: duckdb.DuckDBPyConnection, store: Root, view: str, key: str, named: str) -> None:
    """Show the table under `key` as `view`; where the query names it, every byte is checked first, as DuckDB does not."""
    if not store.folder.exists(key):
        return
    is_named = view.rpartition(".")[2] in named
    local_path = store.folder.local_path(key)
    if local_path is None:
        _add_arrow(connection, view, read_table(store.folder, key))
        return
    if is_named:
        check_table(store.folder, key)
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
