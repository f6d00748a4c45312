"""Contributions on the CPU: the product by BLAS, what follows it compiled. Checks are made by `api`."""

from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from actstore.kernels.bits import BITS_DTYPES, FORMAT_CODES, Bits, widen
from actstore.kernels.contribution.entries import Entries
from actstore.kernels.contribution.products import Factors, Tile, as_tensor, over_tiles, spread
from actstore.kernels.contribution.sums import ContributionSums, TopNeurons
from actstore.kernels.contribution.targets import Targets
from actstore.kernels.floats import FloatArray, as_array
from actstore.kernels.jit import jit
from actstore.kernels.top_k.cpu import insert

TOKENS = 256  # whose scores are in memory for all neurons while their largest are looked for
STRIP, ENTRIES = 64, 512  # neurons and entries that are summed at a time: their activations stay in cache


def contribution(
    activations: FloatArray, write_vectors: FloatArray, targets: Targets, threads: int
) -> NDArray[np.float32]:
    """The scores [neuron, token]; see `api.contribution`."""
    scores = np.empty(activations.shape, np.float32)
    _fill(scores, 0, Activations.of(activations, targets), write_vectors, targets, threads)
    return scores


def top_contribution(
    activations: FloatArray, write_vectors: FloatArray, targets: Targets, k: int, threads: int
) -> TopNeurons:
    """The k neurons with the largest scores at every token; see `api.top_contribution`."""
    n_neurons, n_tokens = activations.shape
    values = Activations.of(activations, targets)
    best = TopNeurons(np.full((n_tokens, k), -np.inf, np.float32), np.full((n_tokens, k), -1, np.int64))
    for token in range(0, n_tokens if k else 0, TOKENS):
        scores = np.empty((n_neurons, min(TOKENS, n_tokens - token)), np.float32)
        _fill(scores, token, values, write_vectors, targets, threads)

        def find(first: int, stop: int, scores: NDArray[np.float32] = scores, token: int = token) -> None:
            _find_largest(first, stop, scores, best.scores[token:], best.neurons[token:])

        spread(find, scores.shape[1], threads)
    return best


def sum_contributions(
    activations: FloatArray,
    write_vectors: FloatArray,
    targets: Targets,
    entries: Entries,
    n_groups: int,
    threads: int,
    *,
    token_major: bool,
) -> ContributionSums:
    """The sums over the tokens of `entries`; see `api.sum_contributions`."""
    values = Activations.of(activations, targets)
    sums = ContributionSums.empty(n_groups, len(write_vectors))
    sums.count[:] = np.bincount(entries.groups, minlength=n_groups)
    add_tile = _add_rows if token_major else _add

    def add(product: NDArray[np.float32], tile: Tile) -> None:
        add_tile(product, tile, entries, values, sums.total, sums.magnitude, sums.non_finite)

    over_tiles(_factors(write_vectors, targets, entries.rows, column_major=True), add, threads)
    return sums


class Activations(NamedTuple):
    """Activations and what multiplies them, as compiled code takes them."""

    bits: Bits
    """[neuron, token], or as a model hands them over [token, neuron]."""
    source: int
    """Their format, one of `bits.FORMAT_CODES`."""
    scale: NDArray[np.float32]
    """[token] by which a token's activations are multiplied."""

    @classmethod
    def of(cls, activations: FloatArray, targets: Targets) -> Self:
        """Activations with the scales of their tokens; a copy where they are not contiguous."""
        source = FORMAT_CODES[activations.dtype]
        scale = np.ones(targets.n_tokens, np.float32) if targets.scale is None else targets.scale
        return cls(np.ascontiguousarray(activations).view(BITS_DTYPES[source]), source, scale)


def _fill(
    scores: NDArray[np.float32],
    first_token: int,
    activations: Activations,
    write_vectors: FloatArray,
    targets: Targets,
    threads: int,
) -> None:
    """Fill `scores` [neuron, token] with those of the tokens from `first_token` on."""
    rows = np.arange(targets.n_tokens) if targets.rows is None else targets.rows

    def weigh(product: NDArray[np.float32], tile: Tile) -> None:
        _weigh(product, tile, activations, first_token, scores)

    tile_rows = rows[first_token : first_token + scores.shape[1]]
    over_tiles(_factors(write_vectors, targets, tile_rows), weigh, threads)


def _factors(
    write_vectors: FloatArray, targets: Targets, rows: NDArray[np.int64], column_major: bool = False
) -> Factors:
    """What `over_tiles` multiplies: the directions of `rows` [column], each of which becomes a column of the product."""
    gain = None if targets.gain is None else as_tensor(targets.gain)
    directions = as_tensor(as_array(targets.directions, "directions"))
    return Factors(as_tensor(write_vectors), directions, torch.from_numpy(rows), gain, column_major)


@jit
def _weigh(
    product: NDArray[np.float32], tile: Tile, activations: Activations, first_token: int, scores: NDArray[np.float32]
) -> None:
    """Fill the `scores` [neuron, token] of a tile; their first column is that of `first_token`.

    product: [neuron of the tile, column of the tile].
    """
    widened = np.empty(tile.n_columns, np.uint32)  # [column of the tile]
    values = widened.view(np.float32)
    token = first_token + tile.column
    scale = activations.scale[token : token + tile.n_columns]
    for i in range(tile.n_neurons):
        widen(activations.bits[tile.neuron + i, token : token + tile.n_columns], activations.source, widened)
        row = scores[tile.neuron + i, tile.column : tile.column + tile.n_columns]  # [column of the tile]
        for j in range(row.size):
            row[j] = values[j] * scale[j] * product[i, j]


