"""The statistics of one tile of activations, compiled: what `pack` gathers while a tile is in cache.

A tile is [token, neuron], so that 16 neurons advance in one vector instruction, each adding its own tokens in their
order: results depend neither on the width of the machine's vectors nor on how tiles are spread over threads. Indices
are two-dimensional because numba checks a computed flat index for being negative, and the check keeps the loop from
vectorising.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.bits import OVERFLOWS
from actstore.kernels.jit import jit
from actstore.kernels.pack.statistics import LOWEST_EXPONENT, N_BINS
from actstore.kernels.top_k.cpu import insert

WIDTH = 128  # neurons of a tile: 512 bytes of a row of float32; at 32 neurons, loading takes three times as long
DEPTH = 64  # tokens of a tile: with WIDTH, 32 KiB of float32
STEP = 8  # tokens that a running sum stays in registers for
NON_FINITE, NOT_COUNTED = N_BINS, N_BINS + 1  # two bins more, so that counting needs no condition

_NAN = np.uint32(0x7FC00000)
_INFINITY = np.uint32(0x7F800000)
_BELOW_FIRST = np.int32((127 + LOWEST_EXPONENT) * 2 - 1)  # exponent and first mantissa bit just below the first bin's
_MIDDLE = np.int32(N_BINS // 2)


class StatisticsArrays(NamedTuple):
    """The arrays of `Statistics`, as compiled code takes them."""

    count: NDArray[np.int64]  # type: ignore[assignment]  # [neuron]; of no use in a tuple of arrays
    mean: NDArray[np.float64]  # [neuron]
    m2: NDArray[np.float64]  # [neuron]
    minimum: NDArray[np.float32]  # [neuron]
    maximum: NDArray[np.float32]  # [neuron]
    non_finite: NDArray[np.int64]  # [neuron]
    overflow: NDArray[np.int64]  # [neuron]
    histogram: NDArray[np.int64]  # [neuron, bin]
    positives: NDArray[np.int64]  # [label, neuron]
    exemplar_values: NDArray[np.float32]  # [neuron, k]
    exemplar_tokens: NDArray[np.int64]  # [neuron, k]


class Running(NamedTuple):
    """What is known of a tile's neurons since their first token of this batch."""

    anchored: NDArray[np.bool_]  # [neuron] whether a finite value was seen
    anchor: NDArray[np.float64]  # [neuron] the first finite value; sums are of differences from it
    total: NDArray[np.float64]  # [neuron] sum of the differences
    squares: NDArray[np.float64]  # [neuron] sum of their squares
    minimum: NDArray[np.float32]  # [neuron]
    maximum: NDArray[np.float32]  # [neuron]
    histogram: NDArray[np.uint32]  # [bin, neuron]; bins outermost, so that 16 neurons' bins are side by side
    best: NDArray[np.float32]  # [neuron] the largest value of the segment
    token: NDArray[np.int32]  # [neuron] the first token of this batch that attains it
    above: NDArray[np.int32]  # [neuron] values above zero in the segment
    overflow: NDArray[np.int32]  # [neuron] finite values that the block holds as infinite


@jit
def start() -> Running:
    """A `Running` to be cleared before use."""
    return Running(
        np.empty(WIDTH, np.bool_),
        np.empty(WIDTH, np.float64),
        np.empty(WIDTH, np.float64),
        np.empty(WIDTH, np.float64),
        np.empty(WIDTH, np.float32),
        np.empty(WIDTH, np.float32),
        np.empty((N_BINS + 2, WIDTH), np.uint32),
        np.empty(WIDTH, np.float32),
        np.empty(WIDTH, np.int32),
        np.empty(WIDTH, np.int32),
        np.empty(WIDTH, np.int32),
    )


@jit
def clear(running: Running) -> None:
    """Forget everything: the next tile is of other neurons."""
    running.anchored[:] = False
    running.anchor[:] = 0
    running.total[:] = 0
    running.squares[:] = 0
    running.minimum[:] = np.inf
    running.maximum[:] = -np.inf
    running.histogram[:] = 0
    running.overflow[:] = 0
    clear_segment(running)


