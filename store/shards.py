"""One block of one layer as bytes and back: Zarr's `sharding_indexed` codec with Blosc inner chunks, written whole.

What is encoded here any Zarr v3 reader decodes. Doing it by hand saves Zarr's pipeline a copy and an event loop a chunk,
and lets one neuron's row be decoded without the rest of its chunk. Knows nothing about keys, models or statistics.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

import google_crc32c
import numpy as np
from numcodecs import blosc

from actstore.store.errors import FormatError
from actstore.store.folder import will_need
from actstore.store.layout import FAST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from actstore.store.folder import Bytes
    from actstore.store.layout import Compression, ShardGrid

WORTHWHILE: Final = 11 / 12
"""A chunk that shrinks by less than a twelfth is framed as it is: reading it then costs a copy, not a decompression. float16
activations shrink by some 7 %, float32 by 11 %, bfloat16 by 25 %."""

_INDEX_ENTRY = 16
_CRC = 4
_BLOSC_HEADER = 16
_BLOSC_MEMCPYED = 0x2


def checksum(data: Bytes) -> str:
    """CRC-32C of `data` in eight hexadecimal digits."""
    will_need(data, 0, len(data))
    return f"{google_crc32c.value(data if isinstance(data, bytes) else bytes(data)):08x}"


def write_parts(parts: Iterable[bytes], write: Callable[[bytes], object]) -> tuple[int, str]:
    """The number of bytes handed to `write`, and their checksum as `checksum` would give it."""
    crc, nbytes = 0, 0
    for part in parts:
        write(part)
        crc = google_crc32c.extend(crc, part)
        nbytes += len(part)
    return nbytes, f"{crc:08x}"


def shard_parts(values: NDArray[Any], grid: ShardGrid, compression: Compression = FAST) -> Iterator[bytes]:
    """The shard that holds `values` [grid.rows, grid.columns], piece by piece: compressed inner chunks, then their index.

    A piece that is written before the next is asked for takes the memory of the one before it: joining 50 MB first costs
    more than compressing them.
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

    def __init__(self, data: Bytes, grid: ShardGrid, dtype: np.dtype[Any], name: str) -> None:
        """Check the index of `data`; `FormatError`, calling the shard `name`, where it is damaged."""
        self._data, self._grid, self._dtype, self._name = memoryview(data), grid, dtype, name
        n_index = grid.grid[0] * grid.grid[1] * _INDEX_ENTRY
        tail = bytes(self._data[-(n_index + _CRC) :])
        if len(tail) != n_index + _CRC or google_crc32c.value(tail[:-_CRC]) != struct.unpack("<I", tail[-_CRC:])[0]:
            raise self._damaged("its index does not match its checksum")
        index = np.frombuffer(tail[:-_CRC], "<u8").reshape(*grid.grid, 2)
        self._index: list[list[list[int]]] = index.tolist()
        self._chunk_nbytes = grid.chunk_rows * grid.chunk_columns * dtype.itemsize
        if len(self._data) != int(index[..., 1].sum()) + n_index + _CRC:
            raise self._damaged("its chunks do not fill it")

    def _damaged(self, what: str) -> FormatError:
        return FormatError(f"{self._name} is damaged: {what}. Run `actstore verify` to find every damaged block.")

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
        will_need(self._data, 0, len(self._data))
        out = np.empty((self._grid.padded_rows, self._grid.columns), self._dtype)
        height, width = self._grid.chunk_rows, self._grid.chunk_columns
        for i in range(self._grid.grid[0]):
            for j in range(self._grid.grid[1]):
                chunk = self._decode(i, j, 0, height * width).reshape(height, width)
                out[i * height : (i + 1) * height, j * width : (j + 1) * width] = chunk
        return out[: self._grid.rows]

    def _decode(self, i: int, j: int, start: int, n: int) -> NDArray[Any]:
        """Items start…start+n of one inner chunk, decompressing no more Blosc blocks than they lie in."""
        offset, nbytes = self._index[i][j]
        item = self._dtype.itemsize
        try:
            frame = slice(offset, offset + nbytes)
            raw, first = _decompress_range(self._data, frame, self._chunk_nbytes, start * item, (start + n) * item)
            return np.frombuffer(raw, self._dtype, n, start * item - first)
        except (ValueError, RuntimeError, struct.error) as error:
            raise self._damaged(str(error) or "a chunk cannot be decompressed") from None


def _decompress_range(shard: memoryview, frame: slice, expected: int, start: int, stop: int) -> tuple[Bytes, int]:
    """Decompressed bytes covering start…stop of the Blosc 1 frame at `frame`, and the position of the first.

    The frame must say that it decompresses to `expected` bytes.

    The frame is a 16-byte header (flags at 2; nbytes, blocksize, cbytes as uint32 from 4), one int32 offset a block, and the
    blocks. A single block between a header and an offset of its own is again a frame, which the library decompresses.
    """
    chunk, at = shard[frame], frame.start
    nbytes, blocksize, cbytes = struct.unpack_from("<III", chunk, 4)
    if cbytes != len(chunk) or nbytes != expected or blocksize == 0:
        raise ValueError("a chunk's header contradicts the array's metadata")
    if chunk[2] & _BLOSC_MEMCPYED:
        will_need(shard, at + _BLOSC_HEADER + start, at + _BLOSC_HEADER + stop)
        return chunk[_BLOSC_HEADER + start : _BLOSC_HEADER + stop], start
    first, last = start // blocksize, -(-stop // blocksize)
    n_blocks = -(-nbytes // blocksize)
    # The last block may be shorter and is laid out differently; so is a frame wanted (nearly) whole.
    if last - first != 1 or last * blocksize > nbytes:
        will_need(shard, at, frame.stop)
        return blosc.decompress(bytes(chunk)), 0
    starts = struct.unpack_from(f"<{n_blocks}i", chunk, _BLOSC_HEADER)
    begin = starts[first]
    end = min((s for s in (*starts, cbytes) if s > begin), default=cbytes)
    if not _BLOSC_HEADER + 4 * n_blocks <= begin < end <= cbytes:
        raise ValueError("a chunk's blocks lie outside it")
    will_need(shard, at + begin, at + end)
    single = bytes(chunk[:4]) + struct.pack(
        "<IIIi", blocksize, blocksize, _BLOSC_HEADER + 4 + end - begin, _BLOSC_HEADER + 4
    )
    return blosc.decompress(single + bytes(chunk[begin:end])), first * blocksize
