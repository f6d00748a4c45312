"""Thresholding, counting and choosing the neurons of clusters, compiled. Arguments were checked by `api`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.jit import jit, over_neurons
from actstore.kernels.pack.cpu import as_matrix

SPAN = 256  # scores that are looked at together: most spans hold nothing large enough, and are read only once
WIDTH = 64  # products that are compared together

_MAGNITUDE, _INFINITY, _LOWEST = np.int32(0x7FFFFFFF), np.int32(0x7F800000), np.int32(-(2**31))


def threshold(scores: NDArray[np.float32], t: float, threads: int) -> Any:
    """Offsets, neurons and scores of what is kept of `scores` [cluster, neuron]; see `api.threshold`."""
    n_clusters, n_neurons = scores.shape
    source = as_matrix(scores)
    peaks, cutoffs = np.empty((n_clusters, -(-n_neurons // SPAN)), np.float32), np.empty(n_clusters, np.float32)
    offsets = np.zeros(n_clusters + 1, np.int64)
    over_neurons(_find_kept, n_clusters, 1, threads, source, n_neurons, t, peaks, cutoffs, offsets[1:])
    np.cumsum(offsets, out=offsets)
    neurons, kept = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.float32)
    over_neurons(_keep, n_clusters, 1, threads, source, n_neurons, peaks, cutoffs, offsets, neurons, kept)
    return offsets, neurons, kept


def threshold_sparse(
    offsets: NDArray[np.int64], neurons: NDArray[np.int32], scores: NDArray[np.float32], t: float, threads: int
) -> Any:
    """The same of scores that are clusters already."""
    n_clusters = len(offsets) - 1
    cutoffs, fewer = np.empty(n_clusters, np.float32), np.zeros(n_clusters + 1, np.int64)
    over_neurons(_find_kept_sparse, n_clusters, 1, threads, offsets, scores, t, cutoffs, fewer[1:])
    np.cumsum(fewer, out=fewer)
    fewer_neurons, kept = np.empty(fewer[-1], np.int32), np.empty(fewer[-1], np.float32)
    arguments = (offsets, neurons, scores, cutoffs, fewer, fewer_neurons, kept)
    over_neurons(_keep_sparse, n_clusters, 1, threads, *arguments)
    return fewer, fewer_neurons, kept


def select(
    offsets: NDArray[np.int64], neurons: NDArray[np.int32], scores: NDArray[np.float32], weights: NDArray[np.float32],
    v: int, threads: int,
) -> Any:  # fmt: skip
    """Neurons, na, ica and naica, each [cluster, v]; see `ClusterInverse`. A neuron of weight NaN is never chosen."""
    shape = (len(offsets) - 1, v)
    chosen, (na, ica, naica) = np.empty(shape, np.int32), np.empty((3, *shape), np.float32)
    over_neurons(_select, shape[0], 1, threads, offsets, neurons, scores, weights, chosen, na, ica, naica)
    return chosen, na, ica, naica


@jit
def count(neurons: Any, counts: Any) -> None:
    """Add 1 to the count of every neuron each time that it comes."""
    for neuron in neurons:
        counts[neuron] += 1


@jit
def _find_kept(
    first: int, stop: int, source: Any, n_neurons: int, t: float, peaks: Any, cutoffs: Any, counts: Any
) -> None:
    """Fill the largest finite score of every span, the cluster's cutoff, and how many scores are larger than it."""
    for cluster in range(first, stop):
        row = source.flat[cluster * source.pitch : cluster * source.pitch + n_neurons]
        highest = peaks[cluster]
        largest = np.float32(-np.inf)
        for span in range(highest.size):
            highest[span] = _find_largest(row[span * SPAN : (span + 1) * SPAN].view(np.int32))
            largest = max(largest, highest[span])
        cutoff = _cut_off(largest, t)
        kept = 0
        for span in range(highest.size):
            if highest[span] > cutoff:
                for score in row[span * SPAN : (span + 1) * SPAN].view(np.float32):
                    kept += cutoff < score < np.inf
        cutoffs[cluster], counts[cluster] = cutoff, kept


@jit
def _find_largest(bits: Any) -> Any:
    """The largest finite value of these float32 bits, or -inf; on integers of the same order, whose maximum vectorises."""
    largest = _LOWEST
    for i in range(bits.size):
        magnitude = bits[i] & _MAGNITUDE
        ordered = bits[i] if bits[i] >= 0 else np.int32(~magnitude)
        largest = max(largest, ordered if magnitude < _INFINITY else _LOWEST)
    if largest == _LOWEST:
        return np.float32(-np.inf)
    bits_of_largest = largest if largest >= 0 else np.int32(~largest | _LOWEST)
    return np.int32(bits_of_largest).view(np.float32)


