"""One block of one layer as bytes and back: Zarr's `sharding_indexed` codec with Blosc inner chunks, written whole.

Any Zarr v3 reader decodes what is encoded here. Doing it without Zarr's pipeline saves one copy and one event loop per chunk,
and one neuron's row can be decoded without the rest of its chunk.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

import google_crc32c
import numpy as np
from numcodecs import blosc

from actstore.store.errors import FormatError
from actstore.store.layout import FAST
from actstore.store.storage.pieces import will_need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from actstore.store.layout import Compression, ShardGrid
    from actstore.store.storage.pieces import Bytes, Source

WORTHWHILE: Final = 11 / 12
"""A chunk that shrinks by less than a twelfth is framed as it is: reading it then costs a copy, not a decompression. float16
activations shrink by some 7 %, float32 by 11 %, bfloat16 by 25 %."""

_PIECE = 1 << 24
_INDEX_ENTRY = 16
_CRC = 4
_BLOSC_HEADER = 16
_BLOSC_MEMCPYED = 0x2


def checksum(data: Bytes) -> str:
    """CRC-32C of `data` in eight hexadecimal digits."""
    will_need(data, 0, len(data))
    return f"{google_crc32c.value(data if isinstance(data, bytes) else bytes(data)):08x}"


def source_checksum(source: Source, start: int = 0) -> str:
    """`checksum` of all bytes of `source` from `start` on, read piece by piece; "cut short" where the file was truncated."""
    source.will_need()
    crc = 0
    try:
        for at in range(start, source.nbytes, _PIECE):
            crc = google_crc32c.extend(crc, bytes(source.read(at, min(at + _PIECE, source.nbytes))))
    except EOFError:
        return "cut short"
    return f"{crc:08x}"


def write_parts(parts: Iterable[bytes], write: Callable[[bytes], object]) -> tuple[int, str]:
    """Pass the parts to `write`; returns the number of bytes and their `checksum`."""
    crc, nbytes = 0, 0
    for part in parts:
        write(part)
        crc = google_crc32c.extend(crc, part)
        nbytes += len(part)
    return nbytes, f"{crc:08x}"


def shard_parts(values: NDArray[Any], grid: ShardGrid, compression: Compression = FAST) -> Iterator[bytes]:
    """The shard that holds `values` [grid.rows, grid.columns], piece by piece: compressed inner chunks, then their index.

    A piece that is written before the next one is requested reuses the memory of the one before: joining 50 MB first takes
    longer than compressing them.
    """
    codec = compression.cname.encode(), compression.clevel, compression.shuffle_code
    index = np.empty((*grid.grid, 2), "<u8")
    offset = 0
    for i in range(grid.grid[0]):
        rows = values[i * grid.chunk_rows : (i + 1) * grid.chunk_rows]
        if len(rows) < grid.chunk_rows:
            # Rows past the layer's last neuron exist only to complete the chunk.
            rows = np.concatenate([rows, np.zeros((grid.chunk_rows - len(rows), grid.columns), values.dtype)])
        for j in range(grid.grid[1]):
            chunk = np.ascontiguousarray(rows[:, j * grid.chunk_columns : (j + 1) * grid.chunk_columns])
            row_nbytes = chunk.shape[1] * chunk.itemsize
            part = blosc.compress(chunk, *codec, row_nbytes)
            if len(part) > WORTHWHILE * chunk.nbytes:
                part = blosc.compress(chunk, codec[0], 0, codec[2], row_nbytes)
            index[i, j] = offset, len(part)
            offset += len(part)
            yield part
    index_bytes = index.tobytes()
    yield index_bytes + struct.pack("<I", google_crc32c.value(index_bytes))


def encode_shard(values: NDArray[Any], grid: ShardGrid, compression: Compression = FAST) -> bytes:
    """The shard that holds `values` [grid.rows, grid.columns] in one piece."""
    return b"".join(shard_parts(values, grid, compression))


class Shard:
    """Reads rows out of an encoded shard."""

    def __init__(self, source: Source, grid: ShardGrid, dtype: np.dtype[Any], name: str) -> None:
        """Check the index at the end of `source`; `FormatError`, calling the shard `name`, where it is damaged."""
        self._source, self._grid, self._dtype, self._name = source, grid, dtype, name
        n_index = grid.grid[0] * grid.grid[1] * _INDEX_ENTRY
        end = source.nbytes
        tail = self._read(max(0, end - n_index - _CRC), end)
        if len(tail) != n_index + _CRC or google_crc32c.value(tail[:-_CRC]) != struct.unpack("<I", tail[-_CRC:])[0]:
            raise self._damaged("its index does not match its checksum")
        index = np.frombuffer(tail[:-_CRC], "<u8").reshape(*grid.grid, 2)
        self._index: list[list[list[int]]] = index.tolist()
        self._chunk_nbytes = grid.chunk_rows * grid.chunk_columns * dtype.itemsize
        if end != int(index[..., 1].sum()) + n_index + _CRC:
            raise self._damaged("its chunks do not fill it")
        self._frames: dict[tuple[int, int], _Frame] = {}

    def _damaged(self, what: str) -> FormatError:
        return FormatError(f"{self._name} is damaged: {what}. Run `store.verify()` to find every damaged block.")

    def _read(self, start: int, stop: int) -> bytes:
        try:
            return bytes(self._source.read(start, stop))
        except EOFError as error:  # truncated after it was opened
            raise self._damaged(str(error)) from None

    def row(self, row: int) -> NDArray[Any]:
        """The values of one row; shape [token]."""
        i, within = divmod(row, self._grid.chunk_rows)
        n = self._grid.chunk_columns
        chunks = self._index[i]
        if len(chunks) == 1:
            return self._decode(i, 0, within * n, n)
        return np.concatenate([self._decode(i, j, within * n, n) for j in range(len(chunks))])

    def rows(self) -> NDArray[Any]:
        """All values; shape [neuron, token]."""
        self._source.will_need()
        out = np.empty((self._grid.padded_rows, self._grid.columns), self._dtype)
        height, width = self._grid.chunk_rows, self._grid.chunk_columns
        for i in range(self._grid.grid[0]):
            for j in range(self._grid.grid[1]):
                chunk = self._decode(i, j, 0, height * width).reshape(height, width)
                out[i * height : (i + 1) * height, j * width : (j + 1) * width] = chunk
        return out[: self._grid.rows]

    def _decode(self, i: int, j: int, start: int, n: int) -> NDArray[Any]:
        """Items start…start+n of one inner chunk, decompressing no more Blosc blocks than they lie in."""
        item = self._dtype.itemsize
        try:
            frame = self._frames.get((i, j)) or self._open_frame(i, j)
            raw, first = frame.decompress(self._read, start * item, (start + n) * item)
            return np.frombuffer(raw, self._dtype, n, start * item - first)
        except (ValueError, RuntimeError, struct.error) as error:
            raise self._damaged(str(error) or "a chunk cannot be decompressed") from None

    def _open_frame(self, i: int, j: int) -> _Frame:
        offset, nbytes = self._index[i][j]
        # A header, and one offset per row: the writer makes one Blosc block per row.
        head = self._read(offset, offset + min(nbytes, _BLOSC_HEADER + 4 * self._grid.chunk_rows))
        frame = self._frames[i, j] = _Frame(head, offset, nbytes, self._chunk_nbytes)
        return frame


class _Frame:
    """The head of a Blosc 1 frame, by which single blocks of the frame can be read.

    The frame is a 16-byte header (flags at 2; nbytes, blocksize, cbytes as uint32 from 4), one int32 offset per block, and
    the blocks. A single block between a header and an offset of its own is again a frame, which the library decompresses.
    """

    __slots__ = ("_at", "_blocksize", "_cbytes", "_copied", "_flags", "_nbytes", "_starts")

    def __init__(self, head: bytes, at: int, length: int, expected: int) -> None:
        """A frame of `length` bytes at `at` of its shard; `ValueError` unless it decompresses to `expected` bytes."""
        nbytes, blocksize, cbytes = struct.unpack_from("<III", head, 4)
        if cbytes != length or nbytes != expected or blocksize == 0:
            raise ValueError("a chunk's header contradicts the array's metadata")
        self._at, self._flags = at, head[:4]
        self._nbytes, self._blocksize, self._cbytes = nbytes, blocksize, cbytes
        self._copied = bool(head[2] & _BLOSC_MEMCPYED)
        n_blocks = -(-nbytes // blocksize)
        # Where there are more blocks than rows, the frame is read whole.
        known = not self._copied and len(head) >= _BLOSC_HEADER + 4 * n_blocks
        self._starts = struct.unpack_from(f"<{n_blocks}i", head, _BLOSC_HEADER) if known else ()

    def decompress(self, read: Callable[[int, int], bytes], start: int, stop: int) -> tuple[bytes, int]:
        """Decompressed bytes covering start…stop, and the position of the first; `read` reads bytes of the shard."""
        at = self._at
        if self._copied:
            return read(at + _BLOSC_HEADER + start, at + _BLOSC_HEADER + stop), start
        first, last = start // self._blocksize, -(-stop // self._blocksize)
        # The last block may be shorter, and then has another layout; several blocks are read as the whole frame.
        if last - first != 1 or last * self._blocksize > self._nbytes or not self._starts:
            return blosc.decompress(read(at, at + self._cbytes)), 0
        begin = self._starts[first]
        end = min((s for s in (*self._starts, self._cbytes) if s > begin), default=self._cbytes)
        if not _BLOSC_HEADER + 4 * len(self._starts) <= begin < end <= self._cbytes:
            raise ValueError("a chunk's blocks lie outside it")
        single = self._flags + struct.pack(
            "<IIIi", self._blocksize, self._blocksize, _BLOSC_HEADER + 4 + end - begin, _BLOSC_HEADER + 4
        )
        return blosc.decompress(single + read(at + begin, at + end)), first * self._blocksize
