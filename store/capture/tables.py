"""The Parquet tables of a capture, each held to the capture's record: the table of another capture is none of this one.

Tables of the plan are older than the record, which lists what they must be; later ones have the capture's identity in their
metadata. Records of earlier versions say neither, and their tables are checked by themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from actstore.store.files.parquet import read_table, write_table
from actstore.store.files.table_columns import ColumnReader
from actstore.store.layout import table_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from actstore.store.files.records import CaptureRecord
    from actstore.store.storage.folder import Folder


class OpenCapture(Protocol):
    """A capture opened for reading, as far as its tables go."""

    record: CaptureRecord
    folder: Folder

    def table(self, name: str) -> ColumnReader:
        """A table of the capture, opened once."""


_IDENTITY = "identity"
_OF_PLAN = ("windows", "documents", "patches")


def write_capture_table(
    folder: Folder, record: CaptureRecord, table: str, rows: pa.Table, groups: Sequence[int] = ()
) -> None:
    """Write a table of a planned capture whole, replacing what was there; in row groups of `groups` rows, or one."""
    write_table(folder, table_key(record.name, table), bound_to(record, rows), groups)


def bound_to(record: CaptureRecord, rows: pa.Table) -> pa.Table:
    """The rows with the capture's identity in their metadata, by which readers know whose they are."""
    if not record.identity:
        return rows
    metadata = {key: value for key, value in (rows.schema.metadata or {}).items() if key != _IDENTITY.encode()}
    return rows.replace_schema_metadata({**metadata, _IDENTITY: record.identity})


def open_capture_table(folder: Folder, record: CaptureRecord, table: str) -> ColumnReader:
    """A table of a capture, to read row groups or columns of; as `ColumnReader`."""
    return ColumnReader(folder, table_key(record.name, table), **expected_of(record, table))


def read_capture_table(folder: Folder, record: CaptureRecord, table: str, needs: Sequence[str] = ()) -> pa.Table:
    """A table of a capture; as `read_table`."""
    return read_table(folder, table_key(record.name, table), needs, **expected_of(record, table))


def expected_of(record: CaptureRecord, table: str) -> dict[str, Any]:
    """The arguments `digest` or `owner` of `open_table` that say which table it must be."""
    if table in _OF_PLAN:
        return {"digest": record.plan_files.get(f"{table}.parquet", "")}
    return {"owner": {_IDENTITY: record.identity} if record.identity else None}