@jit
def _cut_off(largest: Any, t: float) -> Any:
    """What kept scores are larger than: nothing is where no score is above zero."""
    return np.float32(t * np.float64(largest)) if largest > 0 else np.float32(np.inf)


@jit
def _keep(
    first: int, stop: int, source: Any, n_neurons: int, peaks: Any, cutoffs: Any, offsets: Any, neurons: Any, kept: Any
) -> None:
    for cluster in range(first, stop):
        row = source.flat[cluster * source.pitch : cluster * source.pitch + n_neurons]
        at, cutoff = offsets[cluster], cutoffs[cluster]
        for span in range(peaks.shape[1]):
            if peaks[cluster, span] > cutoff:
                scores = row[span * SPAN : (span + 1) * SPAN].view(np.float32)
                for i in range(scores.size):
                    if cutoff < scores[i] < np.inf:
                        neurons[at], kept[at] = span * SPAN + i, scores[i]
                        at += 1


@jit
def _find_kept_sparse(first: int, stop: int, offsets: Any, scores: Any, t: float, cutoffs: Any, counts: Any) -> None:
    for cluster in range(first, stop):
        row = scores[offsets[cluster] : offsets[cluster + 1]]
        cutoff = _cut_off(_find_largest(row.view(np.int32)), t)
        kept = 0
        for score in row:
            kept += cutoff < score < np.inf
        cutoffs[cluster], counts[cluster] = cutoff, kept


@jit
def _keep_sparse(
    first: int,
    stop: int,
    offsets: Any,
    neurons: Any,
    scores: Any,
    cutoffs: Any,
    fewer: Any,
    fewer_neurons: Any,
    kept: Any,
) -> None:
    for cluster in range(first, stop):
        at = fewer[cluster]
        for i in range(offsets[cluster], offsets[cluster + 1]):
            if cutoffs[cluster] < scores[i] < np.inf:
                fewer_neurons[at], kept[at] = neurons[i], scores[i]
                at += 1


@jit
def _select(
    first: int,
    stop: int,
    offsets: Any,
    neurons: Any,
    scores: Any,
    weights: Any,
    chosen: Any,
    na: Any,
    ica: Any,
    naica: Any,
) -> None:
    v = chosen.shape[1]
    size = max(4 * WIDTH, -(-2 * v // WIDTH) * WIDTH)
    products, entries = np.empty(size, np.float32), np.empty(size, np.int64)
    ranks, places = np.empty(size, np.int32), np.empty(v, np.int64)
    for cluster in range(first, stop):
        n = 0
        for i in range(offsets[cluster], offsets[cluster + 1]):
            product = np.float32(scores[i] * weights[neurons[i]])
            if product > -np.inf:
                if n == size:
                    n = _keep_largest(products, entries, ranks, places)
                products[n], entries[n] = product, i
                n += 1
        _rank(products, n, ranks, places)
        n = min(v, n)
        chosen[cluster, n:] = -1
        na[cluster, n:], ica[cluster, n:], naica[cluster, n:] = np.nan, np.nan, np.nan
        for place in range(n):
            i = entries[places[place]]
            chosen[cluster, place], naica[cluster, place] = neurons[i], products[places[place]]
            na[cluster, place], ica[cluster, place] = scores[i], weights[neurons[i]]


@jit
def _rank(products: Any, n: int, ranks: Any, places: Any) -> None:
    """Fill the places of the largest of n products, descending, ties in their order.

    A product's rank is the number of larger ones: comparing all with all vectorises, and for fifty is the fastest way.
    """
    padded = -(-n // WIDTH) * WIDTH
    products[n:padded] = -np.inf
    ranks[:padded] = 0
    places[:] = -1
    values, counts = products[:padded], ranks[:padded]
    for j in range(0, n, 4):  # four at once: fewer trips to the counts
        a, b, c, d = products[j], products[j + 1], products[j + 2], products[j + 3]
        for i in range(values.size):
            value = values[i]
            larger = np.int32(np.int32(a > value) + np.int32(b > value))
            counts[i] += np.int32(larger + np.int32(np.int32(c > value) + np.int32(d > value)))
    for i in range(n):
        place = ranks[i]
        while place < places.size and places[place] >= 0:  # equal ones share a rank and take the next places in turn
            place += 1
        if place < places.size:
            places[place] = i


@jit
def _keep_largest(products: Any, entries: Any, ranks: Any, places: Any) -> int:
    """The number of places; moves the entries that have one to the front, in their order."""
    _rank(products, products.size, ranks, places)
    ranks[:] = 0
    for place in places:
        ranks[place] = 1
    n = 0
    for i in range(products.size):
        if ranks[i]:
            products[n], entries[n] = products[i], entries[i]
            n += 1
    return n
