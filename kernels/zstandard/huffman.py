"""Huffman codes of bytes as zstandard's literals have them, compiled: code lengths, their description, four streams of codes.

RFC 8878, section 4.2. Codes have at most `MOST_BITS` bits. The lengths are those of Moffat and Katajainen's in-place algorithm
(1995), cut to the longest that is allowed, then made to satisfy Kraft's equation.
"""

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.jit import jit
from actstore.kernels.zstandard.entropy import build, describe, first_state, new_table, share_states
from actstore.kernels.zstandard.words import load_word, store_word

MOST_BITS = 11
"""The format's limit. Five codes and the rest of a byte then fit a word of 64 bits."""
N_BYTES = 256
_WEIGHT_LOG = 6  # the format's limit for the code of the weights
_DIGIT_BITS = 9  # two digits hold the length of any stream
_RADIX = 1 << _DIGIT_BITS
_MOST_DIRECT = 128  # weights that the description may list without a code


@jit
def count_bytes(data: NDArray[np.uint8], first: int, stop: int, counts: NDArray[np.uint32]) -> None:
    """Fill `counts` [8, byte value]: its rows add up to how often each value is among `data[first:stop]`.

    Eight rows, because an addition has to wait for the one before it at the same place.
    """
    flat = counts.reshape(-1)
    for i in range(flat.size):
        flat[i] = 0
    n_words = np.uint64((stop - first) >> 3)
    at = np.uint64(first)
    low = np.uint64(255)
    one = np.uint32(1)
    for _ in range(n_words):
        word = load_word(data, at)
        flat[word & low] += one
        flat[np.uint64(256) + ((word >> np.uint64(8)) & low)] += one
        flat[np.uint64(512) + ((word >> np.uint64(16)) & low)] += one
        flat[np.uint64(768) + ((word >> np.uint64(24)) & low)] += one
        flat[np.uint64(1024) + ((word >> np.uint64(32)) & low)] += one
        flat[np.uint64(1280) + ((word >> np.uint64(40)) & low)] += one
        flat[np.uint64(1536) + ((word >> np.uint64(48)) & low)] += one
        flat[np.uint64(1792) + (word >> np.uint64(56))] += one
        at += np.uint64(8)
    for i in range(first + 8 * np.int64(n_words), stop):
        counts[0, data[i]] += one


@jit
def assign_lengths(totals: NDArray[np.int64], lengths: NDArray[np.int64]) -> int:
    """The number of bits of the longest code; fills `lengths` [byte value], 0 where `totals` is 0. At least two are not."""
    ranked = np.empty(N_BYTES, np.int64)  # values that occur, the rarest first
    n = _rank(totals, ranked)
    depth = np.empty(N_BYTES, np.int64)
    for i in range(n):
        depth[i] = totals[ranked[i]]
    _minimum_redundancy(depth, n)
    # The longest first; from here on `depth` descends.
    room = np.int64(1) << MOST_BITS
    for i in range(n):
        depth[i] = min(depth[i], MOST_BITS)
        room -= np.int64(1) << (MOST_BITS - depth[i])
    if room < 0:
        _lengthen(depth, n, int(room))
    longest = depth[0]
    for value in range(N_BYTES):
        lengths[value] = 0
    for i in range(n):
        lengths[ranked[i]] = depth[i]
        longest = max(longest, depth[i])
    return int(longest)


@jit
def _rank(totals: NDArray[np.int64], ranked: NDArray[np.int64]) -> int:
    """How many values occur; fills `ranked` with them, the rarest first, ties by value: sorted by two digits.

    No count exceeds that of the longest stream, 2¹⁷.
    """
    first = np.empty(N_BYTES, np.int64)  # by the lower digit
    starts = np.zeros(_RADIX + 1, np.int64)
    for value in range(N_BYTES):
        starts[(totals[value] & (_RADIX - 1)) + 1] += totals[value] > 0
    for digit in range(_RADIX):
        starts[digit + 1] += starts[digit]
    n = starts[_RADIX]
    for value in range(N_BYTES):
        if totals[value] > 0:
            digit = totals[value] & (_RADIX - 1)
            first[starts[digit]] = value
            starts[digit] += 1
    for digit in range(_RADIX + 1):
        starts[digit] = 0
    for i in range(n):
        starts[(totals[first[i]] >> _DIGIT_BITS) + 1] += 1
    for digit in range(_RADIX):
        starts[digit + 1] += starts[digit]
    for i in range(n):
        digit = totals[first[i]] >> _DIGIT_BITS
        ranked[starts[digit]] = first[i]
        starts[digit] += 1
    return int(n)


