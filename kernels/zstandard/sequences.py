"""Runs of one byte, cut out of a stream of bytes and described as zstandard's sequences, compiled.

A run's first byte is a literal, the rest of it a match at offset 1, which the format's first repeated offset is from the start:
so no offset is ever written. RFC 8878, section 3.1.1.3.2.
"""

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.jit import jit
from actstore.kernels.zstandard.entropy import Table, build, describe, first_state, highest_bit, share_states
from actstore.kernels.zstandard.words import leading_zeros, load_word, store_word, trailing_zeros

SHORTEST_MATCH = 3
_RLE, _CODED = 1, 2  # how a table is given
_FEW = 256  # sequences; the table of more has more states
_LOG, _LARGE_LOG = 6, 8
_N_CODES = 53  # of lengths of matches; those of literals have 36

# Extra bits of each code. Up to 15 literals, and up to 34 bytes of a match, the code is the length itself.
_LITERAL_BITS = np.array([0] * 16 + [1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16])
_MATCH_BITS = np.array([0] * 32 + [1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16])
_LITERAL_BASES = np.concatenate([[0], np.cumsum(1 << _LITERAL_BITS)[:-1]])
_MATCH_BASES = np.concatenate([[0], np.cumsum(1 << _MATCH_BITS)[:-1]]) + SHORTEST_MATCH


@jit
def count_even_words(data: NDArray[np.uint8], first: int, n: int) -> int:
    """How many words of 8 bytes of `data[first : first + n]`, one after another, are one byte eight times."""
    count = 0
    at = np.uint64(first)
    for _ in range(n >> 3):
        word = load_word(data, at)
        count += word == (word >> np.uint64(8)) | (word << np.uint64(56))
        at += np.uint64(8)
    return count


@jit
def cut_runs(
    data: NDArray[np.uint8],
    first: int,
    n: int,
    literals: NDArray[np.uint8],
    literal_lengths: NDArray[np.int64],
    match_lengths: NDArray[np.int64],
) -> tuple[int, int]:
    """The number of sequences, and of literals; fills the three arrays. Runs that hold no word of 8 bytes stay literals.

    Words are counted from `first`. How far a run reaches into the words around it is counted in bits, not byte by byte: each of
    its ends would be a branch that no processor foresees.
    """
    n_sequences, n_literals, begin = 0, np.uint64(0), np.uint64(first)  # of the literals that are in no sequence yet
    at, stop = np.uint64(first), np.uint64(first + n)
    last = stop - np.uint64(8) if n >= 8 else np.uint64(0)  # where the last word begins
    eight, one, three = np.uint64(8), np.uint64(1), np.uint64(3)
    while at <= last and n >= 8:
        word = load_word(data, at)
        if word != (word >> eight) | (word << np.uint64(56)):
            at += eight
            continue
        start = at
        if at - begin >= eight:
            start -= leading_zeros(load_word(data, at - eight) ^ word) >> three
        else:
            while start > begin and data[start - one] == data[at]:
                start -= one
        at += eight
        while at <= last and load_word(data, at) == word:
            at += eight
        if at <= last:
            at += trailing_zeros(load_word(data, at) ^ word) >> three
        else:
            while at < stop and data[at] == data[start]:
                at += one
        n_new = start + one - begin
        copy_bytes(data, begin, literals, n_literals, n_new, stop)
        n_literals += n_new
        literal_lengths[n_sequences] = np.int64(n_new)
        match_lengths[n_sequences] = np.int64(at - start) - 1
        n_sequences += 1
        begin = at
    copy_bytes(data, begin, literals, n_literals, stop - begin, stop)
    return n_sequences, int(np.int64(n_literals + stop - begin))


@jit
def copy_bytes(
    data: NDArray[np.uint8], begin: np.uint64, out: NDArray[np.uint8], at: np.uint64, n: np.uint64, stop: np.uint64
) -> None:
    """Copy `n` bytes of `data` to `out`, and up to 7 more, none of them from `stop` on; `out` has room for these.

    Numba takes seconds to compile an assignment of slices.
    """
    i, eight = np.uint64(0), np.uint64(8)
    while i < n and begin + i + eight <= stop:
        store_word(out, at + i, load_word(data, begin + i))
        i += eight
    while i < n:
        out[at + i] = data[begin + i]
        i += np.uint64(1)


@jit
def literal_code(length: int) -> int:
    """The code of a number of literals."""
    if length < 16:
        return length
    if length >= 64:
        return highest_bit(length) + 19
    code = 16
    while code < 24 and length >= _LITERAL_BASES[code + 1]:
        code += 1
    return code


