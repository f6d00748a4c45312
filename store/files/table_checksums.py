"""The checksums of a Parquet table, which stand before its footer: of the whole file, of the footer, of each column chunk.

    column chunks | CRC-32C of each of them, uint32 | their number, CRC-32C of these, a mark | two CRC-32C, a mark | footer

A reader of a few columns and row groups holds what it reads against the second and the third. Tables of earlier versions have
no third, and the oldest none: they are checked whole. The first two begin with the table's key, the third with the second.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import google_crc32c
import numpy as np
import pyarrow.parquet as pq

from actstore.store.errors import FIND_DAMAGE, FormatError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from actstore.store.storage.folder import Folder
    from actstore.store.storage.pieces import Bytes, Source

CHECKSUMS: Final = struct.Struct("<8sII")
"""A mark, the checksum of the bytes before, the checksum of the bytes after."""
_MARK: Final = b"actstore"
_CHUNKS: Final = struct.Struct("<II8s")
"""How the checksums of column chunks end: their number, their own checksum, a mark."""
_CHUNKS_MARK: Final = b"actchunk"
TAIL: Final = struct.Struct("<I4s")
"""How a Parquet file ends: the footer's size in bytes, and Parquet's mark."""
_PARQUET: Final = b"PAR1"
_PIECE: Final = 1 << 24


def key_bytes(key: str) -> bytes:
    """A table's key without the name of its capture, which may be copied under another name."""
    parts = key.split("/")
    return "/".join(["captures", *parts[2:]] if parts[0] == "captures" else parts).encode()


def chunk_places(metadata: pq.FileMetaData) -> NDArray[np.int64]:
    """Where each column chunk begins and ends, row group by row group; shape [column chunk, 2]."""
    places = []
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        for j in range(group.num_columns):
            column = group.column(j)
            start = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
            places.append((start, start + column.total_compressed_size))
    return np.array(places, np.int64).reshape(-1, 2)


def chunk_table(key: str, footer: bytes, checksums: Mapping[int, int]) -> bytes:
    """The checksums of the column chunks of a table, as they stand in the file; nothing where they cannot be told.

    `checksums`: offset → the checksum of all bytes before it, for every offset at which a piece was written.
    """
    found = []
    for start, stop in chunk_places(pq.read_metadata(io.BytesIO(_PARQUET + footer))).tolist():
        if start not in checksums or stop not in checksums:
            return b""
        found.append(checksums[stop] ^ _carried(checksums[start], stop - start))
    return packed_chunks(found, footer_checksum(key, footer))


def packed_chunks(checksums: Sequence[int], after: int) -> bytes:
    """The checksums of column chunks as they stand in the file, before a footer of checksum `after`."""
    data = np.array(checksums, "<u4").tobytes()
    return data + _CHUNKS.pack(len(checksums), _of_table(after, data), _CHUNKS_MARK)


def _carried(crc: int, n: int) -> int:
    """What a running checksum puts into that of `n` more bytes: a checksum is linear, so as many zeros tell."""
    with_it, without = crc, 0
    for at in range(0, n, _PIECE):
        zeros = bytes(min(_PIECE, n - at))
        with_it, without = google_crc32c.extend(with_it, zeros), google_crc32c.extend(without, zeros)
    return int(with_it ^ without)


def checksums_of(key: str, before: int, footer: bytes) -> bytes:
    """The two checksums that stand before a footer; `before` is that of all the bytes before them."""
    return CHECKSUMS.pack(_MARK, before, footer_checksum(key, footer))


def footer_checksum(key: str, footer: bytes) -> int:
    """The second of the two checksums."""
    return int(google_crc32c.value(key_bytes(key) + footer))


def _of_table(after: int, data: bytes) -> int:
    """The checksum of those of the column chunks, which begins with the footer's: they belong to it alone."""
    return int(google_crc32c.value(struct.pack("<I", after) + data))


