"""Rows of bytes as zstandard frames, compiled: runs as sequences, everything else by a Huffman code of its own.

RFC 8878. The general encoder looks for repetitions at any distance, of which activations have none but runs: of zeros, of slots
without a value. Arguments were checked by `api`.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.jit import jit
from actstore.kernels.zstandard.entropy import Table, new_table
from actstore.kernels.zstandard.huffman import (
    N_BYTES,
    assign_codes,
    assign_lengths,
    count_bytes,
    describe_lengths,
    write_streams,
)
from actstore.kernels.zstandard.sequences import copy_bytes, count_even_words, cut_runs, write_sequences

SLACK = 1024
"""Bytes beyond a stream's own that writing its frame may touch: what grows is found out after it was written."""
_RAW, _RLE, _COMPRESSED = 0, 1, 2  # kinds of blocks, and of literals
_FEW_LITERALS = 64  # are not worth a code
_FEW_EVEN_WORDS = 256  # one word in that many: with fewer, runs are not looked for
_SAMPLES, _SAMPLE = 8, 256  # pieces and bytes of each that show whether a stream has any entropy to spare


class Scratch(NamedTuple):
    """What encoding one stream needs beside its input and output."""

    literals: NDArray[np.uint8]  # [byte]
    literal_lengths: NDArray[np.int64]  # [sequence]
    match_lengths: NDArray[np.int64]  # [sequence]
    sequence_codes: NDArray[np.uint8]  # [2, sequence]
    counts: NDArray[np.uint32]  # [8, byte value]
    totals: NDArray[np.int64]  # [byte value]
    lengths: NDArray[np.int64]  # [byte value]
    codes: NDArray[np.uint64]  # [byte value]
    by_literals: Table
    by_match: Table


@jit
def new_scratch(n: int) -> Scratch:
    """Scratch for streams of up to `n` bytes."""
    n_sequences = n // 8 + 1
    return Scratch(
        np.empty(n + 8, np.uint8),
        np.empty(n_sequences, np.int64),
        np.empty(n_sequences, np.int64),
        np.empty((2, n_sequences), np.uint8),
        np.empty((8, N_BYTES), np.uint32),
        np.empty(N_BYTES, np.int64),
        np.empty(N_BYTES, np.int64),
        np.empty(N_BYTES, np.uint64),
        new_table(),
        new_table(),
    )


@jit
def write_frame(data: NDArray[np.uint8], first: int, n: int, scratch: Scratch, out: NDArray[np.uint8], at: int) -> int:
    """Where the frame of `data[first : first + n]` ends, written to `out` from `at` on; -1 where it would not shrink."""
    begin = at
    at = _write_frame_header(n, out, at)
    block_at = at
    at += 3
    is_run = True
    for i in range(first + 1, first + n):
        if data[i] != data[first]:
            is_run = False
            break
    if is_run:
        out[at] = data[first]
        _write_block_header(_RLE, n, out, block_at)
        return at + 1
    literals, literals_at, n_literals, n_sequences = data, first, n, 0
    if count_even_words(data, first, n) * _FEW_EVEN_WORDS >= n >> 3:
        literals, literals_at = scratch.literals, 0
        n_sequences, n_literals = cut_runs(data, first, n, literals, scratch.literal_lengths, scratch.match_lengths)
    at = _write_literals(literals, literals_at, n_literals, scratch, out, at)
    at = write_sequences(
        scratch.literal_lengths, scratch.match_lengths, n_sequences, scratch.sequence_codes,
        scratch.by_literals, scratch.by_match, out, at,
    )  # fmt: skip
    if at - begin >= n:
        return -1
    _write_block_header(_COMPRESSED, at - block_at - 3, out, block_at)
    return at


@jit
def _is_dense(data: NDArray[np.uint8], first: int, n: int, scratch: Scratch) -> bool:
    """Whether a sample of literals has too many bits of entropy: coding would gain nothing: mantissas."""
    if n < 2 * _SAMPLES * _SAMPLE:
        return False
    totals = scratch.totals
    for value in range(N_BYTES):
        totals[value] = 0
    step = n // _SAMPLES
    for piece in range(_SAMPLES):
        for i in range(first + piece * step, first + piece * step + _SAMPLE):
            totals[data[i]] += 1
    return _is_even(totals, _SAMPLES * _SAMPLE)


