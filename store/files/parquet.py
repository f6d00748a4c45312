"""The Parquet tables of a store: written with checksums that any Parquet reader ignores, and verified when they are read.

Pages carry Parquet's own checksums. Between the last page and the footer, where no reader looks, are two more: the CRC-32C of
all bytes before them and of those after them, each begun with the table's name, so that one table is not taken for another. A
table without them is one of an earlier version, and is read as it is.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, Protocol

import google_crc32c
import pyarrow as pa
import pyarrow.parquet as pq

from actstore.store.errors import FIND_DAMAGE, ActstoreError, FormatError
from actstore.store.files.first_use import check_at_first_use
from actstore.store.files.table_checksums import (
    TAIL,
    checksums_of,
    chunk_table,
    key_bytes,
    mismatch,
    read_trailer,
    verify_body,
    verify_footer,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from typing_extensions import Buffer

    from actstore.store.storage.folder import Folder
    from actstore.store.storage.writers import KeyWriter

_MOST_ROWS_PER_BYTE: Final = 8
_MOST_COMPRESSED: Final = 100
"""Snappy, Parquet's usual compression, writes 64 bytes with 3 at best."""


class Digest(Protocol):
    """A hash of hashlib."""

    def update(self, data: bytes, /) -> None:
        """Add bytes."""


class TableWriter:
    """Writes one table, one row group per call; it becomes visible on `close`."""

    def __init__(
        self, folder: Folder, key: str, schema: pa.Schema, digest: Digest | None = None, *, statistics: bool = True
    ) -> None:
        """Write under `key`; a `digest` of hashlib is fed every byte of the file.

        Without `statistics`, the footer does not say between what bounds a row group's values lie, and is shorter.
        """
        self._file = folder.writer(key)
        self._sink = _ChecksummedFile(self._file, key, digest)
        self._writer = pq.ParquetWriter(self._sink, schema, write_page_checksum=True, write_statistics=statistics)

    def write(self, rows: pa.Table) -> None:
        """Append a row group."""
        self._writer.write_table(rows, row_group_size=max(1, rows.num_rows))

    def close(self) -> None:
        """Publish the table."""
        self._sink.hold_back()
        self._writer.close()
        self._sink.finish()
        self._file.close()

    def abandon(self) -> None:
        """Drop what was written."""
        with suppress(OSError):  # it would end its file later, and complain that it is gone
            self._writer.close()
        self._file.abandon()


class _ChecksummedFile:
    """A file written front to back, and its checksums; the footer is held back until they are known."""

    closed = False

    def __init__(self, file: KeyWriter, key: str, digest: Digest | None) -> None:
        self._file, self._key, self._digest = file, key, digest
        self._crc: int = google_crc32c.value(key_bytes(key))
        self._running: dict[int, int] = {0: self._crc}
        """Offset of each piece → the checksum of all bytes before it."""
        self._footer: bytearray | None = None
        self._nbytes = 0

    def write(self, data: Buffer) -> int:
        piece = bytes(data)
        if self._footer is None:
            self._append(piece)
        else:
            self._footer += piece
            self._nbytes += len(piece)
        return len(piece)

    def _append(self, piece: bytes) -> None:
        self._crc = google_crc32c.extend(self._crc, piece)
        self._nbytes += len(piece)
        self._running[self._nbytes] = self._crc
        self._write(piece)

    def _write(self, piece: bytes) -> None:
        if self._digest is not None:
            self._digest.update(piece)
        self._file.write(piece)

    def hold_back(self) -> None:
        """Collect what is written from here on: the footer."""
        self._footer = bytearray()

    def finish(self) -> None:
        """Write what was held back, with the checksums before the footer."""
        end = bytes(self._footer or b"")
        n_footer, _ = TAIL.unpack(end[-TAIL.size :])
        rest, footer = end[: -TAIL.size - n_footer], end[-TAIL.size - n_footer :]
        self._append(rest)
        self._append(chunk_table(self._key, footer, self._running))
        self._write(checksums_of(self._key, self._crc, footer) + footer)

    def tell(self) -> int:
        return self._nbytes

    def flush(self) -> None:
        """Nothing: the file is published whole."""

    def close(self) -> None:
        """Nothing: whoever opened the file closes it."""


def write_table(folder: Folder, key: str, rows: pa.Table, groups: Sequence[int] = ()) -> None:
    """Write a table whole, replacing what was there; in one row group, or in `groups` of as many rows."""
    writer = TableWriter(folder, key, rows.schema)
    try:
        start = 0
        for n in groups or [rows.num_rows]:
            writer.write(rows.slice(start, n))
            start += n
        writer.close()
    except BaseException:
        writer.abandon()
        raise


