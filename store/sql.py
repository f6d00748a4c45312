"""SQL over a store: DuckDB on its Parquet tables, of which it reads the columns it names, and on nothing else (`sandbox`).

Views `neurons`, `documents`, `windows`, `tokens` are those of the chosen capture; a capture's own schema holds them under
its name (`corpus.neurons`; a name that DuckDB keeps for itself, or that differs from another only in capital letters, gets
none); a capture of questions has `prompts` and `queries` too, one of images `patches`. `vocabulary` and `model` (the neurons as
the weights alone know them) belong to the store, and so do `graph_nodes` and `graph_lines`, whose column `graphs` says of which
set of neuron graphs, and `explanations` and `explanation_questions`, of which set a column `explanations` says. A query makes
what it names, and nothing else is read.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from actstore.store import sandbox
from actstore.store.capture.questions.answers import answer_tables, has_attributions
from actstore.store.capture.record import read_capture
from actstore.store.capture.tables import expected_of
from actstore.store.errors import FormatError, InvalidInputError, NotFoundError
from actstore.store.explanations.record import explanation_names
from actstore.store.explanations.tables import TABLES as EXPLANATION_TABLES
from actstore.store.explanations.tables import explanation_table
from actstore.store.files.names import stored_names
from actstore.store.files.table_columns import ColumnReader
from actstore.store.graphs.record import graph_names
from actstore.store.graphs.tables import graph_tables
from actstore.store.layout import VOCABULARY_KEY, table_key
from actstore.store.model.root import check_beside_root, read_root_record

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    import pyarrow.dataset as ds

    from actstore.store.capture.captures import Captures
    from actstore.store.capture.reader import Capture
    from actstore.store.files.records import CaptureRecord


CAPTURE_TABLES: Final = ("documents", "windows", "patches", "neurons", "prompts", "queries", "tokens")
GRAPH_TABLES: Final = ("graph_nodes", "graph_lines")
RESERVED_SCHEMAS: Final = ("main", "temp", "system", "pg_catalog", "information_schema")
_CATALOGS: Final = ("information_schema", "duckdb_", "pg_", "sqlite_", "show", "describe", "pragma")
"""One of these is in every query that may ask which tables there are."""
_COMPOSING: Final = ("query", 'u&"')
"""One of these is in every query that may name a table otherwise than by its letters: `query_table('neu' || 'rons')`."""


class _Query:
    """What of a store a query needs: nothing else is opened. A name that it does not contain, it cannot ask for."""

    def __init__(self, text: str) -> None:
        self._text = text.lower()
        self._lists_tables = any(word in self._text for word in _CATALOGS)
        self._is_composed = any(word in self._text for word in _COMPOSING)

    @property
    def may_name_captures(self) -> bool:
        """Whether it may name a table of a capture by the capture's name, as `corpus.neurons`."""
        return self._lists_tables or self._is_composed or "." in self._text

    def contains(self, name: str) -> bool:
        """Whether the table or capture is named, or may be."""
        return self._is_composed or name.lower() in self._text

    def needs(self, name: str) -> bool:
        """Whether the query may see that there is a table or capture of this name."""
        return self._lists_tables or self.contains(name)


_ALL_TABLES: Final = _Query("show tables")


def run_sql(
    store: Captures, query: str, capture: str | None, *, memory: int | None = None, timeout_s: float = sandbox.TIMEOUT_S
) -> pa.Table:
    """The result of one query; `InvalidInputError` with DuckDB's reason where it cannot be run."""
    if memory is not None and memory <= 0:
        raise InvalidInputError(f"`memory` is a number of bytes above 0, found {memory}.")
    if not 0 < timeout_s <= threading.TIMEOUT_MAX:
        raise InvalidInputError(f"`timeout_s` is a number of seconds above 0, found {timeout_s:g}.")
    with sandbox.open_connection(memory) as connection:
        import duckdb  # which is installed, as there is a connection

        views = _Views(connection, store, _Query(query))
        views.add_all(capture)
        sandbox.close_up(connection)
        try:
            sandbox.check_reads_only(connection, query)
            with sandbox.limited(connection, timeout_s):
                result = connection.sql(query)
                if result is not None:
                    return result.to_arrow_table()
        except duckdb.PermissionException as error:
            views.raise_damage()
            raise InvalidInputError(
                f"The query cannot be run: it reads the store's tables and nothing else, no other file, no network, and "
                f"changes no setting ({_reason(error)})."
            ) from None
        except duckdb.Error as error:
            views.raise_damage()
            reason = _reason(error)
            if "Table with name" in reason:
                tables = ", ".join(_tables(store, capture))
                reason += f" Tables: {tables}; of a capture by name, NAME.tokens and so on."
            raise InvalidInputError(f"The query cannot be run: {reason}") from None
    raise InvalidInputError('The query gives no table. Ask something, such as "select * from neurons limit 5".')