@jit
def match_code(length: int) -> int:
    """The code of the length of a match."""
    above = length - SHORTEST_MATCH
    if above < 32:
        return above
    if above >= 128:
        return highest_bit(above) + 36
    code = 32
    while code < 42 and length >= _MATCH_BASES[code + 1]:
        code += 1
    return code


@jit
def write_sequences(
    literal_lengths: NDArray[np.int64],
    match_lengths: NDArray[np.int64],
    n: int,
    codes: NDArray[np.uint8],
    by_literals: Table,
    by_match: Table,
    out: NDArray[np.uint8],
    at: int,
) -> int:
    """Where the section of `n` sequences ends, which is written to `out` from `at` on; `codes` [2, sequence] is scratch."""
    at = _write_number(n, out, at)
    if n == 0:
        return at
    counts = np.zeros((2, 64), np.int64)
    for i in range(n):
        codes[0, i] = literal_code(literal_lengths[i])
        codes[1, i] = match_code(match_lengths[i])
        counts[0, codes[0, i]] += 1
        counts[1, codes[1, i]] += 1
    log = _LARGE_LOG if n >= _FEW else _LOG
    modes_at = at
    at += 1
    literal_mode, at = _write_table(counts[0], codes[0, 0], n, log, by_literals, out, at)
    out[at] = 0  # the code of every offset
    match_mode, at = _write_table(counts[1], codes[1, 0], n, log, by_match, out, at + 1)
    out[modes_at] = (literal_mode << 6) | (_RLE << 4) | (match_mode << 2)
    has_literal_states, has_match_states = literal_mode == _CODED, match_mode == _CODED
    word, n_bits, to = np.uint64(0), np.int64(0), np.uint64(at)
    literal_state = first_state(by_literals, codes[0, n - 1]) if has_literal_states else np.int64(0)
    match_state = first_state(by_match, codes[1, n - 1]) if has_match_states else np.int64(0)
    for i in range(n - 1, -1, -1):
        literals, match = np.int64(codes[0, i]), np.int64(codes[1, i])
        if i < n - 1:
            if has_match_states:
                width = (match_state + by_match.bits[match]) >> 16
                word |= np.uint64(match_state & ((1 << width) - 1)) << np.uint64(n_bits)
                n_bits += width
                match_state = np.int64(by_match.next_states[(match_state >> width) + by_match.offset[match]])
            if has_literal_states:
                width = (literal_state + by_literals.bits[literals]) >> 16
                word |= np.uint64(literal_state & ((1 << width) - 1)) << np.uint64(n_bits)
                n_bits += width
                literal_state = np.int64(
                    by_literals.next_states[(literal_state >> width) + by_literals.offset[literals]]
                )
        # At most 7 + 2 × 8 + 2 × 16 bits.
        word |= np.uint64(literal_lengths[i] - _LITERAL_BASES[literals]) << np.uint64(n_bits)
        n_bits += _LITERAL_BITS[literals]
        word |= np.uint64(match_lengths[i] - _MATCH_BASES[match]) << np.uint64(n_bits)
        n_bits += _MATCH_BITS[match]
        store_word(out, to, word)
        to += np.uint64(n_bits >> 3)
        word >>= np.uint64(n_bits & ~7)
        n_bits &= 7
    if has_match_states:
        word |= np.uint64(match_state & ((1 << log) - 1)) << np.uint64(n_bits)
        n_bits += log
    if has_literal_states:
        word |= np.uint64(literal_state & ((1 << log) - 1)) << np.uint64(n_bits)
        n_bits += log
    word |= np.uint64(1) << np.uint64(n_bits)
    store_word(out, to, word)
    return int(np.int64(to)) + int(n_bits + 8) // 8


@jit
def _write_number(n: int, out: NDArray[np.uint8], at: int) -> int:
    if n < 128:
        out[at] = n
        return at + 1
    if n < 0x7F00:
        out[at] = (n >> 8) + 128
        out[at + 1] = n & 255
        return at + 2
    out[at] = 255
    out[at + 1] = (n - 0x7F00) & 255
    out[at + 2] = (n - 0x7F00) >> 8
    return at + 3


@jit
def _write_table(
    counts: NDArray[np.int64], code: int, n: int, log: int, table: Table, out: NDArray[np.uint8], at: int
) -> tuple[int, int]:
    """How the code of lengths is given, and where its description ends: one code, or a table of states."""
    if counts[code] == n:
        out[at] = code
        return _RLE, at + 1
    n_symbols = _N_CODES
    while counts[n_symbols - 1] == 0:
        n_symbols -= 1
    share_states(counts, n_symbols, log, table.shares)
    build(table, n_symbols, log)
    return _CODED, describe(table.shares, n_symbols, log, out, at)
