"""A DuckDB connection that reads the tables it was given and nothing else: no file, no network, no extension, no writing.

A query may come from a page or another person. DuckDB by itself reads and writes whatever the process may:
`read_text('/etc/…')`, `explain analyze copy … to`, a download of an extension, and the Python variables of its caller.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import psutil

from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import duckdb

TIMEOUT_S: Final = 600.0
"""How long a query may run unless told."""
READING: Final = {"SELECT", "EXPLAIN", "MULTI"}
"""Kinds of statements that write nothing; the last is how DuckDB calls a pivot."""

_SETTINGS: Final[dict[str, str | bool | int | float | list[str]]] = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "python_enable_replacements": "false",  # names of Python variables are no tables
    "temp_directory": "",  # a result that does not fit into memory is refused, not written to a disk
}


def open_connection(memory: int | None = None) -> duckdb.DuckDBPyConnection:
    """A connection that is not closed up yet, whose queries take at most `memory` bytes: unless told, half of the machine's.

    `InvalidInputError` where DuckDB is not installed: a machine that captures, and is asked nothing in SQL, can do without.
    """
    try:
        import duckdb
    except ImportError:
        raise InvalidInputError("A query is run by DuckDB, which is not installed: `pip install duckdb`.") from None
    limit = memory or psutil.virtual_memory().total // 2
    return duckdb.connect(config=_SETTINGS | {"memory_limit": f"{limit}B"})


def close_up(connection: duckdb.DuckDBPyConnection) -> None:
    """Let a connection reach the tables that are registered with it, and nothing else; no query can undo it."""
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def check_reads_only(connection: duckdb.DuckDBPyConnection, query: str) -> None:
    """Raise `InvalidInputError` unless a query is one statement that reads; what EXPLAIN explains, it may run."""
    statements = connection.extract_statements(query)
    kinds = {kind for statement in statements for kind in _kinds(connection, statement)}
    if kinds - READING:
        raise InvalidInputError(
            f"A query only reads, and this is one of {', '.join(sorted(kinds - READING))}: begin it with select. "
            "To write a result, use `export`, or write the table that a query returns."
        )
    if len(statements) > 1:
        raise InvalidInputError(
            f"One query gives one table, found {len(statements)} statements: only the last would be shown. Ask one at a time."
        )


def _kinds(connection: duckdb.DuckDBPyConnection, statement: duckdb.Statement) -> Iterator[str]:
    """The kind of a statement, and of the one that it explains."""
    import duckdb

    yield statement.type.name
    if statement.type.name != "EXPLAIN":
        return
    text = statement.query
    for start, _ in duckdb.tokenize(text)[1:]:
        try:
            explained = connection.extract_statements(text[start:])
        except duckdb.Error:
            continue  # an option of EXPLAIN, or the middle of something
        for inner in explained:
            yield from _kinds(connection, inner)
        return
    yield "EXPLAIN of what cannot be told"


@contextmanager
def limited(connection: duckdb.DuckDBPyConnection, timeout_s: float) -> Iterator[None]:
    """Stop what the connection does after `timeout_s` seconds: `InvalidInputError`, also where its memory does not suffice."""
    import duckdb

    timer = threading.Timer(timeout_s, connection.interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    except duckdb.InterruptException:
        if timer.is_alive():
            raise
        raise InvalidInputError(
            f"The query ran for {timeout_s:g} seconds and was stopped. Ask for less, or allow more with `timeout_s`."
        ) from None
    except duckdb.OutOfMemoryException:
        raise InvalidInputError(
            "The query needs more memory than it may take. Ask for fewer columns or rows, or allow more with `memory`."
        ) from None
    finally:
        timer.cancel()
