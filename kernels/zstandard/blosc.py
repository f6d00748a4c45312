"""A chunk of rows as one Blosc 1 frame of zstandard streams, compiled: any Blosc reads it, any single row of it too.

Blosc's block is a row. With `shuffle`, a row of k-byte elements is k streams, one of the elements' first bytes, one of their
second, and so on ("split" in Blosc's words): the bytes with the exponents shrink, those of mantissas are stored as they are.
Arguments were checked by `api`.
"""

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.jit import jit
from actstore.kernels.zstandard.cpu import new_scratch, write_frame
from actstore.kernels.zstandard.sequences import copy_bytes

_VERSION, _ZSTD_VERSION = 2, 1
_SHUFFLED, _NOT_SPLIT, _ZSTD = 0x01, 0x10, 4 << 5
HEADER_NBYTES = 16


@jit
def write_chunk(
    data: NDArray[np.uint8], n_rows: int, itemsize: int, shuffle: bool, most: int, out: NDArray[np.uint8]
) -> int:
    """The bytes of the frame of all `n_rows` of `data`, written to `out`; 0 where they would be more than `most`."""
    row_nbytes = data.size // n_rows
    n_streams = itemsize if shuffle else 1
    n = row_nbytes // n_streams
    scratch = new_scratch(n)
    planes = np.empty(row_nbytes if n_streams > 1 else 0, np.uint8)
    at = HEADER_NBYTES + 4 * n_rows
    for row in range(n_rows):
        _write_number(at, out, HEADER_NBYTES + 4 * row)
        first = row * row_nbytes
        if n_streams > 1:
            _split(data, first, n, n_streams, planes)
        for stream in range(n_streams):
            source, begin = (planes, stream * n) if n_streams > 1 else (data, first)
            end = write_frame(source, begin, n, scratch, out, at + 4)
            if end < 0:
                end = at + 4 + n
                copy_bytes(source, np.uint64(begin), out, np.uint64(at + 4), np.uint64(n), np.uint64(begin + n))
            _write_number(end - at - 4, out, at)
            at = end
        if at > most:
            return 0
    out[0], out[1], out[3] = _VERSION, _ZSTD_VERSION, itemsize
    out[2] = _ZSTD | (_SHUFFLED if n_streams > 1 else _NOT_SPLIT)
    _write_number(data.size, out, 4)
    _write_number(row_nbytes, out, 8)
    _write_number(at, out, 12)
    return at


@jit
def _write_number(number: int, out: NDArray[np.uint8], at: int) -> None:
    for i in range(4):
        out[at + i] = (number >> (8 * i)) & 255


@jit
def _split(data: NDArray[np.uint8], first: int, n: int, itemsize: int, planes: NDArray[np.uint8]) -> None:
    """Fill `planes` [byte of an element, element], flat. Steps of constant length are a few vector moves."""
    row = data[first : first + n * itemsize]
    if itemsize == 2:
        for i in range(n):
            planes[i] = row[2 * i]
            planes[n + i] = row[2 * i + 1]
    elif itemsize == 4:
        for i in range(n):
            planes[i] = row[4 * i]
            planes[n + i] = row[4 * i + 1]
            planes[2 * n + i] = row[4 * i + 2]
            planes[3 * n + i] = row[4 * i + 3]
    else:
        for i in range(n):
            for b in range(itemsize):
                planes[b * n + i] = row[i * itemsize + b]
