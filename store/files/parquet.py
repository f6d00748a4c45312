"""The Parquet tables of a store: written with checksums that any Parquet reader ignores, and verified when they are read.

Pages carry Parquet's own checksums. Between the last page and the footer, where no reader looks, are two more: the CRC-32C of
all bytes before them and of those after them, each begun with the table's name, so that one table is not taken for another. A
table without them is one of an earlier version, and is read as it is.
"""

from __future__ import annotations

import struct
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import google_crc32c
import pyarrow as pa
import pyarrow.parquet as pq

from actstore.store.errors import ActstoreError, FormatError
from actstore.store.files.first_use import check_at_first_use

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from typing_extensions import Buffer

    from actstore.store.storage.folder import Folder
    from actstore.store.storage.pieces import Source
    from actstore.store.storage.writers import KeyWriter

_CHECKSUMS: Final = struct.Struct("<8sII")
"""A mark, the checksum of the bytes before, the checksum of the bytes after."""
_MARK: Final = b"actstore"
_TAIL: Final = struct.Struct("<I4s")
"""How a Parquet file ends: the footer's size in bytes, and Parquet's mark."""
_PIECE: Final = 1 << 24
_MOST_ROWS_PER_BYTE: Final = 8
_MOST_COMPRESSED: Final = 100
"""Snappy, Parquet's usual compression, writes 64 bytes with 3 at best."""


class Digest(Protocol):
    """A hash of hashlib."""

    def update(self, data: bytes, /) -> None:
        """Add bytes."""


class TableWriter:
    """Writes one table, one row group per call; it becomes visible on `close`."""

    def __init__(self, folder: Folder, key: str, schema: pa.Schema, digest: Digest | None = None) -> None:
        """Write under `key`; a `digest` of hashlib is fed every byte of the file."""
        self._file = folder.writer(key)
        self._sink = _ChecksummedFile(self._file, key, digest)
        self._writer = pq.ParquetWriter(self._sink, schema, write_page_checksum=True)

    def write(self, rows: pa.Table) -> None:
        """Append a row group."""
        self._writer.write_table(rows)

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


def _name(key: str) -> bytes:
    """A table's key without the name of its capture, which may be copied under another name."""
    parts = key.split("/")
    return "/".join(["captures", *parts[2:]] if parts[0] == "captures" else parts).encode()


class _ChecksummedFile:
    """A file written front to back, and its checksum; the footer is held back until the checksums are known."""

    closed = False

    def __init__(self, file: KeyWriter, key: str, digest: Digest | None) -> None:
        self._file, self._name, self._digest = file, _name(key), digest
        self._crc: int = google_crc32c.value(self._name)
        self._footer: bytearray | None = None
        self._nbytes = 0

    def write(self, data: Buffer) -> int:
        piece = bytes(data)
        self._nbytes += len(piece)
        if self._footer is None:
            self._crc = google_crc32c.extend(self._crc, piece)
            self._append(piece)
        else:
            self._footer += piece
        return len(piece)

    def _append(self, piece: bytes) -> None:
        if self._digest is not None:
            self._digest.update(piece)
        self._file.write(piece)

    def hold_back(self) -> None:
        """Collect what is written from here on: the footer."""
        self._footer = bytearray()

    def finish(self) -> None:
        """Write what was held back, with the checksums before the footer."""
        end = bytes(self._footer or b"")
        n_footer, _ = _TAIL.unpack(end[-_TAIL.size :])
        rest, footer = end[: -_TAIL.size - n_footer], end[-_TAIL.size - n_footer :]
        before, after = google_crc32c.extend(self._crc, rest), google_crc32c.value(self._name + footer)
        self._append(rest + _CHECKSUMS.pack(_MARK, before, after) + footer)

    def tell(self) -> int:
        return self._nbytes

    def flush(self) -> None:
        """Nothing: the file is published whole."""

    def close(self) -> None:
        """Nothing: whoever opened the file closes it."""


