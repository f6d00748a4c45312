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


def extend(crc: int, data: bytes | bytearray | memoryview | NDArray[np.uint8]) -> int:
    """The CRC-32C of what had `crc` so far, followed by `data`."""
    if not _has_instruction or len(data) < _FEW_NBYTES:
        return int(google_crc32c.extend(crc, data if isinstance(data, bytes | np.ndarray) else bytes(data)))
    return int(cpu.extend(np.uint32(crc), np.frombuffer(data, np.uint8)))