def _reason(error: duckdb.Error) -> str:
    """The first paragraph of DuckDB's message, in one line."""
    return " ".join(str(error).split("\n\n")[0].split("Did you mean")[0].split())


@dataclass
class _Views:
    """The store's tables that a query needs, shown in a connection."""

    connection: duckdb.DuckDBPyConnection
    store: Captures
    query: _Query
    _tables: list[ColumnReader] = field(default_factory=list)
    """Those that are read from files, by column."""

    def add_all(self, capture: str | None) -> None:
        """Those of the store, and of `capture` or else the default one."""
        store, query = self.store, self.query
        names = stored_names(store.folder, "captures") if query.may_name_captures else []
        names = [name for name in names if query.needs(name)]
        names = [name for name in names if read_capture(store.folder, name) is not None]
        taken = Counter([*RESERVED_SCHEMAS, *(name.lower() for name in names)])
        for name in names:
            if taken[name.lower()] == 1:  # SQL does not tell capital letters from small ones
                self.connection.execute(f"CREATE SCHEMA {_quoted(name)}")
                self._add_capture(self._open(name), _quoted(name) + ".")
        if capture is not None:
            self._add_capture(self._open(capture), "")
        elif any(map(query.needs, CAPTURE_TABLES)) and (default := store.default_capture()) is not None:
            self._add_capture(self._open(default), "")
        self._add_table("vocabulary", VOCABULARY_KEY)
        self._add_table("model", table_key(None, "neurons"))
        for table in GRAPH_TABLES:
            if query.contains(table):
                for rows in graph_tables(store, table):
                    self._add_arrow(table, rows)
        for table in EXPLANATION_TABLES:
            if query.contains(table) and explanation_names(store.folder):
                self._add_arrow(table, explanation_table(store.folder, table))

    def _open(self, name: str) -> Capture:
        """A capture by name; that it is unfinished matters where one of its tables is read."""
        is_read = any(map(self.query.contains, CAPTURE_TABLES))
        return self.store.capture(name) if is_read else self.store.peek(name)

    def _add_capture(self, capture: Capture, prefix: str) -> None:
        stored = ("documents", "windows", "patches", *(["neurons"] if capture.is_finished else []))
        for table in stored:
            self._add_table(f"{prefix}{table}", table_key(capture.record.name, table), capture.record)
        if not capture.is_finished and self.query.needs("neurons"):
            self._add_arrow(f"{prefix}neurons", capture.neurons().to_arrow())
        if has_attributions(capture) and (self.query.needs("prompts") or self.query.needs("queries")):
            for table, rows in answer_tables(capture).items():
                self._add_arrow(f"{prefix}{table}", rows)
        if self.query.contains("tokens"):
            self._add_arrow(f"{prefix}tokens", capture.tokens().to_arrow())

    def _add_table(self, view: str, key: str, record: CaptureRecord | None = None) -> None:
        """Show the table under `key`, one of the root or of the capture of a record; what is read of it is checked."""
        folder, table = self.store.folder, view.rpartition(".")[2]
        if not self.query.needs(table):
            return
        try:
            self._check_root_table(key, record)
            opened = ColumnReader(folder, key, **({} if record is None else expected_of(record, table)))
        except NotFoundError:
            return  # no patches in a capture of text
        except FormatError:
            if self.query.contains(table):
                raise
            return  # what nobody asks about may be damaged
        self._tables.append(opened)
        self._add_arrow(view, opened.dataset())

    def raise_damage(self) -> None:
        """Raise what was found to be damaged while a query ran, of which DuckDB says something else."""
        for table in self._tables:
            if table.damage is not None:
                raise table.damage from None

    def _check_root_table(self, key: str, record: CaptureRecord | None) -> None:
        if record is None:
            check_beside_root(self.store.folder, key, read_root_record(self.store.folder))

    def _add_arrow(self, view: str, table: pa.Table | ds.Dataset) -> None:
        hidden = f"_arrow_{id(table)}"  # the connection keeps the table alive, so no other will have its id
        self.connection.register(hidden, table)
        self.connection.execute(f"CREATE VIEW {view} AS SELECT * FROM {hidden}")


def _tables(store: Captures, capture: str | None) -> list[str]:
    """The tables that a query can name without a capture's name, those included that are made when one is named."""
    with sandbox.open_connection() as connection:
        _Views(connection, store, _ALL_TABLES).add_all(capture)
        query = "select table_name from information_schema.tables where table_schema = 'main'"
        made = {name for (name,) in connection.execute(query).fetchall() if not name.startswith("_arrow_")}
    graphs, explanations = graph_names(store.folder), explanation_names(store.folder)
    return sorted(
        made | {"tokens"} | set(GRAPH_TABLES if graphs else ()) | set(EXPLANATION_TABLES if explanations else ())
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
