"""Chunks of activations as Blosc frames of zstandard streams: checks and dispatch."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.zstandard import blosc
from actstore.kernels.zstandard.cpu import SLACK

LONGEST_STREAM = 1 << 17
"""Bytes of a stream: more than one zstandard block would be needed."""
SHORTEST_STREAM = 128
"""Blosc does not split rows of fewer elements."""


def can_encode(chunk: NDArray[Any], *, shuffle: bool) -> bool:
    """Whether `write_chunk` takes chunks of this shape."""
    n = chunk.shape[1] if shuffle else chunk.shape[1] * chunk.itemsize
    return bool(SHORTEST_STREAM <= n <= LONGEST_STREAM)


def buffer_nbytes(chunk: NDArray[Any]) -> int:
    """The size of a buffer for `write_chunk`: what is too long is found out after it was written."""
    return int(2 * chunk.nbytes + (SLACK + 64) * (1 + len(chunk) * chunk.itemsize))


def write_chunk(chunk: NDArray[Any], most: int, out: NDArray[np.uint8], *, shuffle: bool) -> int:
    """The number of bytes of the Blosc frame of `chunk` [row, column], written to `out`; 0 where they are more than `most`.

    Each row is one Blosc block. With `shuffle`, its streams are of the elements' first bytes, of their second bytes and so on.
    chunk: contiguous; see `can_encode`. out: `buffer_nbytes` or more. The frame depends on nothing but the chunk. Raises
    ValueError for other shapes.
    """
    if chunk.ndim != 2 or not chunk.size or not chunk.flags.c_contiguous or not can_encode(chunk, shuffle=shuffle):
        raise ValueError(f"a chunk must be contiguous rows of {SHORTEST_STREAM} to {LONGEST_STREAM} bytes")
    if out.nbytes < buffer_nbytes(chunk):
        raise ValueError(f"out must have {buffer_nbytes(chunk)} bytes or more, not {out.nbytes}")
    flat = chunk.view(np.uint8).reshape(-1)
    return int(blosc.write_chunk(flat, len(chunk), chunk.itemsize, shuffle, most, out))
