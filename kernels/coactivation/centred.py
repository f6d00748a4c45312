"""Rows of activations made ready for a product: differences from each row's mean, its sums, its active tokens."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.bits import INFINITIES, widen
from actstore.kernels.coactivation.instructions import WORD, popcount
from actstore.kernels.jit import jit

LANES, STEPS = 16, 16  # a sum is LANES sums side by side, so that it vectorises, STEPS long before they go to memory
ROUND = LANES * STEPS  # rows are padded to a multiple of this many tokens

if TYPE_CHECKING:
    from actstore.kernels.pack.cpu import Matrix

_MAGNITUDE, _INFINITY, _NAN = np.uint32(0x7FFFFFFF), np.uint32(INFINITIES[0]), np.uint32(0x7FC00000)


class Centred(NamedTuple):
    """What `centre` says of each row's values at some tokens."""

    values: NDArray[
        np.float32
    ]  # [row, token], differences from `mean` in units of `unit`; of no use in a row with gaps
    unit: NDArray[
        np.float64
    ]  # [row], a power of two: products of the tiniest and of the hugest values stay in float32's range
    mean: NDArray[np.float64]  # [row], of the finite values, rounded to float32
    n_finite: NDArray[np.int64]  # [row], finite values
    total: NDArray[np.float64]  # [row], sum of `values`: what the rounding of the mean leaves
    squares: NDArray[np.float64]  # [row], sum of the squares of `values`
    active: NDArray[
        np.uint64
    ]  # [row, word], bit t % 64 of word t // 64 says that the value at t is above the threshold
    n_active: NDArray[np.int64]  # [row], tokens above the threshold


@jit
def allocate(n_rows: int, n_tokens: int) -> Centred:
    """Memory for `n_rows` rows at up to `n_tokens` tokens; a row that is never filled is of zeros."""
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
def centre(
    first: int,
    stop: int,
    source: "Matrix",
    tokens: NDArray[np.int64],
    thresholds: NDArray[np.float32],
    rows: Centred,
    shift: int,
) -> None:
    """Fill row `i + shift` of `rows` with row i of the matrix `source` at `tokens` [token], for i from `first` to `stop`.

    thresholds: [row of source]. Values that are not finite count as 0 in a row's products, which then are of no use: such
    pairs are computed by themselves, in `gaps`. Infinity is above every threshold, NaN above none.
    """
    depth = tokens.size
    padded = -(-depth // ROUND) * ROUND
    raw = np.empty(depth, source.flat.dtype)  # [token]
    bits = np.empty(padded, np.uint32)  # [token, padded]
    row, lanes = bits.view(np.float32), np.empty(LANES)  # the same memory as values
    # Mostly all tokens are counted: then the row is read where it lies.
    contiguous = depth > 0 and tokens[depth - 1] - tokens[0] == depth - 1
    for i in range(first, stop):
        source_start, target = i * source.pitch, i + shift
        if contiguous:
            widen(source.flat[source_start + tokens[0] : source_start + tokens[0] + depth], source.format, bits)
        else:
            for t in range(depth):
                raw[t] = source.flat[source_start + tokens[t]]
            widen(raw, source.format, bits)
        bits[depth:] = _NAN  # is not active
        rows.n_active[target] = _find_active(row, thresholds[i], rows.active[target])
        # As zeros, the padding changes neither the largest magnitude nor the sum.
        bits[depth:] = 0
        all_finite = _find_largest(bits) < _INFINITY
        count = depth if all_finite else depth - _clear_gaps(bits)
        total = sum_lanes(row, lanes)
        mean = np.float32(total / max(count, 1))
        unit = _find_unit(_find_largest(bits))
        scale = np.float32(1 / unit)
        values = rows.values[target, :padded]
        _subtract(row, np.float32(mean * scale), scale, values)
        values[depth:] = 0
        rows.unit[target], rows.mean[target], rows.n_finite[target] = unit, mean, count
        # The mean is rounded to float32, so that differences from it are exact to float32; what that leaves is in the total.
        rows.total[target], rows.squares[target] = (
            (total - count * np.float64(mean)) / unit,
            _sum_squares(values, lanes),
        )


@jit
def _find_active(row: NDArray[np.float32], threshold: np.float32, active: NDArray[np.uint64]) -> np.uint64:
    """The number of values of `row` [token] above the threshold; fills `active` [word], a bit per token."""
    total = np.uint64(0)
    for w in range(row.size // WORD):
        word = np.uint64(0)
        for b in range(WORD):
            word |= np.uint64(row[w * WORD + b] > threshold) << np.uint64(b)
        active[w] = word
        total += popcount(word)
    return total


@jit
def _find_largest(bits: NDArray[np.uint32]) -> np.uint32:
    """The bits of the largest magnitude, which are ordered as the magnitudes are; NaN is the largest of all."""
    largest = np.uint32(0)
    for t in range(bits.size):
        largest = max(largest, bits[t] & _MAGNITUDE)
    return largest


@jit
def _clear_gaps(bits: NDArray[np.uint32]) -> int:
    """The number of values that are not finite; they become 0."""
    count = 0
    for t in range(bits.size):
        if (bits[t] & _MAGNITUDE) >= _INFINITY:
            bits[t] = 0
            count += 1
    return count


@jit
def _find_unit(largest: np.uint32) -> float:
    """The power of two at or below the magnitude with these bits, within 2^±126 so that its inverse is no subnormal."""
    exponent: Any = np.int64(largest >> np.uint32(23)) - 127
    unit: float = 2.0 ** min(max(exponent, -126), 126)
    return unit


@jit
def sum_lanes(row: NDArray[np.float32], lanes: NDArray[np.float64]) -> np.float64:
    """The sum in float64 of a float32 `row` [token], a multiple of `ROUND` long. lanes: [lane], overwritten.

    Without fast-math no sum is vectorised; LANES sums side by side are, in an order that is the same on every processor.
    """
    rounds = row.reshape(-1, STEPS, LANES)
    lanes[:] = 0
    for r in range(rounds.shape[0]):
        for lane in range(LANES):
            lane_sum = lanes[lane]
            for step in range(STEPS):
                lane_sum += np.float64(rounds[r, step, lane])
            lanes[lane] = lane_sum
    total: np.float64 = lanes.sum()
    return total


@jit
def _subtract(row: NDArray[np.float32], mean: np.float32, scale: np.float32, values: NDArray[np.float32]) -> None:
    """Fill `values` [token] with `row` [token] in units of 1 / `scale`, less `mean`, which is in those units."""
    for t in range(row.size):
        values[t] = np.float32(np.float32(row[t] * scale) - mean)


@jit
def _sum_squares(values: NDArray[np.float32], lanes: NDArray[np.float64]) -> np.float64:
    """The sum in float64 of sums of `STEPS` squares in float32, which are as exact as the products are."""
    rounds = values.reshape(-1, STEPS, LANES)
    lanes[:] = 0
    for r in range(rounds.shape[0]):
        for lane in range(LANES):
            step_sum = np.float32(0)
            for step in range(STEPS):
                value = rounds[r, step, lane]
                step_sum += value * value
            lanes[lane] += np.float64(step_sum)
    total: np.float64 = lanes.sum()
    return total
