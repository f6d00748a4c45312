"""Coactivation on the CPU, compiled.

Tokens come in spans. A span's values are taken relative to their mean over that very span, so that float32 products
lose nothing to a large mean, and the spans' moments are added in float64. One thread owns a neuron: it makes the values
of a few ready, and compares them with all the chosen ones while they are in cache. Arguments were checked by `api`.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.coactivation.centred import ROUND, Centred, allocate, centre
from actstore.kernels.coactivation.gaps import Pairs, compare_anew
from actstore.kernels.coactivation.instructions import COLUMNS, ROWS, WORD, multiply, popcount
from actstore.kernels.coactivation.state import Coactivation
from actstore.kernels.floats import FloatArray
from actstore.kernels.jit import jit, over_neurons
from actstore.kernels.pack.cpu import Matrix, as_matrix

SPAN = 4096  # tokens of one float32 product: few enough for rows of them to stay in cache
TILE = 48  # neurons made ready together; a multiple of COLUMNS
MAX_PREPARED = 2**24  # values of the chosen neurons that are made ready at once, for all neurons


class Chosen(NamedTuple):
    """The chosen neurons, made ready: row `span * n_padded + c` of `rows` is chosen neuron c in one span."""

    rows: Centred
    n: int
    n_padded: int  # a multiple of ROWS
    steps: NDArray[np.float64]  # [span, chosen], from the mean of the spans before to that of the span


class NeuronSums(NamedTuple):
    """The arrays of a `Coactivation`'s neurons, as compiled code takes them; `finite`, because gaps come later."""

    finite: NDArray[np.int64]  # [neuron], finite values
    mean: NDArray[np.float64]  # [neuron]
    m2: NDArray[np.float64]  # [neuron]
    comoment: NDArray[np.float64]  # [chosen, neuron]
    active: NDArray[np.int64]  # [neuron]
    both_active: NDArray[np.int64]  # [chosen, neuron]