@jit
def _minimum_redundancy(depth: NDArray[np.int64], n: int) -> None:
    """Replace counts, ascending, by the lengths of the codes of a Huffman tree, in place."""
    if n == 2:
        depth[0] = depth[1] = 1
        return
    depth[0] += depth[1]
    root, leaf = 0, 2
    for node in range(1, n - 1):
        if leaf >= n or depth[root] < depth[leaf]:
            depth[node] = depth[root]
            depth[root] = node
            root += 1
        else:
            depth[node] = depth[leaf]
            leaf += 1
        if leaf >= n or (root < node and depth[root] < depth[leaf]):
            depth[node] += depth[root]
            depth[root] = node
            root += 1
        else:
            depth[node] += depth[leaf]
            leaf += 1
    depth[n - 2] = 0
    for node in range(n - 3, -1, -1):
        depth[node] = depth[depth[node]] + 1
    available, used, level = 1, 0, 0
    root, node = n - 2, n - 1
    while available > 0:
        while root >= 0 and depth[root] == level:
            used += 1
            root -= 1
        while available > used:
            depth[node] = level
            node -= 1
            available -= 1
        available, used = 2 * used, 0
        level += 1


@jit
def _lengthen(depth: NDArray[np.int64], n: int, room: int) -> None:
    """Make codes longer, rare ones first, until `room`, below 0, is none; then shorter again where that left some."""
    i = 0
    while room < 0:
        if depth[i] < MOST_BITS:
            depth[i] += 1
            room += np.int64(1) << (MOST_BITS - depth[i])
        else:
            i += 1
    for i in range(n - 1, -1, -1):
        while room > 0 and depth[i] > 1 and (np.int64(1) << (MOST_BITS - depth[i])) <= room:
            room -= np.int64(1) << (MOST_BITS - depth[i])
            depth[i] -= 1


@jit
def assign_codes(lengths: NDArray[np.int64], longest: int, codes: NDArray[np.uint64]) -> None:
    """Fill `codes` [byte value]: the code in the highest bits, its length in the lowest.

    The longest codes come first, those of a length by value.
    """
    per_length = np.zeros(MOST_BITS + 2, np.int64)
    for value in range(N_BYTES):
        per_length[lengths[value]] += 1
    following = np.zeros(MOST_BITS + 2, np.int64)
    first = np.int64(0)
    for length in range(longest, 0, -1):
        following[length] = first
        first = (first + per_length[length]) >> 1
    for value in range(N_BYTES):
        length = lengths[value]
        codes[value] = 0
        if length:
            codes[value] = (np.uint64(following[length]) << np.uint64(64 - length)) | np.uint64(length)
            following[length] += 1


