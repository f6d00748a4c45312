"""Finite-state entropy codes (FSE) of few symbols, compiled: tables, their description, and the states that walk them.

RFC 8878, section 4.1; the encoder's tables are those of Yann Collet's library. Only what `frames` needs: every symbol that
occurs gets at least one state, and the "less than one" probabilities of the format are not used.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.jit import jit
from actstore.kernels.zstandard.words import leading_zeros

MOST_SYMBOLS = 64
MOST_STATES = 1 << 8


class Table(NamedTuple):
    """How symbols are encoded."""

    next_states: NDArray[np.uint32]  # [state]
    bits: NDArray[np.int64]  # [symbol]; 2¹⁶ × the number of bits, less the states that write one bit fewer
    offset: NDArray[np.int64]  # [symbol] where its states begin
    shares: NDArray[np.int64]  # [symbol] number of states, of 1 << log


@jit
def new_table() -> Table:
    """A table to be built."""
    return Table(
        np.zeros(MOST_STATES, np.uint32),
        np.zeros(MOST_SYMBOLS, np.int64),
        np.zeros(MOST_SYMBOLS, np.int64),
        np.zeros(MOST_SYMBOLS, np.int64),
    )


@jit
def highest_bit(value: int) -> int:
    """The place of the highest bit of a number above 0."""
    return 63 - int(np.int64(leading_zeros(np.uint64(value))))


@jit
def share_states(counts: NDArray[np.int64], n_symbols: int, log: int, shares: NDArray[np.int64]) -> None:
    """Fill `shares` [symbol] with numbers of states, 1 << log in all, near the counts; at least one where a count is not 0."""
    total = np.int64(0)
    for s in range(n_symbols):
        total += counts[s]
    size = np.int64(1) << log
    left = size
    largest = 0
    for s in range(n_symbols):
        shares[s] = 0
        if counts[s] > 0:
            shares[s] = max(np.int64(1), (counts[s] * size + total // 2) // total)
            left -= shares[s]
            if shares[s] > shares[largest]:
                largest = s
    while left != 0:
        # What rounding has left over, or taken too much, is that of the largest, which it changes least.
        for s in range(n_symbols):
            if shares[s] > shares[largest]:
                largest = s
        step = left if left > 0 else max(left, -(shares[largest] // 2))
        if step == 0:
            step = np.int64(-1)
        shares[largest] += step
        left -= step


@jit
def build(table: Table, n_symbols: int, log: int) -> None:
    """Fill the rest of a table whose `shares` are there."""
    size = 1 << log
    spread = np.zeros(MOST_STATES, np.uint8)
    step, mask, position = (size >> 1) + (size >> 3) + 3, size - 1, 0
    start = np.zeros(MOST_SYMBOLS, np.int64)
    total = np.int64(0)
    for s in range(n_symbols):
        share = table.shares[s]
        start[s] = total
        for _ in range(share):
            spread[position] = s
            position = (position + step) & mask
        if share == 1:
            table.bits[s] = (log << 16) - size
            table.offset[s] = total - 1
        elif share > 1:
            most = log - highest_bit(share - 1)
            table.bits[s] = (most << 16) - (share << most)
            table.offset[s] = total - share
        total += share
    for state in range(size):
        symbol = spread[state]
        table.next_states[start[symbol]] = size + state
        start[symbol] += 1


@jit
def describe(shares: NDArray[np.int64], n_symbols: int, log: int, out: NDArray[np.uint8], at: int) -> int:
    """Where the description of the shares ends, which is written to `out` from `at` on."""
    word, n_bits = np.uint64(log - 5), 4
    remaining, threshold, width = (1 << log) + 1, 1 << log, log + 1
    s = 0
    was_zero = False
    while s < n_symbols and remaining > 1:
        if was_zero:
            start = s
            while s < n_symbols and shares[s] == 0:
                s += 1
            while s >= start + 3:
                start += 3
                word |= np.uint64(3) << np.uint64(n_bits)
                n_bits += 2
                word, n_bits, at = _flush(word, n_bits, out, at)
            word |= np.uint64(s - start) << np.uint64(n_bits)
            n_bits += 2
        count = int(shares[s])
        s += 1
        most = 2 * threshold - 1 - remaining
        remaining -= count
        count += 1
        coded = count + most if count >= threshold else count
        word |= np.uint64(coded) << np.uint64(n_bits)
        n_bits += width - 1 if coded < most else width
        was_zero = count == 1
        while remaining < threshold:
            width -= 1
            threshold >>= 1
        word, n_bits, at = _flush(word, n_bits, out, at)
    while n_bits > 0:
        out[at] = np.uint8(word & np.uint64(255))
        word >>= np.uint64(8)
        n_bits -= 8
        at += 1
    return at


@jit
def _flush(word: np.uint64, n_bits: int, out: NDArray[np.uint8], at: int) -> tuple[np.uint64, int, int]:
    """Word, bits and place once all whole bytes are written."""
    while n_bits >= 8:
        out[at] = np.uint8(word & np.uint64(255))
        word >>= np.uint64(8)
        n_bits -= 8
        at += 1
    return word, n_bits, at


@jit
def first_state(table: Table, symbol: int) -> int:
    """The state that stands for the symbol that is encoded first, and decoded last."""
    n_bits = (table.bits[symbol] + (1 << 15)) >> 16
    value = (n_bits << 16) - table.bits[symbol]
    return int(np.int64(table.next_states[(value >> n_bits) + table.offset[symbol]]))
