"""CRC-32C of the rows of a chunk, and of a file's pieces: by the processor's instruction, else by Google's library.

The library holds the interpreter's lock while it computes. Sixteen threads that encode blocks then wait for one another, and
the thread that feeds a GPU for all of them: at 6 GB/s, for rows and again for the file, no more than 5,000 tokens of a 7B
model per second could be written, on however many cores.
"""

import os
import sys
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from actstore.kernels.crc32c import cpu, scatter

_has_instruction = cpu.has_instruction()
_reads_files = _has_instruction and hasattr(os, "pread") and sys.maxsize > 1 << 32
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


def scatter_rows(
    chunk: NDArray[Any],
    target: NDArray[np.int64],
    starts: NDArray[np.uint32],
    table: NDArray[np.uint32],
    out: NDArray[Any],
    column: int,
) -> int | None:
    """Put row r of `chunk` [row, column] into row `target[r]` of `out`, from `column` on; nowhere where that is -1.

    Both are contiguous, and of one dtype; no two rows have the same target. target, starts, table: [row]. Given is the first
    row that was put somewhere and whose CRC-32C, continued from that of `starts`, is not that of `table`; None where there is
    none. One pass over the bytes, past the caches, without the interpreter's lock. `ValueError` where something lies outside
    of `chunk` or `out`.
    """
    if chunk.dtype != out.dtype or not (chunk.flags.c_contiguous and out.flags.c_contiguous):
        raise ValueError(f"rows are put between contiguous arrays of one dtype, found {chunk.dtype} and {out.dtype}")
    n = len(target)
    if not n <= min(len(chunk), len(starts), len(table)) or not 0 <= column <= out.shape[1] - chunk.shape[1]:
        raise ValueError(
            f"{n} targets, of rows of {list(chunk.shape)}, with one start and one checksum each, and column {column} do not go "
            f"into {list(out.shape)}"
        )
    nbytes, flat = chunk.shape[1] * chunk.itemsize, out.reshape(-1).view(np.uint8)
    pitch, first = out.shape[1] * out.itemsize, column * out.itemsize
    if _has_instruction and nbytes and (nbytes | pitch | first | out.__array_interface__["data"][0]) % 8 == 0:
        data = chunk.reshape(-1).view(np.uint8)
        found = scatter.scatter_rows(data, nbytes, target, starts, table, flat, pitch, first)
        if found != scatter.OUTSIDE:
            return None if found == scatter.DONE else int(found)
    wanted = np.flatnonzero(target >= 0)
    if len(wanted) and int(target.max()) >= len(out):
        raise ValueError(f"targets are rows below {len(out)}, or -1, found {int(target.max())}")
    rows = np.ascontiguousarray(chunk[wanted])
    out[target[wanted], column : column + chunk.shape[1]] = rows
    wrong = wanted[row_checksums(rows, starts[wanted]) != table[wanted]]
    return int(wrong[0]) if len(wrong) else None


def scatter_file(
    descriptor: int,
    offsets: NDArray[np.int64],
    bands: NDArray[np.int64],
    chunk_rows: int,
    row: tuple[np.dtype[Any], int],
    target: NDArray[np.int64],
    starts: NDArray[np.uint32],
    out: NDArray[Any],
    column: int,
) -> tuple[int, int | None]:
    """`scatter_rows` of chunks that lie in a file as they are: (how many of `bands` were put there, the next one's answer).

    offsets: [band] where in the file the checksums of a chunk begin, behind which its Blosc frame lies. row: dtype and columns.
    target, starts: [row], of all chunks, of `chunk_rows` rows each. Fewer than all are put there where a checksum is another,
    and where a chunk cannot be read like this: None is the answer then, and it must be read in another way, which says why.
    """
    dtype, n_columns = row
    row_nbytes, pitch, first = n_columns * dtype.itemsize, out.shape[1] * out.itemsize, column * out.itemsize
    aligned = (row_nbytes | pitch | first | out.__array_interface__["data"][0]) % 8 == 0
    is_inside = out.dtype == dtype and out.flags.c_contiguous and 0 <= column <= out.shape[1] - n_columns
    last = (int(bands.max()) + 1) * chunk_rows if len(bands) else 0
    if not (_reads_files and row_nbytes and aligned and is_inside and last <= min(len(target), len(starts))):
        return 0, None
    head = 4 * chunk_rows + scatter.HEADER_NBYTES
    nbytes = chunk_rows * row_nbytes
    # Rows begin at lines of the memory: a line of theirs is then read by one instruction.
    memory = np.empty(head + nbytes + 2 * scatter.LINE, np.uint8)
    at = -(memory.__array_interface__["data"][0] + head) % scatter.LINE
    memory = memory[at : at + head + nbytes]
    table = memory[: 4 * chunk_rows].view(np.uint32)
    done, wrong = scatter.scatter_file(
        descriptor, offsets, bands, memory, table, memory[head:], row_nbytes, target, starts,
        out.reshape(-1).view(np.uint8), pitch, first,
    )  # fmt: skip
    return done, None if wrong < 0 else int(wrong)


def extend(crc: int, data: bytes | bytearray | memoryview | NDArray[np.uint8]) -> int:
    """The CRC-32C of what had `crc` so far, followed by `data`."""
    if not _has_instruction or len(data) < _FEW_NBYTES:
        return int(google_crc32c.extend(crc, data if isinstance(data, bytes | np.ndarray) else bytes(data)))
    return int(cpu.extend(np.uint32(crc), np.frombuffer(data, np.uint8)))
