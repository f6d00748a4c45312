"""Coactivation on the CPU, compiled.

Tokens come in spans. A span's values are taken relative to their mean over that very span, so that float32 products
lose nothing to a large mean, and the spans' moments are added in float64. One thread owns a neuron: it makes the values
of a few ready, and compares them with all the chosen ones while they are in cache. Arguments were checked by `api`.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.coactivation.centred import ROUND, Centred, centre, make_room
from actstore.kernels.coactivation.gaps import Pairs, compare_anew
from actstore.kernels.coactivation.instructions import COLUMNS, ROWS, WORD, multiply, popcount
from actstore.kernels.coactivation.state import Coactivation
from actstore.kernels.jit import jit, over_neurons
from actstore.kernels.pack.cpu import Matrix, as_matrix

SPAN = 4096  # tokens of one float32 product: few enough for rows of them to stay in cache
TILE = 48  # neurons made ready together; a multiple of COLUMNS
HELD = 2**24  # values of the chosen neurons that are made ready at once, for all neurons


class Chosen(NamedTuple):
    """The chosen neurons, made ready: row `span * n_padded + c` of `rows` is chosen neuron c in one span."""

    rows: Centred
    n: int
    n_padded: int  # a multiple of ROWS
    steps: Any  # [span, chosen] float64, from the mean of the spans before to that of the span


class Part(NamedTuple):
    """The arrays of a `Coactivation`'s neurons, as compiled code takes them; `finite`, because gaps come later."""

    finite: Any  # [neuron] int64, finite values
    mean: Any  # [neuron] float64
    m2: Any  # [neuron] float64
    comoment: Any  # [chosen, neuron] float64
    active: Any  # [neuron] int64
    both_active: Any  # [chosen, neuron] int64


