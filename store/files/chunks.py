"""Inner chunks of shards as Blosc frames, by Blosc itself or by `kernels.zstandard`, and what they hold of a block."""

from __future__ import annotations

import struct
from bisect import bisect_right
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from numcodecs import blosc

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from actstore.store.layout import Compression
    from actstore.store.storage.pieces import Bytes

WORTHWHILE: Final = 11 / 12
"""A chunk that shrinks by less than a twelfth is framed as it is: reading it then costs a copy, not a decompression. float16
activations shrink by some 7 %, float32 by 11 %, bfloat16 by 25 %."""
HEADER_NBYTES: Final = 16
_CHECKSUM_NBYTES: Final = 4
_CHECKSUM: Final = struct.Struct("<I")
_SINGLE: Final = struct.Struct("<4sIIIi")
_MEMCPYED: Final = 0x2


def chunk_encoder(compression: Compression) -> Callable[[NDArray[Any]], Bytes]:
    """What encodes chunks, contiguous [row, column], one after another; each time it gives the same memory."""
    codec = compression.cname.encode(), compression.clevel, compression.shuffle_code

    def with_blosc(chunk: NDArray[Any]) -> Bytes:
        row_nbytes = chunk.shape[1] * chunk.itemsize
        part: bytes = blosc.compress(chunk, *codec, row_nbytes)
        return _uncompressed(chunk, codec) if len(part) > WORTHWHILE * chunk.nbytes else part

    if not compression.is_huffman:
        return with_blosc
    from actstore.kernels.zstandard import api  # only here: reading a store needs no compiler

    shuffle, buffer = compression.shuffle != "noshuffle", np.empty(0, np.uint8)

    def by_frequency(chunk: NDArray[Any]) -> Bytes:
        nonlocal buffer
        if not api.can_encode(chunk, shuffle=shuffle):
            return with_blosc(chunk)
        if buffer.nbytes < (nbytes := api.buffer_nbytes(chunk)):
            buffer = np.empty(nbytes, np.uint8)
        n = api.write_chunk(chunk, int(WORTHWHILE * chunk.nbytes), buffer, shuffle=shuffle)
        return buffer[:n].data if n else _uncompressed(chunk, codec)

    return by_frequency


def _uncompressed(chunk: NDArray[Any], codec: tuple[bytes, int, int]) -> bytes:
    """A frame that holds the chunk as it is."""
    part: bytes = blosc.compress(chunk, codec[0], 0, codec[2], chunk.shape[1] * chunk.itemsize)
    return part


class Rows(Protocol):
    """Values [row, column] that are read some rows at a time, each once and in order: a NumPy array is such."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the values."""

    @property
    def itemsize(self) -> int:
        """Bytes of a value."""

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        """Consecutive rows [row, column]."""

    def __array__(self) -> NDArray[Any]:
        """All rows."""


class TokenRows:
    """The values [neuron, token] of a block as rows of tokens, made as they are asked for.

    Transposed as a whole they would take the memory of a block once more for every encoder thread.
    """

    def __init__(self, values: NDArray[Any]) -> None:
        self._values = values
        self.dtype, self.itemsize = values.dtype, values.itemsize

    def __getitem__(self, tokens: slice) -> NDArray[Any]:
        """Some tokens, [token, neuron], without holding the interpreter's lock."""
        from actstore.kernels.token_rows.api import scatter_rows  # only here: reading a store needs no compiler

        part = self._values[:, tokens]
        out = np.empty(part.shape[::-1], part.dtype)
        scatter_rows(part, np.arange(len(out)), out, 0)
        return out

    def __array__(self) -> NDArray[Any]:
        return self[:]


class Frame:
    """The head of a Blosc 1 frame, by which single blocks of the frame can be read.

    The frame is a 16-byte header (flags at 2; nbytes, blocksize, cbytes as uint32 from 4), one int32 offset per block, and
    the blocks. A single block between a header and an offset of its own is again a frame, which the library decompresses.
    """

    __slots__ = ("_at", "_blocksize", "_cbytes", "_ends", "_flags", "_nbytes", "_starts", "copied_at", "table")

    def __init__(self, table: bytes, head: bytes, at: int, length: int, expected: int) -> None:
        """A frame of `length` bytes at `at` of its shard, and the `table` of its checksums.

        `ValueError` unless it decompresses to `expected` bytes.
        """
        nbytes, blocksize, cbytes = struct.unpack_from("<III", head, 4)
        if cbytes != length or nbytes != expected or blocksize == 0:
            raise ValueError("a chunk's header contradicts the array's metadata")
        self._at, self._flags, self.table = at, head[:4], table
        self._nbytes, self._blocksize, self._cbytes = nbytes, blocksize, cbytes
        # Where the values begin that were not compressed; 0 where they were.
        self.copied_at = at + HEADER_NBYTES if head[2] & _MEMCPYED else 0
        n_blocks = -(-nbytes // blocksize)
        # Where there are more blocks than rows, the frame is read whole.
        known = not self.copied_at and len(head) >= HEADER_NBYTES + 4 * n_blocks
        self._starts = struct.unpack_from(f"<{n_blocks}i", head, HEADER_NBYTES) if known else ()
        self._ends = sorted((*self._starts, self._cbytes))  # a block ends where the next one in the file begins

    def checksum(self, row: int) -> int:
        """The checksum of one row of the chunk, of a table that has one per row."""
        checksum: int = _CHECKSUM.unpack_from(self.table, _CHECKSUM_NBYTES * row)[0]
        return checksum

    def decompress(self, read: Callable[[int, int], bytes], start: int, out: NDArray[Any]) -> None:
        """Put the chunk's bytes from `start` on into the contiguous `out`; `read` reads bytes of the shard."""
        at, n = self._at, out.nbytes
        block, within = divmod(start, self._blocksize)
        if within + n <= self._blocksize and (block + 1) * self._blocksize <= self._nbytes and self._starts:
            single = self._single(read, block)
            if n == self._blocksize:
                blosc.decompress(single, out)
            else:
                out[...] = np.frombuffer(blosc.decompress(single), out.dtype, out.size, within)
            return
        # Several blocks are read as the whole frame; so is the last one where it is shorter, and then has another layout.
        frame = read(at, at + self._cbytes)
        # The library believes the header's sizes, which may have been read anew from a file that another process changes.
        if struct.unpack_from("<III", frame, 4) != (self._nbytes, self._blocksize, self._cbytes):
            raise ValueError("a chunk's header contradicts the array's metadata")
        if n == self._nbytes:
            blosc.decompress(frame, out)
        else:
            out[...] = np.frombuffer(blosc.decompress(frame), out.dtype, out.size, start)

    def _single(self, read: Callable[[int, int], bytes], block: int) -> bytes:
        """A frame of one block of this frame."""
        begin = self._starts[block]
        following = bisect_right(self._ends, begin)
        end = self._ends[following] if following < len(self._ends) else self._cbytes
        if not HEADER_NBYTES + 4 * len(self._starts) <= begin < end <= self._cbytes:
            raise ValueError("a chunk's blocks lie outside it")
        n = HEADER_NBYTES + 4
        head = _SINGLE.pack(self._flags, self._blocksize, self._blocksize, n + end - begin, n)
        return head + read(self._at + begin, self._at + end)