def coactivation(
    chosen: FloatArray, values: FloatArray, tokens: NDArray[np.int64], state: Coactivation, threads: int
) -> Coactivation:
    """`state` and the `chosen` [chosen, token] and `values` [neuron, token] at `tokens` together; see `api`."""
    n_tokens = max(1, MAX_PREPARED // (SPAN * max(len(chosen), 1))) * SPAN
    rows, columns = as_matrix(chosen), as_matrix(values)
    for start in range(0, len(tokens), n_tokens):
        addition = _compare(rows, columns, tokens[start : start + n_tokens], state, threads)
        state = state.merge(addition) if state.count.any() else addition  # to merge with nothing changes no bit
    return state


def _compare(
    chosen: Matrix, values: Matrix, tokens: NDArray[np.int64], state: Coactivation, threads: int
) -> Coactivation:
    """The state over `tokens` alone."""
    (n_chosen, n_neurons), n_tokens = state.comoment.shape, len(tokens)
    prepared_chosen, mean, m2, active, finite = _prepare(chosen, tokens, state.chosen_thresholds, threads)
    sums = NeuronSums(
        np.zeros(n_neurons, np.int64), np.zeros(n_neurons), np.zeros(n_neurons), np.zeros((n_chosen, n_neurons)),
        np.zeros(n_neurons, np.int64), np.zeros((n_chosen, n_neurons), np.int64),
    )  # fmt: skip
    over_neurons(_gather, n_neurons, TILE, threads, values, tokens, state.thresholds, prepared_chosen, sums)
    moments = Pairs(
        np.full((1, 1), n_tokens), mean[:, None], sums.mean[None], m2[:, None], sums.m2[None], sums.comoment
    )
    if min(finite.min(initial=n_tokens), sums.finite.min(initial=n_tokens)) < n_tokens:
        shape = sums.comoment.shape
        moments = Pairs._make(np.array(np.broadcast_to(array, shape)) for array in moments)
        over_neurons(compare_anew, n_neurons, 1, threads, chosen, finite, values, sums.finite, tokens, moments)
    return Coactivation(state.chosen_thresholds, state.thresholds, *moments, active, sums.active, sums.both_active)


def _prepare(
    chosen: Matrix, tokens: NDArray[np.int64], thresholds: NDArray[np.float32], threads: int
) -> tuple[Chosen, NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """The chosen neurons made ready, and their mean, m2, active tokens and finite values, each [chosen]."""
    n, n_spans = len(thresholds), -(-len(tokens) // SPAN)
    n_padded = -(-n // ROWS) * ROWS
    rows = allocate(n_spans * n_padded, min(SPAN, len(tokens)))
    steps, mean, m2 = np.zeros((n_spans, n)), np.zeros(n), np.zeros(n)
    active, finite = np.zeros(n, np.int64), np.zeros(n, np.int64)
    for span in range(n_spans):
        row_range = slice(span * n_padded, span * n_padded + n)
        span_tokens = tokens[span * SPAN : (span + 1) * SPAN]
        over_neurons(centre, n, 1, threads, chosen, span_tokens, thresholds, rows, span * n_padded)
        unit, total, share = (
            rows.unit[row_range],
            rows.total[row_range],
            len(span_tokens) / (span * SPAN + len(span_tokens)),
        )
        # As `_add_moments` does for the other neurons, in the same order.
        steps[span] = rows.mean[row_range] + unit * (total / len(span_tokens)) - mean
        m2 += unit * unit * np.maximum(rows.squares[row_range] - total * (total / len(span_tokens)), 0)
        m2 += steps[span] * steps[span] * (span * SPAN * share)
        mean += steps[span] * share
        active += rows.n_active[row_range]
        finite += rows.n_finite[row_range]
    return Chosen(rows, n, n_padded, steps), mean, m2, active, finite


@jit
def _gather(
    first: int,
    stop: int,
    source: Matrix,
    tokens: NDArray[np.int64],
    thresholds: NDArray[np.float32],
    chosen: Chosen,
    sums: NeuronSums,
) -> None:
    """Add the values of neurons `first:stop` of `source` at `tokens` [token] to `sums`, a tile and a span at a time."""
    rows = allocate(TILE, min(SPAN, tokens.size))
    products, steps = (
        np.empty((chosen.n_padded, TILE), np.float32),
        np.empty(TILE),
    )  # [chosen, neuron of the tile], [neuron of the tile]
    for neuron in range(first, stop, TILE):
        # A tile's spans follow one another: its rows stay in cache while all chosen neurons are compared with them.
        width = min(TILE, stop - neuron)
        for start in range(0, tokens.size, SPAN):
            depth = min(SPAN, tokens.size - start)
            centre(neuron, neuron + width, source, tokens[start : start + depth], thresholds, rows, -neuron)
            _add_moments(rows, neuron, width, start, depth, steps, sums)
            _add_products(rows, steps, neuron, width, start, depth, chosen, products, sums.comoment)
            _add_both_active(rows, neuron, width, start // SPAN, depth, chosen, sums.both_active)


@jit
def _add_moments(
    rows: Centred, neuron: int, width: int, before: int, depth: int, steps: NDArray[np.float64], sums: NeuronSums
) -> None:
    """Add a span of `depth` tokens to the moments over those `before`; fills `steps` [neuron of the tile], as in `Chosen`.

    The update of Chan, Golub and LeVeque (1979), in units: the sums of a row count in its `unit`.
    """
    share = depth / (before + depth)
    for i in range(width):
        n, unit, total = neuron + i, rows.unit[i], rows.total[i]
        steps[i] = rows.mean[i] + unit * (total / depth) - sums.mean[n]
        # Rounding may leave a constant row a trifle below 0.
        sums.m2[n] += unit * unit * max(rows.squares[i] - total * (total / depth), 0.0)
        sums.m2[n] += steps[i] * steps[i] * (before * share)
        sums.mean[n] += steps[i] * share
        sums.active[n] += rows.n_active[i]
        sums.finite[n] += rows.n_finite[i]


@jit
def _add_products(
    rows: Centred,
    steps: NDArray[np.float64],
    neuron: int,
    width: int,
    before: int,
    depth: int,
    chosen: Chosen,
    products: NDArray[np.float32],
    comoment: NDArray[np.float64],
) -> None:
    """Add a span of `depth` tokens to the comoments [chosen, neuron] over those `before`, for a tile of neurons.

    products: [chosen, neuron of the tile], overwritten; rows of padding are multiplied too, and not read.
    """
    first = before // SPAN * chosen.n_padded
    padded = -(-depth // ROUND) * ROUND
    x, y, out = chosen.rows.values.reshape(-1), rows.values.reshape(-1), products.reshape(-1)
    x_pitch, y_pitch = chosen.rows.values.shape[1], rows.values.shape[1]
    for c in range(0, chosen.n, ROWS):
        for i in range(0, width, COLUMNS):
            multiply(x, (first + c) * x_pitch, x_pitch, y, i * y_pitch, y_pitch, padded, out, c * TILE + i, TILE)
    weight = before * (depth / (before + depth))
    total, units = rows.total, rows.unit
    for c in range(chosen.n):
        unit, mean_rest = chosen.rows.unit[first + c], chosen.rows.total[first + c] / depth
        step = chosen.steps[before // SPAN, c] * weight
        product, targets = products[c], comoment[c, neuron : neuron + width]
        for i in range(targets.size):
            # Less what rounding the means has left, and plus the distance of the span's means from those before.
            targets[i] += (product[i] - mean_rest * total[i]) * (unit * units[i]) + step * steps[i]


@jit
def _add_both_active(
    rows: Centred, neuron: int, width: int, span: int, depth: int, chosen: Chosen, both: NDArray[np.int64]
) -> None:
    """Add the tokens of a span at which both neurons are active to `both` [chosen, neuron], for a tile of neurons."""
    n_words = -(-depth // WORD)
    for c in range(chosen.n):
        words = chosen.rows.active[span * chosen.n_padded + c]
        for i in range(width):
            total = np.uint64(0)
            for w in range(n_words):
                total += popcount(words[w] & rows.active[i, w])
            both[c, neuron + i] += np.int64(total)