@jit
def clear_segment(running: Running) -> None:
    """Forget the segment."""
    running.best[:] = -np.inf
    running.token[:] = 0
    running.above[:] = 0


@jit
def count_overflow(bits: NDArray[np.uint32], depth: int, target: int, running: Running) -> None:
    """Count the finite values of a tile's first `depth` tokens that the format `target` holds as infinite.

    bits: [token, neuron] float32 bits, before `classify`: tokens that enter no other statistic are stored all the same.
    """
    limit = np.uint32(OVERFLOWS[target])
    overflow = running.overflow
    for t in range(depth):
        for n in range(WIDTH):
            magnitude = np.uint32(bits[t, n] & np.uint32(0x7FFFFFFF))
            # Below the limit the difference wraps around: one comparison for both bounds.
            overflow[n] += np.int32(np.uint32(magnitude - limit) < np.uint32(_INFINITY - limit))


@jit
def classify(bits: NDArray[np.uint32], counted: NDArray[np.bool_], codes: NDArray[np.uint16]) -> None:
    """Fill `codes` with the place of every value in a histogram [bin, neuron]; make NaN of what enters no statistic.

    bits: [token, neuron] float32 bits. counted: [token].
    """
    for t in range(counted.size):
        if counted[t]:
            for n in range(WIDTH):
                value = bits[t, n]
                magnitude = np.uint32(value & np.uint32(0x7FFFFFFF))
                # Exponent and first mantissa bit name the bin, counted from the middle: 0 below the first edge.
                step = np.int32(np.int32(magnitude >> np.uint32(22)) - _BELOW_FIRST)
                step = np.int32(min(max(step, np.int32(0)), _MIDDLE))
                step = np.int32(-step) if value >> np.uint32(31) else step
                # The bin after the last is for what is not finite.
                step = step if magnitude < _INFINITY else np.int32(NON_FINITE - _MIDDLE)
                codes[t, n] = np.uint16(np.int32(np.int32(step + _MIDDLE) * np.int32(WIDTH)) + np.int32(n))
                bits[t, n] = value if magnitude < _INFINITY else _NAN
        else:
            for n in range(WIDTH):
                codes[t, n] = np.uint16(NOT_COUNTED * WIDTH + n)
                bits[t, n] = _NAN


@jit
def count_bins(codes: NDArray[np.uint16], depth: int, running: Running) -> None:
    """Add a tile's codes to the histogram; neighbours belong to different neurons, so no addition waits for another."""
    histogram = running.histogram.reshape(-1)
    for t in range(depth):
        for n in range(WIDTH):
            histogram[codes[t, n]] += np.uint32(1)


@jit
def add_moments(tile: NDArray[np.float32], depth: int, running: Running) -> None:
    """Add the values of the first `depth` tokens of a `tile` [token, neuron] to the sums and the minimum; NaN enters none.

    Sums are in float64 of the differences from one of the neuron's own values: then `squares - total² / n` loses at
    most a factor n of the precision, whatever the mean.
    """
    _find_anchors(tile, depth, running)
    anchor, total, squares, minimum = running.anchor, running.total, running.squares, running.minimum
    n_whole = depth // STEP * STEP
    for t in range(0, n_whole, STEP):
        for n in range(WIDTH):
            sum_1, sum_2 = total[n], squares[n]
            for j in range(STEP):
                difference = _difference(tile[t + j, n], anchor[n])
                sum_1 += difference
                sum_2 += difference * difference
            total[n], squares[n] = sum_1, sum_2
    for t in range(n_whole, depth):
        for n in range(WIDTH):
            difference = _difference(tile[t, n], anchor[n])
            total[n] += difference
            squares[n] += difference * difference
    for t in range(depth):
        for n in range(WIDTH):
            # Not `min`, which gives NaN where one of them is.
            minimum[n] = tile[t, n] if tile[t, n] < minimum[n] else minimum[n]


