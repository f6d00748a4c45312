"""The Parquet tables of a store: written with checksums that any Parquet reader passes over, read only where they hold.

Pages carry Parquet's own checksums. Between the last page and the footer, where no reader looks, stands a seal: the CRC-32C of
all bytes before it and of those after it, each begun with the table's name, so that one table does not pass for another. A
table without a seal is one of an earlier version, and is read as it is. Knows nothing about what columns mean.
"""

from __future__ import annotations

import struct
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import google_crc32c
import pyarrow as pa
import pyarrow.parquet as pq

from actstore.store.errors import ActstoreError, FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from actstore.store.storage.folder import Folder
    from actstore.store.storage.pieces import Source

_SEAL: Final = struct.Struct("<8sII")
"""A mark, the checksum of what lies before the seal, the checksum of what lies behind it."""
_MARK: Final = b"actstore"
_TAIL: Final = struct.Struct("<I4s")
"""How a Parquet file ends: the footer's bytes, and Parquet's mark."""
_PIECE: Final = 1 << 24


class TableWriter:
    """Writes one table, a row group a call; it becomes visible on `close`."""

    def __init__(self, folder: Folder, key: str, schema: pa.Schema, digest: Any = None) -> None:
        """Write under `key`; a `digest` of hashlib is fed every byte of the file."""
        self._file = folder.writer(key)
        self._sink = _Sealed(self._file, key, digest)
        self._writer = pq.ParquetWriter(self._sink, schema, write_page_checksum=True)

    def write(self, rows: pa.Table) -> None:
        """Append a row group."""
        self._writer.write_table(rows)

    def close(self) -> None:
        """Publish the table."""
        self._sink.hold_back()
        self._writer.close()
        self._sink.seal()
        self._file.close()

    def abandon(self) -> None:
        """Drop what was written."""
        with suppress(OSError):  # it would end its file later, and complain that it is gone
            self._writer.close()
        self._file.abandon()


def _name(key: str) -> bytes:
    """What of a table's key is its own: below its capture, which may be copied under another name."""
    parts = key.split("/")
    return "/".join(["captures", *parts[2:]] if parts[0] == "captures" else parts).encode()


class _Sealed:
    """A file written front to back, its checksum beside it; what is held back at the end goes out with the seal in it."""

    closed = False

    def __init__(self, file: Any, key: str, digest: Any) -> None:
        self._file, self._name, self._digest = file, _name(key), digest
        self._crc: int = google_crc32c.value(self._name)
        self._held: bytearray | None = None
        self._nbytes = 0

    def write(self, data: Any) -> int:
        piece = bytes(data)
        self._nbytes += len(piece)
        if self._held is None:
            self._crc = google_crc32c.extend(self._crc, piece)
            self._out(piece)
        else:
            self._held += piece
        return len(piece)

    def _out(self, piece: bytes) -> None:
        if self._digest is not None:
            self._digest.update(piece)
        self._file.write(piece)

    def hold_back(self) -> None:
        """From here on only the footer comes."""
        self._held = bytearray()

    def seal(self) -> None:
        """Write what was held back, with the seal before the footer."""
        held = bytes(self._held or b"")
        n_footer, _ = _TAIL.unpack(held[-_TAIL.size :])
        rest, footer = held[: -_TAIL.size - n_footer], held[-_TAIL.size - n_footer :]
        before, behind = google_crc32c.extend(self._crc, rest), google_crc32c.value(self._name + footer)
        self._out(rest + _SEAL.pack(_MARK, before, behind) + footer)

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
    """Turns what libraries raise over bytes that are no such table into a `FormatError` that names `key`."""
    try:
        yield
    except ActstoreError:
        raise
    except (pa.ArrowException, OSError, EOFError, LookupError, ValueError, TypeError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's or the network's word, which says nothing about the table
        raise FormatError(f"{folder}/{key} is damaged: {' '.join(str(error).split())}.") from None


def open_table(folder: Folder, key: str, *, whole: bool = False) -> pq.ParquetFile:
    """The table under `key`, to read row groups of; `whole` where all of it will be read, which checks every byte first.

    `NotFoundError` where there is none, `FormatError` where it is damaged.
    """
    source = folder.source(key)
    with undamaged(folder, key):
        _check_seal(folder, key, source, whole=whole)
        # Read, not mapped: a file that is cut short later is then an error, not the end of the process.
        path = folder.local_path(key)
        file = pa.BufferReader(pa.py_buffer(source.read(0, source.nbytes))) if path is None else pa.OSFile(str(path))
        return pq.ParquetFile(file, page_checksum_verification=True)


def read_table(folder: Folder, key: str, needs: Sequence[str] = ()) -> pa.Table:
    """The whole table under `key`; errors as of `open_table`, `FormatError` too where it lacks a column that one `needs`."""
    file = open_table(folder, key, whole=True)
    with undamaged(folder, key):
        if lacking := [name for name in needs if name not in file.schema_arrow.names]:
            raise FormatError(f"{folder}/{key} is damaged: it lacks the column {lacking[0]!r}.")
        return file.read()


def check_table(folder: Folder, key: str) -> None:
    """Raise what `open_table` raises for a table that something else will read in place."""
    open_table(folder, key, whole=True)


def read_metadata(folder: Folder, key: str) -> dict[bytes, bytes]:
    """The metadata of the schema of the table under `key`."""
    file = open_table(folder, key)
    with undamaged(folder, key):
        return file.schema_arrow.metadata or {}


def _check_seal(folder: Folder, key: str, source: Source, *, whole: bool) -> None:
    end = source.nbytes
    tail = source.read(max(0, end - _TAIL.size), end)
    n_footer = _TAIL.unpack(tail)[0] if len(tail) == _TAIL.size else end
    at = end - _TAIL.size - n_footer - _SEAL.size
    if at < 0:
        return  # no Parquet file, which the library says best
    mark, before, behind = _SEAL.unpack(source.read(at, at + _SEAL.size))
    if mark != _MARK:
        return
    if whole:
        source.will_need()
    if _checksum(key, source, at + _SEAL.size, end) != behind or (whole and _checksum(key, source, 0, at) != before):
        raise FormatError(
            f"{folder}/{key} is damaged: it is not what was written there. Run `actstore verify` to find every damage."
        )


def _checksum(key: str, source: Source, start: int, stop: int) -> int:
    crc: int = google_crc32c.value(_name(key))
    for at in range(start, stop, _PIECE):
        crc = google_crc32c.extend(crc, bytes(source.read(at, min(at + _PIECE, stop))))
    return crc