@jit
def _is_even(totals: NDArray[np.int64], n: int) -> bool:
    """Whether `n` bytes of which each value occurs `totals` [byte value] times are too close to uniform to be coded.

    Σ c² over n² is the chance that two bytes are equal: 1 / 256 of uniform ones; below 1 / 128 a twentieth would be saved.
    """
    squares = np.int64(0)
    for value in range(N_BYTES):
        squares += totals[value] * (totals[value] - 1)
    return bool(squares * 128 < np.int64(n) * (np.int64(n) - 1))


@jit
def _write_frame_header(n: int, out: NDArray[np.uint8], at: int) -> int:
    """Magic number, and a descriptor that says: one segment, of `n` bytes, no checksum."""
    out[at], out[at + 1], out[at + 2], out[at + 3] = 0x28, 0xB5, 0x2F, 0xFD
    at += 4
    if n < 256:
        out[at], out[at + 1] = 0x20, n
        return at + 2
    if n < 65_536 + 256:
        out[at], out[at + 1], out[at + 2] = 0x60, (n - 256) & 255, (n - 256) >> 8
        return at + 3
    out[at] = 0xA0
    for i in range(4):
        out[at + 1 + i] = (n >> (8 * i)) & 255
    return at + 5


@jit
def _write_block_header(kind: int, n: int, out: NDArray[np.uint8], at: int) -> None:
    """Of the last block, as the only one is."""
    header = 1 | (kind << 1) | (n << 3)
    for i in range(3):
        out[at + i] = (header >> (8 * i)) & 255


@jit
def _write_literals(
    data: NDArray[np.uint8], first: int, n: int, scratch: Scratch, out: NDArray[np.uint8], at: int
) -> int:
    """Where the section of literals `data[first : first + n]` ends."""
    if n > _FEW_LITERALS and not _is_dense(data, first, n, scratch):
        count_bytes(data, first, first + n, scratch.counts)
        totals, counts, n_values = scratch.totals, scratch.counts, 0
        for value in range(N_BYTES):
            totals[value] = 0
            for row in range(8):
                totals[value] += counts[row, value]
            n_values += totals[value] > 0
        if n < 2 * _SAMPLES * _SAMPLE and _is_even(totals, n):
            return _write_raw_literals(data, first, n, out, at)
        if n_values == 1:
            _write_literals_header(_RLE, n, out, at)
            out[at + 3] = data[first]
            return at + 4
        longest = assign_lengths(totals, scratch.lengths)
        total_bits = np.int64(0)
        for value in range(N_BYTES):
            total_bits += totals[value] * scratch.lengths[value]
        if total_bits < 8 * n:
            end = describe_lengths(scratch.lengths, longest, out, at + 5)
            if end > 0:
                assign_codes(scratch.lengths, longest, scratch.codes)
                end = write_streams(data, first, n, scratch.codes, out, end)
                if 0 < end < at + n:
                    header = _COMPRESSED | (3 << 2) | (n << 4) | ((end - at - 5) << 22)
                    for i in range(5):
                        out[at + i] = (header >> (8 * i)) & 255
                    return end
    return _write_raw_literals(data, first, n, out, at)


@jit
def _write_raw_literals(data: NDArray[np.uint8], first: int, n: int, out: NDArray[np.uint8], at: int) -> int:
    """Where the section of literals ends, stored as they are."""
    _write_literals_header(_RAW, n, out, at)
    copy_bytes(data, np.uint64(first), out, np.uint64(at + 3), np.uint64(n), np.uint64(first + n))
    return at + 3 + n


@jit
def _write_literals_header(kind: int, n: int, out: NDArray[np.uint8], at: int) -> None:
    header = kind | (3 << 2) | (n << 4)
    for i in range(3):
        out[at + i] = (header >> (8 * i)) & 255