@jit
def _find_anchors(tile: NDArray[np.float32], depth: int, running: Running) -> None:
    """Give every neuron that has none its first value of the `tile` [token, neuron] that is not NaN for an anchor."""
    for n in range(WIDTH):
        if not running.anchored[n]:
            for t in range(depth):
                if not np.isnan(tile[t, n]):
                    running.anchor[n] = tile[t, n]
                    running.anchored[n] = True
                    break


@jit
def _difference(value: np.float32, anchor: np.float64) -> np.float64 | float:
    """The value less the anchor, in float64; 0 for NaN, the one value that is not equal to itself."""
    return np.float64(value) - anchor if value == value else 0.0


@jit
def add_segment(tile: NDArray[np.float32], first: int, stop: int, token: int, running: Running) -> None:
    """Follow the largest value and the count above zero through tokens `first:stop` of a tile that is at `token`."""
    best, best_token, above = running.best, running.token, running.above
    whole_stop = first + (stop - first) // STEP * STEP
    for t in range(first, whole_stop, STEP):
        for n in range(WIDTH):
            value, value_token, count = best[n], best_token[n], above[n]
            for j in range(STEP):
                value, value_token, count = _follow(tile[t + j, n], token + t + j, value, value_token, count)
            best[n], best_token[n], above[n] = value, value_token, count
    for t in range(whole_stop, stop):
        for n in range(WIDTH):
            best[n], best_token[n], above[n] = _follow(tile[t, n], token + t, best[n], best_token[n], above[n])


@jit
def _follow(
    value: np.float32, token: int, best: np.float32, best_token: np.int32, above: np.int32
) -> tuple[np.float32, np.int32, np.int32]:
    """The largest value, its token and the count above zero, one value on; the first token wins a tie, NaN nothing."""
    wins = value > best
    return value if wins else best, np.int32(token) if wins else best_token, np.int32(above + np.int32(value > 0))


@jit
def close_segment(
    running: Running,
    width: int,
    neuron: int,
    tokens: NDArray[np.int64],
    labels: NDArray[np.int32],
    arrays: StatisticsArrays,
) -> None:
    """Add a segment that has ended to the exemplars and the positives of `width` neurons from `neuron` on.

    tokens: [token] token indices of this batch. labels: [column] of the segment's document.
    """
    for n in range(width):
        if running.best[n] > -np.inf:
            running.maximum[n] = max(running.maximum[n], running.best[n])
            token = tokens[running.token[n]]
            insert(arrays.exemplar_values[neuron + n], arrays.exemplar_tokens[neuron + n], running.best[n], token)
    for label in labels:
        if label >= 0:
            for n in range(width):
                arrays.positives[label, neuron + n] += running.above[n]
    clear_segment(running)


@jit
def close(running: Running, width: int, neuron: int, arrays: StatisticsArrays) -> None:
    """Merge what ran over a batch into the statistics of `width` neurons from `neuron` on, as `Statistics.merge` does."""
    for b in range(N_BINS):
        for n in range(width):
            if running.histogram[b, n]:
                arrays.histogram[neuron + n, b] += running.histogram[b, n]
    for n in range(width):
        i = neuron + n
        arrays.non_finite[i] += running.histogram[NON_FINITE, n]
        arrays.overflow[i] += running.overflow[n]
        count = np.int64(0)
        for b in range(N_BINS):
            count += running.histogram[b, n]
        if count == 0:
            continue
        # Rounding may leave the spread of a constant neuron a trifle below 0.
        m2 = max(running.squares[n] - running.total[n] * (running.total[n] / count), 0.0)
        difference = running.anchor[n] + running.total[n] / count - arrays.mean[i]
        share = count / (arrays.count[i] + count)
        arrays.m2[i] += m2 + difference * difference * (arrays.count[i] * share)
        arrays.mean[i] += difference * share
        arrays.count[i] += count
        arrays.minimum[i] = min(arrays.minimum[i], running.minimum[n])
        arrays.maximum[i] = max(arrays.maximum[i], running.maximum[n])