@dataclass(frozen=True)
class Trailer:
    """The checksums before a table's footer."""

    at: int
    """Where the first two stand."""
    before: int
    after: int

    @property
    def digest(self) -> str:
        """What the table's bytes come down to."""
        return f"{self.before:08x}{self.after:08x}"

    @property
    def footer_at(self) -> int:
        """Where the footer begins."""
        return self.at + CHECKSUMS.size


def read_trailer(source: Source) -> Trailer | None:
    """None of a table of an earlier version; and of what is no Parquet file, where the library has the better message."""
    end = source.nbytes
    tail = source.read(max(0, end - TAIL.size), end)
    n_footer = TAIL.unpack(tail)[0] if len(tail) == TAIL.size else end
    at = end - TAIL.size - n_footer - CHECKSUMS.size
    if at < 0:
        return None
    mark, before, after = CHECKSUMS.unpack(source.read(at, at + CHECKSUMS.size))
    return Trailer(at, before, after) if mark == _MARK else None


def read_chunk_checksums(folder: Folder, key: str, source: Source, trailer: Trailer) -> NDArray[np.uint32] | None:
    """The checksum of every column chunk; None in a table of an earlier version, `FormatError` where they are damaged."""
    start = trailer.at - _CHUNKS.size
    if start < 0:
        return None
    n, expected, mark = _CHUNKS.unpack(source.read(start, trailer.at))
    if mark != _CHUNKS_MARK:
        return None
    data = bytes(source.read(start - 4 * n, start)) if 4 * n <= start else b""
    if _of_table(trailer.after, data) != expected:
        raise mismatch(folder, key)
    return np.frombuffer(data, "<u4")


def whole_checksum(key: str, source: Source) -> str | None:
    """The checksum of all bytes of a table, by what its end says of the rest; None of a table whose end says nothing.

    Whoever reads the rest checks that it is what the end says.
    """
    trailer = read_trailer(source)
    if trailer is None:
        return None
    before = trailer.before ^ _carried(google_crc32c.value(key_bytes(key)), trailer.at)
    return f"{google_crc32c.extend(before, bytes(source.read(trailer.at, source.nbytes))):08x}"


def verify_footer(folder: Folder, key: str, source: Source, trailer: Trailer) -> None:
    """Raise `FormatError` where the footer is not what was written."""
    if _checksum(key, source, trailer.footer_at, source.nbytes) != trailer.after:
        raise mismatch(folder, key)


def verify_body(folder: Folder, key: str, source: Source, trailer: Trailer) -> None:
    """Raise `FormatError` where what stands before the checksums is not what was written."""
    source.will_need()
    if _checksum(key, source, 0, trailer.at) != trailer.before:
        raise mismatch(folder, key)


def mismatch(folder: Folder, key: str) -> FormatError:
    """The error that a table has other bytes than were written."""
    return FormatError(f"{folder}/{key} is damaged: checksum mismatch.", FIND_DAMAGE)


def _checksum(key: str, source: Source, start: int, stop: int) -> int:
    crc: int = google_crc32c.value(key_bytes(key))
    for at in range(start, stop, _PIECE):
        crc = google_crc32c.extend(crc, bytes(source.read(at, min(at + _PIECE, stop))))
    return crc


class TailSource:
    """A source whose last bytes are in memory, fetched in one read: what a reader of a table asks for first."""

    def __init__(self, source: Source, n: int) -> None:
        self._source, self.nbytes = source, source.nbytes
        self._at = max(0, source.nbytes - n)
        self.nbytes_held = max(source.nbytes_held, self.nbytes - self._at)
        self._tail = memoryview(bytes(source.read(self._at, source.nbytes)))

    def read(self, start: int, stop: int) -> Bytes:
        """As `Source.read`."""
        stop = min(stop, self.nbytes)
        if start >= self._at:
            return self._tail[start - self._at : stop - self._at]
        if stop > self._at:
            return bytes(self._source.read(start, self._at)) + bytes(self._tail[: stop - self._at])
        return self._source.read(start, stop)

    def read_into(self, start: int, out: NDArray[np.generic]) -> None:
        """As `Source.read_into`."""
        self._source.read_into(start, out)

    def will_need(self) -> None:
        """As `Source.will_need`."""
        self._source.will_need()
