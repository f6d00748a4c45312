"""The statistics of one tile of activations, compiled: what `pack` gathers while a tile is in cache.

A tile is [token, neuron], so that 16 neurons advance in one vector instruction, each adding its own tokens in their
order: results depend neither on the width of the machine's vectors nor on how tiles are spread over threads. Indices
are two-dimensional because numba checks a computed flat index for being negative, and the check keeps the loop from
vectorising. Knows nothing about blocks or formats.
"""

from typing import Any, NamedTuple

import numpy as np

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


class Tally(NamedTuple):
    """The arrays of `Statistics`, as compiled code takes them."""

    count: Any
    mean: Any
    m2: Any
    minimum: Any
    maximum: Any
    non_finite: Any
    overflow: Any
    histogram: Any
    positives: Any
    exemplar_values: Any
    exemplar_tokens: Any


class Running(NamedTuple):
    """What is known of a tile's neurons since their first token of this batch."""

    anchored: Any  # [neuron] whether a finite value was seen
    anchor: Any  # [neuron] float64, the first finite value; sums are of differences from it
    total: Any  # [neuron] float64
    squares: Any  # [neuron] float64
    minimum: Any  # [neuron] float32
    maximum: Any  # [neuron] float32
    histogram: Any  # [bin, neuron] uint32
    best: Any  # [neuron] float32, the largest value of the segment
    token: Any  # [neuron] int32, the first token of this batch that attains it
    above: Any  # [neuron] int32, values above zero in the segment
    overflow: Any  # [neuron] int32, finite values that the block holds as infinite


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
def count_overflow(bits: Any, depth: int, target: int, running: Running) -> None:
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
def classify(bits: Any, counted: Any, codes: Any) -> None:
    """Fill `codes` with the place of every value in a histogram [bin, neuron]; make NaN of what enters no statistic.

    bits: [token, neuron] float32 bits. counted: [token].
    """
    for t in range(counted.size):
        if counted[t]:
            for n in range(WIDTH):
                value = bits[t, n]
                magnitude = np.uint32(value & np.uint32(0x7FFFFFFF))
                step = np.int32(np.int32(magnitude >> np.uint32(22)) - _BELOW_FIRST)
                step = np.int32(min(max(step, np.int32(0)), _MIDDLE))
                step = np.int32(-step) if value >> np.uint32(31) else step
                step = step if magnitude < _INFINITY else np.int32(NON_FINITE - _MIDDLE)
                codes[t, n] = np.uint16(np.int32(np.int32(step + _MIDDLE) * np.int32(WIDTH)) + np.int32(n))
                bits[t, n] = value if magnitude < _INFINITY else _NAN
        else:
            for n in range(WIDTH):
                codes[t, n] = np.uint16(NOT_COUNTED * WIDTH + n)
                bits[t, n] = _NAN


@jit
def count_bins(codes: Any, depth: int, running: Running) -> None:
    """Add a tile's codes to the histogram; neighbours belong to different neurons, so no addition waits for another."""
    histogram = running.histogram.reshape(-1)
    for t in range(depth):
        for n in range(WIDTH):
            histogram[codes[t, n]] += np.uint32(1)


@jit
def add_moments(tile: Any, depth: int, running: Running) -> None:
    """Add a tile's values to the sums and the minimum.

    Sums are in float64 of the differences from one of the neuron's own values: then `squares - total² / n` loses at
    most a factor n of the precision, whatever the mean.
    """
    _find_anchors(tile, depth, running)
    anchor, total, squares, minimum = running.anchor, running.total, running.squares, running.minimum
    whole = depth // STEP * STEP
    for t in range(0, whole, STEP):
        for n in range(WIDTH):
            sum_1, sum_2 = total[n], squares[n]
            for j in range(STEP):
                difference = _difference(tile[t + j, n], anchor[n])
                sum_1 += difference
                sum_2 += difference * difference
            total[n], squares[n] = sum_1, sum_2
    for t in range(whole, depth):
        for n in range(WIDTH):
            difference = _difference(tile[t, n], anchor[n])
            total[n] += difference
            squares[n] += difference * difference
    for t in range(depth):
        for n in range(WIDTH):
            minimum[n] = tile[t, n] if tile[t, n] < minimum[n] else minimum[n]


@jit
def _find_anchors(tile: Any, depth: int, running: Running) -> None:
    for n in range(WIDTH):
        if not running.anchored[n]:
            for t in range(depth):
                if not np.isnan(tile[t, n]):
                    running.anchor[n] = tile[t, n]
                    running.anchored[n] = True
                    break


@jit
def _difference(value: Any, anchor: Any) -> Any:
    return np.float64(value) - anchor if value == value else 0.0


@jit
def add_segment(tile: Any, first: int, stop: int, token: int, running: Running) -> None:
    """Follow the largest value and the count above zero through tokens `first:stop` of a tile that is at `token`."""
    best, best_token, above = running.best, running.token, running.above
    whole = first + (stop - first) // STEP * STEP
    for t in range(first, whole, STEP):
        for n in range(WIDTH):
            value, place, count = best[n], best_token[n], above[n]
            for j in range(STEP):
                value, place, count = _follow(tile[t + j, n], token + t + j, value, place, count)
            best[n], best_token[n], above[n] = value, place, count
    for t in range(whole, stop):
        for n in range(WIDTH):
            best[n], best_token[n], above[n] = _follow(tile[t, n], token + t, best[n], best_token[n], above[n])


@jit
def _follow(value: Any, token: int, best: Any, best_token: Any, above: Any) -> Any:
    wins = value > best
    return value if wins else best, np.int32(token) if wins else best_token, np.int32(above + np.int32(value > 0))


@jit
def close_segment(running: Running, width: int, neuron: int, tokens: Any, labels: Any, tally: Tally) -> None:
    """Add a segment that has ended to the exemplars and the positives of `width` neurons from `neuron` on.

    tokens: [token] token indices of this batch. labels: [column] of the segment's document.
    """
    for n in range(width):
        if running.best[n] > -np.inf:
            running.maximum[n] = max(running.maximum[n], running.best[n])
            token = tokens[running.token[n]]
            insert(tally.exemplar_values[neuron + n], tally.exemplar_tokens[neuron + n], running.best[n], token)
    for label in labels:
        if label >= 0:
            for n in range(width):
                tally.positives[label, neuron + n] += running.above[n]
    clear_segment(running)


@jit
def close(running: Running, width: int, neuron: int, tally: Tally) -> None:
    """Merge what ran over a batch into the tally of `width` neurons from `neuron` on, as `Statistics.merge` does."""
    for b in range(N_BINS):
        for n in range(width):
            if running.histogram[b, n]:
                tally.histogram[neuron + n, b] += running.histogram[b, n]
    for n in range(width):
        i = neuron + n
        tally.non_finite[i] += running.histogram[NON_FINITE, n]
        tally.overflow[i] += running.overflow[n]
        count = np.int64(0)
        for b in range(N_BINS):
            count += running.histogram[b, n]
        if count == 0:
            continue
        m2 = max(running.squares[n] - running.total[n] * (running.total[n] / count), 0.0)
        difference = running.anchor[n] + running.total[n] / count - tally.mean[i]
        share = count / (tally.count[i] + count)
        tally.m2[i] += m2 + difference * difference * (tally.count[i] * share)
        tally.mean[i] += difference * share
        tally.count[i] += count
        tally.minimum[i] = min(tally.minimum[i], running.minimum[n])
        tally.maximum[i] = max(tally.maximum[i], running.maximum[n])
