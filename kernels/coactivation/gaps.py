"""Pairs of neurons with gaps, values that are not finite: each computed by itself, in float64, from what both have.

Leaving a gap's token out afterwards would not do: where the other neuron is large at just that token, its mean moves far.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.bits import INFINITIES, widen
from actstore.kernels.coactivation.centred import LANES, ROUND, STEPS, sum_lanes
from actstore.kernels.jit import jit
from actstore.kernels.pack.cpu import Matrix

_MAGNITUDE, _INFINITY, _NAN = np.uint32(0x7FFFFFFF), np.uint32(INFINITIES[0]), np.uint32(0x7FC00000)


class Pairs(NamedTuple):
    """The moments of a `Coactivation`, each [chosen, neuron], as compiled code takes them."""

    n_finite: NDArray[np.int64]
    chosen_mean: NDArray[np.float64]
    mean: NDArray[np.float64]
    chosen_m2: NDArray[np.float64]
    m2: NDArray[np.float64]
    comoment: NDArray[np.float64]


class Scratch(NamedTuple):
    """Scratch memory for one pair."""

    bits: NDArray[np.uint32]  # [2, token], each neuron's values where both are finite
    common: NDArray[np.float32]  # [token], 1 there and 0 elsewhere
    values: NDArray[np.float64]  # [2, token], each neuron's differences from its mean there
    lanes: NDArray[np.float64]  # [lane], partial sums


@jit
def compare_anew(
    first: int,
    stop: int,
    chosen: Matrix,
    chosen_finite: NDArray[np.int64],
    values: Matrix,
    finite: NDArray[np.int64],
    tokens: NDArray[np.int64],
    moments: Pairs,
) -> None:
    """Fill the moments of the pairs of which either has fewer finite values than there are tokens.

    chosen_finite: [chosen] and finite: [neuron], the number of each one's finite values at `tokens` [token]. moments: each
    [chosen, neuron]. Over no common token they are 0.
    """
    padded = -(-tokens.size // ROUND) * ROUND
    x, y = (
        np.full(padded, _NAN, np.uint32),
        np.full(padded, _NAN, np.uint32),
    )  # [token, padded]; padding is NaN and enters nothing
    scratch = Scratch(
        np.empty((2, padded), np.uint32), np.empty(padded, np.float32), np.empty((2, padded)), np.empty(LANES)
    )  # fmt: skip
    for neuron in range(first, stop):
        _read(values, neuron, tokens, y)
        for c in range(chosen_finite.size):
            if min(chosen_finite[c], finite[neuron]) < tokens.size:
                # Read again for every pair: pairs with gaps are few, and all chosen rows in float32 would be many.
                _read(chosen, c, tokens, x)
                _compare(x, y, scratch, c, neuron, moments)


@jit
def _read(source: Matrix, row: int, tokens: NDArray[np.int64], bits: NDArray[np.uint32]) -> None:
    """Fill `bits` [token, padded] with the float32 bits of a row at `tokens`; the padding stays as it is."""
    raw = np.empty(tokens.size, source.flat.dtype)
    start = row * source.pitch
    for t in range(tokens.size):
        raw[t] = source.flat[start + tokens[t]]
    widen(raw, source.format, bits)


@jit
def _compare(
    x: NDArray[np.uint32], y: NDArray[np.uint32], scratch: Scratch, c: int, neuron: int, moments: Pairs
) -> None:
    """Fill the moments of one pair, whose float32 bits are `x` and `y` [token, padded]."""
    count = _find_common(x, y, scratch)
    chosen, values = scratch.values[0], scratch.values[1]
    moments.n_finite[c, neuron] = count
    moments.chosen_mean[c, neuron] = _subtract_mean(scratch.bits[0].view(np.float32), count, scratch, chosen)
    moments.mean[c, neuron] = _subtract_mean(scratch.bits[1].view(np.float32), count, scratch, values)
    moments.chosen_m2[c, neuron] = _multiply(chosen, chosen, scratch.lanes)
    moments.m2[c, neuron] = _multiply(values, values, scratch.lanes)
    moments.comoment[c, neuron] = _multiply(chosen, values, scratch.lanes)


@jit
def _find_common(x: NDArray[np.uint32], y: NDArray[np.uint32], scratch: Scratch) -> int:
    """The number of tokens at which both are finite; fills the scratch memory's bits and flags, with 0 elsewhere."""
    a, b, common, count = scratch.bits[0], scratch.bits[1], scratch.common, np.int32(0)
    for t in range(x.size):
        both_finite = max(x[t] & _MAGNITUDE, y[t] & _MAGNITUDE) < _INFINITY
        a[t] = x[t] if both_finite else np.uint32(0)
        b[t] = y[t] if both_finite else np.uint32(0)
        common[t] = np.float32(1) if both_finite else np.float32(0)
        count += np.int32(both_finite)
    return int(count)


@jit
def _subtract_mean(row: NDArray[np.float32], count: int, scratch: Scratch, values: NDArray[np.float64]) -> np.float64:
    """The mean over the common tokens, exact where all their values are equal; fills `values` with the differences."""
    mean: np.float64 = sum_lanes(row, scratch.lanes) / max(count, 1)
    common = scratch.common
    for t in range(row.size):
        # Where either has no value the difference is 0, whatever the mean.
        values[t] = (np.float64(row[t]) - mean) * np.float64(common[t])
    return mean


@jit
def _multiply(x: NDArray[np.float64], y: NDArray[np.float64], lanes: NDArray[np.float64]) -> np.float64:
    """The inner product of `x` and `y` [token, padded]; in the order of `sum_lanes`."""
    x_rounds, y_rounds = x.reshape(-1, STEPS, LANES), y.reshape(-1, STEPS, LANES)
    lanes[:] = 0
    for r in range(x_rounds.shape[0]):
        for lane in range(LANES):
            lane_sum = lanes[lane]
            for step in range(STEPS):
                lane_sum += x_rounds[r, step, lane] * y_rounds[r, step, lane]
            lanes[lane] = lane_sum
    total: np.float64 = lanes.sum()
    return total