def write_table(folder: Folder, key: str, rows: pa.Table) -> None:
    """Write a table whole, replacing what was there."""
    writer = TableWriter(folder, key, rows.schema)
    try:
        writer.write(rows)
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
    source = folder.source(key)
    with undamaged(folder, key):
        trailer = _read_trailer(source)
        if digest and (trailer is None or trailer.digest != digest):
            raise _mismatch(folder, key)
        if trailer is not None:
            _verify_footer(folder, key, source, trailer)
            if whole:
                _verify_body(folder, key, source, trailer)
            else:
                check_at_first_use(folder, key, lambda: _verify_body(folder, key, source, trailer))
        # Read, not mapped: a file that is truncated later is then an error, not the end of the process.
        path = folder.local_path(key)
        file = pa.BufferReader(pa.py_buffer(source.read(0, source.nbytes))) if path is None else pa.OSFile(str(path))
        opened = pq.ParquetFile(file, page_checksum_verification=True)
        _check_counts(opened.metadata, source.nbytes)
        metadata = opened.schema_arrow.metadata or {}
        if any(metadata.get(name.encode()) != value.encode() for name, value in (owner or {}).items()):
            raise FormatError(
                f"{folder}/{key} is not the table that was written there, but one of another capture or store. Run "
                "`store.verify()` to find every damage."
            )
        return opened


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


def check_table(folder: Folder, key: str, *, digest: str = "", owner: Mapping[str, str] | None = None) -> None:
    """Verify every byte of a table that another library will read in place; errors as of `open_table`."""
    open_table(folder, key, whole=True, digest=digest, owner=owner)


def read_metadata(folder: Folder, key: str) -> dict[bytes, bytes]:
    """The metadata of the schema of the table under `key`."""
    file = open_table(folder, key)
    with undamaged(folder, key):
        return file.schema_arrow.metadata or {}


def table_digest(folder: Folder, key: str) -> str:
    """What a table's bytes come down to, by its own checksums; empty for one of an earlier version."""
    trailer = _read_trailer(folder.source(key))
    return "" if trailer is None else trailer.digest


@dataclass(frozen=True)
class _Trailer:
    """The checksums before a table's footer."""

    at: int
    """Where they stand."""
    before: int
    after: int

    @property
    def digest(self) -> str:
        return f"{self.before:08x}{self.after:08x}"


def _read_trailer(source: Source) -> _Trailer | None:
    """None of a table of an earlier version; and of what is no Parquet file, where the library has the better message."""
    end = source.nbytes
    tail = source.read(max(0, end - _TAIL.size), end)
    n_footer = _TAIL.unpack(tail)[0] if len(tail) == _TAIL.size else end
    at = end - _TAIL.size - n_footer - _CHECKSUMS.size
    if at < 0:
        return None
    mark, before, after = _CHECKSUMS.unpack(source.read(at, at + _CHECKSUMS.size))
    return _Trailer(at, before, after) if mark == _MARK else None


def _verify_footer(folder: Folder, key: str, source: Source, trailer: _Trailer) -> None:
    if _checksum(key, source, trailer.at + _CHECKSUMS.size, source.nbytes) != trailer.after:
        raise _mismatch(folder, key)


def _verify_body(folder: Folder, key: str, source: Source, trailer: _Trailer) -> None:
    source.will_need()
    if _checksum(key, source, 0, trailer.at) != trailer.before:
        raise _mismatch(folder, key)


def _mismatch(folder: Folder, key: str) -> FormatError:
    return FormatError(f"{folder}/{key} is damaged: checksum mismatch. Run `store.verify()` to find every damage.")


def _checksum(key: str, source: Source, start: int, stop: int) -> int:
    crc: int = google_crc32c.value(_name(key))
    for at in range(start, stop, _PIECE):
        crc = google_crc32c.extend(crc, bytes(source.read(at, min(at + _PIECE, stop))))
    return crc