@jit
def _find_largest(
    first: int,
    stop: int,
    scores: NDArray[np.float32],
    best_scores: NDArray[np.float32],
    best_neurons: NDArray[np.int64],
) -> None:
    """Insert the `scores` [neuron, token] of tokens `first:stop` into their `best_scores` and `best_neurons` [token, k].

    Neurons ascend, so that one that ties with the last of the k is not inserted; nor is NaN, which is larger than nothing.
    """
    last = best_scores.shape[1] - 1
    least = best_scores[first:stop, last].copy()  # [token]; side by side, so that a row is compared with one stream
    for neuron in range(len(scores)):
        row = scores[neuron, first:stop]
        for t in range(row.size):
            if row[t] > least[t]:
                insert(best_scores[first + t], best_neurons[first + t], row[t], neuron)
                least[t] = best_scores[first + t, last]


@jit
def _add(
    product: NDArray[np.float32],
    tile: Tile,
    entries: Entries,
    activations: Activations,
    total: NDArray[np.float64],
    magnitude: NDArray[np.float64],
    non_finite: NDArray[np.int64],
) -> None:
    """Add the entries whose targets are in a tile to the sums [group, neuron] of its neurons, always in the same order.

    product: [column of the tile, neuron of the tile]. The activations of some entries are brought together, neurons
    side by side: then everything else vectorises. Each sum is added to in the order of targets, groups and tokens,
    whatever the tile.
    """
    first, stop = entries.firsts[tile.column], entries.firsts[tile.column + tile.n_columns]
    raw = np.empty(STRIP * ENTRIES, activations.bits.dtype)  # [entry × neuron], and the next
    widened = np.empty(STRIP * ENTRIES, np.uint32)
    # Entries outermost: a neuron's sums get their entries in order.
    for start in range(first, stop, ENTRIES):
        n_entries = min(ENTRIES, stop - start)
        for strip in range(0, tile.n_neurons, STRIP):
            width = min(STRIP, tile.n_neurons - strip)
            n_values = n_entries * width
            _collect(
                activations.bits, tile.neuron + strip, entries.tokens, start, raw[:n_values].reshape(n_entries, width)
            )
            widen(raw[:n_values], activations.source, widened[:n_values])
            values = widened[:n_values].view(np.float32).reshape(n_entries, width)  # [entry, neuron]
            neurons = slice(tile.neuron + strip, tile.neuron + strip + width)
            _scale(values, start, entries, activations.scale, non_finite[:, neurons])
            for e in range(n_entries):
                group, row = entries.groups[start + e], entries.targets[start + e] - tile.column
                dots = product[row, strip : strip + width]  # [neuron]
                _add_scores(values[e], dots, total[group, neurons], magnitude[group, neurons])


@jit
def _add_rows(
    product: NDArray[np.float32],
    tile: Tile,
    entries: Entries,
    activations: Activations,
    total: NDArray[np.float64],
    magnitude: NDArray[np.float64],
    non_finite: NDArray[np.int64],
) -> None:
    """As `_add`, of activations [token, neuron]: the neurons of an entry lie side by side already. The same bits."""
    neurons = slice(tile.neuron, tile.neuron + tile.n_neurons)
    widened = np.empty((1, tile.n_neurons), np.uint32)
    values = widened.view(np.float32)  # [1, neuron of the tile]
    value = values[0]
    for e in range(entries.firsts[tile.column], entries.firsts[tile.column + tile.n_columns]):
        widen(activations.bits[entries.tokens[e], neurons], activations.source, widened[0])
        _scale(values, e, entries, activations.scale, non_finite[:, neurons])
        group, row = entries.groups[e], entries.targets[e] - tile.column
        _add_scores(value, product[row], total[group, neurons], magnitude[group, neurons])


@jit
def _add_scores(
    values: NDArray[np.float32],
    dots: NDArray[np.float32],
    sums: NDArray[np.float64],
    magnitudes: NDArray[np.float64],
) -> None:
    """Add the products of an entry's activations and `dots`, and their magnitudes; every array is [neuron]."""
    for i in range(values.size):
        score = np.float64(values[i]) * np.float64(dots[i])
        sums[i] += score
        magnitudes[i] += abs(score)


@jit
def _collect(bits: Bits, neuron: int, tokens: NDArray[np.uint32], start: int, raw: Bits) -> None:
    """Fill `raw` [entry, neuron] with the `bits` [neuron, token] of neurons from `neuron` on, entries from `start` on.

    tokens: [entry]. Neuron by neuron: a neuron's tokens lie close together, and `raw` stays in cache.
    """
    for i in range(raw.shape[1]):
        row = bits[neuron + i]
        for e in range(len(raw)):
            raw[e, i] = row[tokens[start + e]]


@jit
def _scale(
    values: NDArray[np.float32],
    start: int,
    entries: Entries,
    scale: NDArray[np.float32],
    non_finite: NDArray[np.int64],
) -> None:
    """Multiply `values` [entry, neuron] by their tokens' scale; what is not finite becomes 0 and is counted.

    scale: [token]. non_finite: [group, neuron], of the same neurons. A product that overflows is not finite either.
    """
    n_lost = 0
    for e in range(len(values)):
        value, factor = values[e], scale[entries.tokens[start + e]]
        for i in range(value.size):
            value[i] *= factor
            n_lost += not abs(value[i]) < np.inf
    # A second pass, seldom needed: the first has no branch and vectorises.
    if n_lost:
        for e in range(len(values)):
            for i in range(values.shape[1]):
                if not abs(values[e, i]) < np.inf:
                    values[e, i] = 0
                    non_finite[entries.groups[start + e], i] += 1
