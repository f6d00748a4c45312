"""CRC-32C of the rows of a chunk, and of a file's pieces: by the processor's instruction, else by Google's library.

The library holds the interpreter's lock while it computes. Sixteen threads that encode blocks then wait for one another, and
the thread that feeds a GPU for all of them: at 6 GB/s, for rows and again for the file, no more than 5,000 tokens of a 7B
model per second could be written, on however many cores.
"""

from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from actstore.kernels.crc32c import cpu

_has_instruction = cpu.has_instruction()
_FEW_NBYTES = 4096  # are faster through the library


def row_checksums(chunk: NDArray[Any], starts: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The CRC-32C of the bytes of every row of `chunk` [row, column], contiguous, continued from `starts` [row]."""
    if not chunk.flags.c_contiguous or chunk.ndim != 2 or len(starts) != len(chunk):
        raise ValueError(f"a chunk must be contiguous rows, with one start for each of them; found {list(chunk.shape)}")
    if not _has_instruction or chunk.nbytes < _FEW_NBYTES:
        pairs = zip(starts.tolist(), chunk, strict=True)
        return np.array([google_crc32c.extend(start, row) for start, row in pairs], np.uint32)
    out = np.empty(len(chunk), np.uint32)
    cpu.rows(chunk.view(np.uint8).reshape(-1), chunk.shape[1] * chunk.itemsize, starts, out)
    return out


def copy_rows(
    chunk: NDArray[Any],
    rows: NDArray[np.int64],
    starts: NDArray[np.uint32],
    out: NDArray[Any],
    places: NDArray[np.int64],
) -> NDArray[np.uint32]:
    """Copy some `rows` of a contiguous `chunk` [row, column] to rows of it, from byte `places` on of the contiguous `out`.

    rows, starts, places: [copied row]. The CRC-32C of each, continued from `starts`: as by `row_checksums`, in one pass over
    the bytes, and past the caches. `ValueError` where something lies outside of `chunk` or `out`.
    """
    nbytes, data, flat = (
        chunk.shape[1] * chunk.itemsize,
        chunk.reshape(-1).view(np.uint8),
        out.reshape(-1).view(np.uint8),
    )
    if not (chunk.flags.c_contiguous and out.flags.c_contiguous) or not len(rows) == len(starts) == len(places):
        raise ValueError("rows are copied between contiguous arrays, with one start and one place for each of them")
    if _has_instruction and nbytes % 8 == flat.ctypes.data % 8 == 0:
        checksums = np.empty(len(rows), np.uint32)
        if not cpu.copy_rows(data, rows * nbytes, nbytes, starts, flat, places, checksums):
            return checksums
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(chunk):
        raise ValueError(f"rows are those of {len(chunk)}, found {rows.min()} to {rows.max()}")
    if len(rows) and not 0 <= int(places.min()) <= int(places.max()) <= len(flat) - nbytes:
        raise ValueError(f"{nbytes} bytes from {places.min()} to {places.max()} on lie outside of {len(flat)}")
    for row, place in zip(rows.tolist(), places.tolist(), strict=True):
        flat[place : place + nbytes] = data[row * nbytes : (row + 1) * nbytes]
    return row_checksums(np.ascontiguousarray(chunk[rows]), starts)


def extend(crc: int, data: bytes | bytearray | memoryview | NDArray[np.uint8]) -> int:
    """The CRC-32C of what had `crc` so far, followed by `data`."""
    if not _has_instruction or len(data) < _FEW_NBYTES:
        return int(google_crc32c.extend(crc, data if isinstance(data, bytes | np.ndarray) else bytes(data)))
    return int(cpu.extend(np.uint32(crc), np.frombuffer(data, np.uint8)))