def coactivation(
    chosen: NDArray[Any], values: NDArray[Any], tokens: NDArray[np.int64], state: Coactivation, threads: int
) -> Coactivation:
    """`state` and the `chosen` [chosen, token] and `values` [neuron, token] at `tokens` together; see `api`."""
    stretch = max(1, HELD // (SPAN * max(len(chosen), 1))) * SPAN
    rows, columns = as_matrix(chosen), as_matrix(values)
    for start in range(0, len(tokens), stretch):
        part = _compare(rows, columns, tokens[start : start + stretch], state, threads)
        state = state.merge(part) if state.count.any() else part  # to merge with nothing changes no bit
    return state


def _compare(
    chosen: Matrix, values: Matrix, tokens: NDArray[np.int64], state: Coactivation, threads: int
) -> Coactivation:
    """The state over `tokens` alone."""
    (n_chosen, n_neurons), n_tokens = state.comoment.shape, len(tokens)
    ready, mean, m2, active, finite = _make_ready(chosen, tokens, state.chosen_thresholds, threads)
    part = Part(
        np.zeros(n_neurons, np.int64), np.zeros(n_neurons), np.zeros(n_neurons), np.zeros((n_chosen, n_neurons)),
        np.zeros(n_neurons, np.int64), np.zeros((n_chosen, n_neurons), np.int64),
    )  # fmt: skip
    over_neurons(_gather, n_neurons, TILE, threads, values, tokens, state.thresholds, ready, part)
    moments = Pairs(
        np.full((1, 1), n_tokens), mean[:, None], part.mean[None], m2[:, None], part.m2[None], part.comoment
    )
    if min(finite.min(initial=n_tokens), part.finite.min(initial=n_tokens)) < n_tokens:
        shape = part.comoment.shape
        moments = Pairs(*(np.array(np.broadcast_to(array, shape)) for array in moments))
        over_neurons(compare_anew, n_neurons, 1, threads, chosen, finite, values, part.finite, tokens, moments)
    return Coactivation(state.chosen_thresholds, state.thresholds, *moments, active, part.active, part.both_active)


def _make_ready(chosen: Matrix, tokens: NDArray[np.int64], thresholds: NDArray[np.float32], threads: int) -> Any:
    """The chosen neurons made ready, and their mean, m2, active tokens and finite values, each [chosen]."""
    n, n_spans = len(thresholds), -(-len(tokens) // SPAN)
    n_padded = -(-n // ROWS) * ROWS
    rows = make_room(n_spans * n_padded, min(SPAN, len(tokens)))
    steps, mean, m2 = np.zeros((n_spans, n)), np.zeros(n), np.zeros(n)
    active, finite = np.zeros(n, np.int64), np.zeros(n, np.int64)
    for span in range(n_spans):
        place = slice(span * n_padded, span * n_padded + n)
        at = tokens[span * SPAN : (span + 1) * SPAN]
        over_neurons(centre, n, 1, threads, chosen, at, thresholds, rows, span * n_padded)
        unit, total, share = rows.unit[place], rows.total[place], len(at) / (span * SPAN + len(at))
        steps[span] = rows.mean[place] + unit * (total / len(at)) - mean
        m2 += unit * unit * np.maximum(rows.squares[place] - total * (total / len(at)), 0)
        m2 += steps[span] * steps[span] * (span * SPAN * share)
        mean += steps[span] * share
        active += rows.n_active[place]
        finite += rows.count[place]
    return Chosen(rows, n, n_padded, steps), mean, m2, active, finite


@jit
def _gather(first: int, stop: int, source: Matrix, tokens: Any, thresholds: Any, chosen: Chosen, part: Part) -> None:
    room = make_room(TILE, min(SPAN, tokens.size))
    products, steps = np.empty((chosen.n_padded, TILE), np.float32), np.empty(TILE)
    for neuron in range(first, stop, TILE):
        width = min(TILE, stop - neuron)
        for start in range(0, tokens.size, SPAN):
            depth = min(SPAN, tokens.size - start)
            centre(neuron, neuron + width, source, tokens[start : start + depth], thresholds, room, -neuron)
            _add_moments(room, neuron, width, start, depth, steps, part)
            _add_products(room, steps, neuron, width, start, depth, chosen, products, part.comoment)
            _add_both_active(room, neuron, width, start // SPAN, depth, chosen, part.both_active)


@jit
def _add_moments(room: Centred, neuron: int, width: int, before: int, depth: int, steps: Any, part: Part) -> None:
    """Add a span of `depth` tokens to the moments over those `before`; fills `steps`, as in `Chosen`."""
    share = depth / (before + depth)
    for i in range(width):
        n, unit, total = neuron + i, room.unit[i], room.total[i]
        steps[i] = room.mean[i] + unit * (total / depth) - part.mean[n]
        part.m2[n] += unit * unit * max(room.squares[i] - total * (total / depth), 0.0)
        part.m2[n] += steps[i] * steps[i] * (before * share)
        part.mean[n] += steps[i] * share
        part.active[n] += room.n_active[i]
        part.finite[n] += room.count[i]


@jit
def _add_products(
    room: Centred, steps: Any, neuron: int, width: int, before: int, depth: int, chosen: Chosen, products: Any,
    comoment: Any,
) -> None:  # fmt: skip
    first = before // SPAN * chosen.n_padded
    padded = -(-depth // ROUND) * ROUND
    x, y, out = chosen.rows.values.reshape(-1), room.values.reshape(-1), products.reshape(-1)
    x_pitch, y_pitch = chosen.rows.values.shape[1], room.values.shape[1]
    for c in range(0, chosen.n, ROWS):
        for i in range(0, width, COLUMNS):
            multiply(x, (first + c) * x_pitch, x_pitch, y, i * y_pitch, y_pitch, padded, out, c * TILE + i, TILE)
    weight = before * (depth / (before + depth))
    total, units = room.total, room.unit
    for c in range(chosen.n):
        unit, rest = chosen.rows.unit[first + c], chosen.rows.total[first + c] / depth
        step = chosen.steps[before // SPAN, c] * weight
        product, into = products[c], comoment[c, neuron : neuron + width]
        for i in range(into.size):
            into[i] += (product[i] - rest * total[i]) * (unit * units[i]) + step * steps[i]


@jit
def _add_both_active(room: Centred, neuron: int, width: int, span: int, depth: int, chosen: Chosen, both: Any) -> None:
    n_words = -(-depth // WORD)
    for c in range(chosen.n):
        words = chosen.rows.active[span * chosen.n_padded + c]
        for i in range(width):
            total = np.uint64(0)
            for w in range(n_words):
                total += popcount(words[w] & room.active[i, w])
            both[c, neuron + i] += np.int64(total)
