"""Rows of activations made ready for a product: differences from each row's mean, its sums, its active tokens."""

from typing import Any, NamedTuple

import numpy as np

from actstore.kernels.bits import INFINITIES, widen
from actstore.kernels.coactivation.instructions import WORD, popcount
from actstore.kernels.jit import jit

LANES, STEPS = 16, 16  # a sum is LANES sums side by side, so that it vectorises, STEPS long before they go to memory
ROUND = LANES * STEPS  # rows are padded to a multiple of this many tokens

_MAGNITUDE, _INFINITY, _NAN = np.uint32(0x7FFFFFFF), np.uint32(INFINITIES[0]), np.uint32(0x7FC00000)


class Centred(NamedTuple):
    """What `centre` says of each row's values at some tokens."""

    values: Any  # [row, token] float32, differences from `mean` in units of `unit`; of no use in a row with gaps
    unit: Any  # [row] float64, a power of two: products of the tiniest and of the hugest values stay in float32's range
    mean: Any  # [row] float64, of the finite values, rounded to float32
    count: Any  # [row] int64, finite values
    total: Any  # [row] float64, sum of `values`: what the rounding of the mean leaves
    squares: Any  # [row] float64, sum of the squares of `values`
    active: Any  # [row, word] uint64, bit t % 64 of word t // 64 says that the value at t is above the threshold
    n_active: Any  # [row] int64


@jit
def make_room(n_rows: int, n_tokens: int) -> Centred:
    """Room for `n_rows` rows at up to `n_tokens` tokens; a row that is never filled is of zeros."""
    padded = -(-n_tokens // ROUND) * ROUND
    return Centred(
        np.zeros((n_rows, padded), np.float32),
        np.ones(n_rows),
        np.zeros(n_rows),
        np.zeros(n_rows, np.int64),
        np.zeros(n_rows),
        np.zeros(n_rows),
        np.zeros((n_rows, padded // WORD), np.uint64),
        np.zeros(n_rows, np.int64),
    )


@jit
def centre(first: int, stop: int, source: Any, tokens: Any, thresholds: Any, into: Centred, shift: int) -> None:
    """Fill row `i + shift` of `into` with row i of a matrix at `tokens`, for rows `first:stop`."""
    depth = tokens.size
    padded = -(-depth // ROUND) * ROUND
    raw = np.empty(depth, source.flat.dtype)
    bits = np.empty(padded, np.uint32)
    row, lanes = bits.view(np.float32), np.empty(LANES)
    contiguous = depth > 0 and tokens[depth - 1] - tokens[0] == depth - 1
    for i in range(first, stop):
        at, to = i * source.pitch, i + shift
        if contiguous:
            widen(source.flat[at + tokens[0] : at + tokens[0] + depth], source.format, bits)
        else:
            for t in range(depth):
                raw[t] = source.flat[at + tokens[t]]
            widen(raw, source.format, bits)
        bits[depth:] = _NAN  # is not active
        into.n_active[to] = _find_active(row, thresholds[i], into.active[to])
        bits[depth:] = 0
        whole = _find_largest(bits) < _INFINITY
        count = depth if whole else depth - _clear_gaps(bits)
        total = sum_lanes(row, lanes)
        mean = np.float32(total / max(count, 1))
        unit = _find_unit(_find_largest(bits))
        scale = np.float32(1 / unit)
        values = into.values[to, :padded]
        _subtract(row, np.float32(mean * scale), scale, values)
        values[depth:] = 0
        into.unit[to], into.mean[to], into.count[to] = unit, mean, count
        into.total[to], into.squares[to] = (total - count * np.float64(mean)) / unit, _sum_squares(values, lanes)


@jit
def _find_active(row: Any, threshold: Any, active: Any) -> Any:
    """The number of values above the threshold; fills `active`."""
    total = np.uint64(0)
    for w in range(row.size // WORD):
        word = np.uint64(0)
        for b in range(WORD):
            word |= np.uint64(row[w * WORD + b] > threshold) << np.uint64(b)
        active[w] = word
        total += popcount(word)
    return total


@jit
def _find_largest(bits: Any) -> Any:
    """The bits of the largest magnitude."""
    largest = np.uint32(0)
    for t in range(bits.size):
        largest = max(largest, bits[t] & _MAGNITUDE)
    return largest


@jit
def _clear_gaps(bits: Any) -> int:
    """The number of values that are not finite; they become 0."""
    count = 0
    for t in range(bits.size):
        if (bits[t] & _MAGNITUDE) >= _INFINITY:
            bits[t] = 0
            count += 1
    return count


@jit
def _find_unit(largest: Any) -> Any:
    """The power of two at or below the magnitude with these bits, within 2^±126 so that its inverse is no subnormal."""
    exponent: Any = np.int64(largest >> np.uint32(23)) - 127
    return 2.0 ** min(max(exponent, -126), 126)


@jit
def sum_lanes(row: Any, lanes: Any) -> Any:
    """The sum in float64 of a float32 row, a multiple of `ROUND` long."""
    rounds = row.reshape(-1, STEPS, LANES)
    lanes[:] = 0
    for r in range(rounds.shape[0]):
        for lane in range(LANES):
            part = lanes[lane]
            for step in range(STEPS):
                part += np.float64(rounds[r, step, lane])
            lanes[lane] = part
    return lanes.sum()


@jit
def _subtract(row: Any, mean: Any, scale: Any, values: Any) -> None:
    for t in range(row.size):
        values[t] = np.float32(np.float32(row[t] * scale) - mean)


@jit
def _sum_squares(values: Any, lanes: Any) -> Any:
    """The sum in float64 of sums of `STEPS` squares in float32, which are as exact as the products are."""
    rounds = values.reshape(-1, STEPS, LANES)
    lanes[:] = 0
    for r in range(rounds.shape[0]):
        for lane in range(LANES):
            part = np.float32(0)
            for step in range(STEPS):
                value = rounds[r, step, lane]
                part += value * value
            lanes[lane] += np.float64(part)
    return lanes.sum()