@contextmanager
def undamaged(folder: Folder, key: str) -> Iterator[None]:
    """Whatever libraries raise over bytes that are not such a table becomes a `FormatError` that names `key`."""
    try:
        yield
    except ActstoreError:
        raise
    except (
        pa.ArrowException, OSError, EOFError, LookupError, ValueError, TypeError, RuntimeError, ArithmeticError, AttributeError,
        MemoryError,
    ) as error:  # fmt: skip
        if isinstance(error, OSError) and error.errno is not None:
            raise  # an error of the disk or the network, which says nothing about the table
        raise FormatError(f"{folder}/{key} is damaged: {' '.join(str(error).split())}.") from None


def open_table(
    folder: Folder, key: str, *, whole: bool = False, digest: str = "", owner: Mapping[str, str] | None = None
) -> pq.ParquetFile:
    """The table under `key`, to read row groups of, every byte verified before.

    With `whole`, for readers of all of it, each time; else once for as long as the file is the same. `digest`: the
    `table_digest` that it must have; `owner`: what its metadata must say of whose it is. `NotFoundError` where there is none,
    `FormatError` where it is damaged or another table than that.
    """
    path = folder.local_path(key)
    source = folder.source(key, tail=None)  # from a server all of it at once: the checks read it in memory
    with undamaged(folder, key):
        trailer = read_trailer(source)
        if digest and (trailer is None or trailer.digest != digest):
            raise mismatch(folder, key)
        if trailer is not None:
            verify_footer(folder, key, source, trailer)
            if whole:
                verify_body(folder, key, source, trailer)
            else:
                check_at_first_use(folder, key, lambda: verify_body(folder, key, source, trailer))
        # Read, not mapped: a file that is truncated later is then an error, not the end of the process.
        file = pa.BufferReader(pa.py_buffer(source.read(0, source.nbytes))) if path is None else pa.OSFile(str(path))
        opened = pq.ParquetFile(file, page_checksum_verification=True)
        check_opened(folder, key, opened, source.nbytes, owner)
        return opened


def check_opened(
    folder: Folder, key: str, opened: pq.ParquetFile, nbytes: int, owner: Mapping[str, str] | None
) -> None:
    """Raise `FormatError` or ValueError where a table of `nbytes` has more in it than can be, or is not `owner`'s."""
    _check_counts(opened.metadata, nbytes)
    metadata = opened.schema_arrow.metadata or {}
    if any(metadata.get(name.encode()) != value.encode() for name, value in (owner or {}).items()):
        raise FormatError(
            f"{folder}/{key} is not the table that was written there, but one of another capture or store.",
            FIND_DAMAGE,
        )


def _check_counts(metadata: pq.FileMetaData, nbytes: int) -> None:
    """Raise ValueError where a table of `nbytes` says that it has more in it than can be.

    Repeated values take next to nothing in a Parquet file, so a page of some bytes can become any number of rows. The tables
    of a store number their rows, or name them, which takes bytes.
    """
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    n_rows = [group.num_rows for group in groups]
    if min(n_rows, default=0) < 0 or sum(n_rows) != metadata.num_rows or sum(n_rows) > _MOST_ROWS_PER_BYTE * nbytes:
        raise ValueError(f"{nbytes:,} bytes are said to hold {metadata.num_rows:,} rows")
    for column in columns:
        largest = _MOST_COMPRESSED * nbytes
        if not (0 <= column.total_compressed_size <= nbytes and 0 <= column.total_uncompressed_size <= largest):
            raise ValueError(
                f"{nbytes:,} bytes are said to hold {column.total_uncompressed_size:,} bytes of {column.path_in_schema}"
            )


def read_table(
    folder: Folder, key: str, needs: Sequence[str] = (), *, digest: str = "", owner: Mapping[str, str] | None = None
) -> pa.Table:
    """The whole table under `key`; errors as of `open_table`, and `FormatError` where it lacks a column of `needs`."""
    file = open_table(folder, key, whole=True, digest=digest, owner=owner)
    with undamaged(folder, key):
        if missing := [name for name in needs if name not in file.schema_arrow.names]:
            raise FormatError(f"{folder}/{key} is damaged: it lacks the column {missing[0]!r}.")
        return file.read()


def read_metadata(folder: Folder, key: str) -> dict[bytes, bytes]:
    """The metadata of the schema of the table under `key`."""
    file = open_table(folder, key)
    with undamaged(folder, key):
        return file.schema_arrow.metadata or {}


def table_digest(folder: Folder, key: str) -> str:
    """What a table's bytes come down to, by its own checksums; empty for one of an earlier version."""
    trailer = read_trailer(folder.source(key))
    return "" if trailer is None else trailer.digest
