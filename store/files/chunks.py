"""Inner chunks of shards as Blosc frames, by Blosc itself or by `kernels.zstandard`, and what they hold of a block."""

from __future__ import annotations

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
