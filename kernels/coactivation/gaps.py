"""Pairs of neurons with gaps, values that are not finite: each computed by itself, in float64, from what both have.

Leaving a gap's token out afterwards would not do: where the other neuron is large at just that token, its mean moves far.
"""

from typing import Any, NamedTuple

import numpy as np

from actstore.kernels.bits import INFINITIES, widen
from actstore.kernels.coactivation.centred import LANES, ROUND, STEPS, sum_lanes
from actstore.kernels.jit import jit
from actstore.kernels.pack.cpu import Matrix

_MAGNITUDE, _INFINITY, _NAN = np.uint32(0x7FFFFFFF), np.uint32(INFINITIES[0]), np.uint32(0x7FC00000)


class Pairs(NamedTuple):
    """The moments of a `Coactivation`, each [chosen, neuron], as compiled code takes them."""

    count: Any
    chosen_mean: Any
    mean: Any
    chosen_m2: Any
    m2: Any
    comoment: Any


class Room(NamedTuple):
    """Scratch memory for one pair."""

    bits: Any  # [2, token] uint32, each neuron's values where both are finite
    kept: Any  # [token] float32, 1 there and 0 elsewhere
    values: Any  # [2, token] float64, each neuron's differences from its mean there
    lanes: Any  # [lane] float64


@jit
def compare_anew(
    first: int, stop: int, chosen: Matrix, chosen_finite: Any, values: Matrix, finite: Any, tokens: Any, moments: Pairs
) -> None:
    """Fill the moments of the pairs of which either has fewer finite values than there are tokens.

    chosen_finite: [chosen] and finite: [neuron], the number of each one's finite values at `tokens`.
    """
    padded = -(-tokens.size // ROUND) * ROUND
    x, y = np.full(padded, _NAN, np.uint32), np.full(padded, _NAN, np.uint32)
    room = Room(
        np.empty((2, padded), np.uint32), np.empty(padded, np.float32), np.empty((2, padded)), np.empty(LANES)
    )  # fmt: skip
    for neuron in range(first, stop):
        _read(values, neuron, tokens, y)
        for c in range(chosen_finite.size):
            if min(chosen_finite[c], finite[neuron]) < tokens.size:
                _read(chosen, c, tokens, x)
                _compare(x, y, room, c, neuron, moments)


@jit
def _read(source: Matrix, row: int, tokens: Any, into: Any) -> None:
    raw = np.empty(tokens.size, source.flat.dtype)
    start = row * source.pitch
    for t in range(tokens.size):
        raw[t] = source.flat[start + tokens[t]]
    widen(raw, source.format, into)


@jit
def _compare(x: Any, y: Any, room: Room, c: int, neuron: int, moments: Pairs) -> None:
    count = _keep_common(x, y, room)
    chosen, values = room.values[0], room.values[1]
    moments.count[c, neuron] = count
    moments.chosen_mean[c, neuron] = _subtract_mean(room.bits[0].view(np.float32), count, room, chosen)
    moments.mean[c, neuron] = _subtract_mean(room.bits[1].view(np.float32), count, room, values)
    moments.chosen_m2[c, neuron] = _multiply(chosen, chosen, room.lanes)
    moments.m2[c, neuron] = _multiply(values, values, room.lanes)
    moments.comoment[c, neuron] = _multiply(chosen, values, room.lanes)


@jit
def _keep_common(x: Any, y: Any, room: Room) -> Any:
    """The number of tokens at which both are finite; fills the room's bits and flags, with 0 elsewhere."""
    a, b, kept, count = room.bits[0], room.bits[1], room.kept, np.int32(0)
    for t in range(x.size):
        both = max(x[t] & _MAGNITUDE, y[t] & _MAGNITUDE) < _INFINITY
        a[t] = x[t] if both else np.uint32(0)
        b[t] = y[t] if both else np.uint32(0)
        kept[t] = np.float32(1) if both else np.float32(0)
        count += np.int32(both)
    return count


@jit
def _subtract_mean(row: Any, count: int, room: Room, values: Any) -> Any:
    """The mean over the kept tokens, exact where all their values are equal; fills `values` with the differences."""
    mean = sum_lanes(row, room.lanes) / max(count, 1)
    kept = room.kept
    for t in range(row.size):
        values[t] = (np.float64(row[t]) - mean) * np.float64(kept[t])
    return mean


@jit
def _multiply(x: Any, y: Any, lanes: Any) -> Any:
    x_rounds, y_rounds = x.reshape(-1, STEPS, LANES), y.reshape(-1, STEPS, LANES)
    lanes[:] = 0
    for r in range(x_rounds.shape[0]):
        for lane in range(LANES):
            part = lanes[lane]
            for step in range(STEPS):
                part += x_rounds[r, step, lane] * y_rounds[r, step, lane]
            lanes[lane] = part
    return lanes.sum()