@jit
def describe_lengths(lengths: NDArray[np.int64], longest: int, out: NDArray[np.uint8], at: int) -> int:
    """Where the description of the code ends, which is written to `out` from `at` on; -1 where there is none for it.

    A code's weight is `longest` + 1 less its length; that of the last value that occurs follows from the others.
    """
    last = N_BYTES - 1
    while lengths[last] == 0:
        last -= 1
    weights = np.zeros(N_BYTES, np.int64)
    counts = np.zeros(MOST_BITS + 2, np.int64)
    n_kinds = 0
    for value in range(last):
        weights[value] = longest + 1 - lengths[value] if lengths[value] else 0
        n_kinds += counts[weights[value]] == 0
        counts[weights[value]] += 1
    if n_kinds > 1 and last > 8:
        end = _describe_by_code(weights, last, counts, out, at + 1)
        # Bytes from 128 on say that weights are listed; a list is shorter where there are few.
        if end - at - 1 < min(_MOST_DIRECT, (last + 1) // 2 if last <= _MOST_DIRECT else _MOST_DIRECT):
            out[at] = end - at - 1
            return end
    if last > _MOST_DIRECT:
        return -1
    out[at] = 127 + last
    at += 1
    for value in range(0, last, 2):
        out[at] = np.uint8((weights[value] << 4) | (weights[value + 1] if value + 1 < last else 0))
        at += 1
    return at


@jit
def _describe_by_code(
    weights: NDArray[np.int64], n: int, counts: NDArray[np.int64], out: NDArray[np.uint8], at: int
) -> int:
    """As `describe_lengths`, the weights in a finite-state code: those at even places by one state, at odd ones by another."""
    table = new_table()
    n_symbols = MOST_BITS + 2
    while counts[n_symbols - 1] == 0:
        n_symbols -= 1
    share_states(counts, n_symbols, _WEIGHT_LOG, table.shares)
    build(table, n_symbols, _WEIGHT_LOG)
    at = describe(table.shares, n_symbols, _WEIGHT_LOG, out, at)
    states = np.zeros(2, np.int64)
    states[(n - 1) & 1] = first_state(table, weights[n - 1])
    states[(n - 2) & 1] = first_state(table, weights[n - 2])
    word, n_bits = np.uint64(0), 0
    for i in range(n - 3, -1, -1):
        state = states[i & 1]
        width = (state + table.bits[weights[i]]) >> 16
        word |= np.uint64(state & ((1 << width) - 1)) << np.uint64(n_bits)
        n_bits += width
        states[i & 1] = table.next_states[(state >> width) + table.offset[weights[i]]]
        while n_bits >= 8:
            out[at] = np.uint8(word & np.uint64(255))
            word >>= np.uint64(8)
            n_bits -= 8
            at += 1
    mask = (1 << _WEIGHT_LOG) - 1
    word |= np.uint64(states[1] & mask) << np.uint64(n_bits)
    word |= np.uint64(states[0] & mask) << np.uint64(n_bits + _WEIGHT_LOG)
    n_bits += 2 * _WEIGHT_LOG
    word |= np.uint64(1) << np.uint64(n_bits)  # the end, which the decoder begins at
    n_bits += 1
    while n_bits > 0:
        out[at] = np.uint8(word & np.uint64(255))
        word >>= np.uint64(8)
        n_bits -= 8
        at += 1
    return at


@jit
def write_streams(
    data: NDArray[np.uint8], first: int, n: int, codes: NDArray[np.uint64], out: NDArray[np.uint8], at: int
) -> int:
    """Where the four streams of `data[first : first + n]` end, which are written behind the table of their lengths at `at`.

    A stream is read from its end, so that it is written from its last byte on.
    """
    quarter = (n + 3) // 4
    table_at = at
    at += 6
    for stream in range(4):
        start = first + stream * quarter
        stop = min(start + quarter, first + n)
        end = _write_stream(data, start, stop, codes, out, at)
        if stream < 3:
            size = end - at
            if size > 65_535:
                return -1
            out[table_at + 2 * stream] = size & 255
            out[table_at + 2 * stream + 1] = size >> 8
        at = end
    return at


@jit
def _write_stream(
    data: NDArray[np.uint8], start: int, stop: int, codes: NDArray[np.uint64], out: NDArray[np.uint8], at: int
) -> int:
    word, n_bits, to = np.uint64(0), np.uint64(0), np.uint64(at)
    seven, whole, six, size = np.uint64(7), np.uint64(56), np.uint64(63), np.uint64(64)
    n_fives = np.uint64((stop - start) // 5)
    i = np.uint64(stop)
    for _ in range((stop - start) - 5 * np.int64(n_fives)):
        i -= np.uint64(1)
        code = codes[np.uint64(data[i])]
        word |= (code >> (size - (code & six))) << n_bits
        n_bits += code & six
    store_word(out, to, word)
    to += n_bits >> np.uint64(3)
    word >>= n_bits & whole
    n_bits &= seven
    for _ in range(n_fives):
        i -= np.uint64(5)
        # A code comes in from above and moves the earlier ones down. The lengths in the lowest bits stay below the five codes,
        # which have 55 bits at most; their sum is right in its lowest bits, whatever the codes add to the highest.
        code = codes[np.uint64(data[i + np.uint64(4)])]
        five, total = code, code
        code = codes[np.uint64(data[i + np.uint64(3)])]
        five, total = (five >> (code & six)) | code, total + code
        code = codes[np.uint64(data[i + np.uint64(2)])]
        five, total = (five >> (code & six)) | code, total + code
        code = codes[np.uint64(data[i + np.uint64(1)])]
        five, total = (five >> (code & six)) | code, total + code
        code = codes[np.uint64(data[i])]
        five, total = (five >> (code & six)) | code, total + code
        total &= six
        word |= (five >> (size - total)) << n_bits
        n_bits += total
        store_word(out, to, word)
        to += n_bits >> np.uint64(3)
        word >>= n_bits & whole
        n_bits &= seven
    word |= np.uint64(1) << n_bits
    store_word(out, to, word)
    return int(np.int64(to + np.uint64(1)))
