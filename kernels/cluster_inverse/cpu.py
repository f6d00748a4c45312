"""Thresholding, counting and choosing the neurons of clusters, compiled. Arguments were checked by `api`."""

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.jit import jit, over_neurons
from actstore.kernels.pack.cpu import Matrix, as_matrix

SPAN = 256  # scores that are looked at together: most spans hold nothing large enough, and are read only once
WIDTH = 64  # products that are compared together

_MAGNITUDE, _INFINITY, _LOWEST = np.int32(0x7FFFFFFF), np.int32(0x7F800000), np.int32(-(2**31))


def threshold(
    scores: NDArray[np.float32], t: float, threads: int
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """Offsets, neurons and scores of what is kept of `scores` [cluster, neuron]; see `api.threshold`."""
    n_clusters, n_neurons = scores.shape
    source = as_matrix(scores)
    peaks, cutoffs = np.empty((n_clusters, -(-n_neurons // SPAN)), np.float32), np.empty(n_clusters, np.float32)
    offsets = np.zeros(n_clusters + 1, np.int64)
    over_neurons(_count_above, n_clusters, 1, threads, source, n_neurons, t, peaks, cutoffs, offsets[1:])
    np.cumsum(offsets, out=offsets)
    neurons, kept_scores = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.float32)
    over_neurons(_collect, n_clusters, 1, threads, source, n_neurons, peaks, cutoffs, offsets, neurons, kept_scores)
    return offsets, neurons, kept_scores


def threshold_sparse(
    offsets: NDArray[np.int64], neurons: NDArray[np.int32], scores: NDArray[np.float32], t: float, threads: int
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """The same of scores that are clusters already."""
    n_clusters = len(offsets) - 1
    cutoffs, kept_offsets = np.empty(n_clusters, np.float32), np.zeros(n_clusters + 1, np.int64)
    over_neurons(_count_above_sparse, n_clusters, 1, threads, offsets, scores, t, cutoffs, kept_offsets[1:])
    np.cumsum(kept_offsets, out=kept_offsets)
    kept_neurons, kept_scores = np.empty(kept_offsets[-1], np.int32), np.empty(kept_offsets[-1], np.float32)
    arguments = (offsets, neurons, scores, cutoffs, kept_offsets, kept_neurons, kept_scores)
    over_neurons(_collect_sparse, n_clusters, 1, threads, *arguments)
    return kept_offsets, kept_neurons, kept_scores


def select(
    offsets: NDArray[np.int64],
    neurons: NDArray[np.int32],
    scores: NDArray[np.float32],
    weights: NDArray[np.float32],
    v: int,
    threads: int,
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Neurons, na, ica and naica, each [cluster, v]; see `ClusterInverse`. A neuron of weight NaN is never chosen."""
    shape = (len(offsets) - 1, v)
    selected, (na, ica, naica) = np.empty(shape, np.int32), np.empty((3, *shape), np.float32)
    over_neurons(_select, shape[0], 1, threads, offsets, neurons, scores, weights, selected, na, ica, naica)
    return selected, na, ica, naica


@jit
def count(neurons: NDArray[np.int32], counts: NDArray[np.int64]) -> None:
    """Add 1 to the `counts` [neuron] of every one of `neurons` [entry], each time that it comes; in one thread."""
    for neuron in neurons:
        counts[neuron] += 1


@jit
def _count_above(
    first: int,
    stop: int,
    source: Matrix,
    n_neurons: int,
    t: float,
    peaks: NDArray[np.float32],
    cutoffs: NDArray[np.float32],
    counts: NDArray[np.int64],
) -> None:
    """Fill the largest finite score of every span, the cluster's cutoff, and how many scores are larger than it.

    source: [cluster, neuron] float32 bits. peaks: [cluster, span]; cutoffs, counts: [cluster].
    """
    for cluster in range(first, stop):
        row = source.flat[cluster * source.pitch : cluster * source.pitch + n_neurons]
        highest = peaks[cluster]
        largest = np.float32(-np.inf)
        for span in range(highest.size):
            highest[span] = _find_largest(row[span * SPAN : (span + 1) * SPAN].view(np.int32))
            largest = max(largest, highest[span])
        cutoff = _cut_off(largest, t)
        n_kept = 0
        for span in range(highest.size):
            # Most spans hold nothing that large: they are not read again.
            if highest[span] > cutoff:
                for score in row[span * SPAN : (span + 1) * SPAN].view(np.float32):
                    n_kept += cutoff < score < np.inf
        cutoffs[cluster], counts[cluster] = cutoff, n_kept


@jit
def _find_largest(bits: NDArray[np.int32]) -> np.float32:
    """The largest finite value of these float32 bits, or -inf; on integers of the same order, whose maximum vectorises."""
    largest = _LOWEST
    for i in range(bits.size):
        magnitude = bits[i] & _MAGNITUDE
        # Negative floats are in reverse order as integers: all bits but the sign are flipped.
        ordered = bits[i] if bits[i] >= 0 else np.int32(~magnitude)
        largest = max(largest, ordered if magnitude < _INFINITY else _LOWEST)
    if largest == _LOWEST:
        return np.float32(-np.inf)
    bits_of_largest = largest if largest >= 0 else np.int32(~largest | _LOWEST)
    return np.int32(bits_of_largest).view(np.float32)


@jit
def _cut_off(largest: np.float32, t: float) -> np.float32:
    """What kept scores are larger than, t times the largest, rounded; +inf, and none is, where no score is above zero."""
    return np.float32(t * np.float64(largest)) if largest > 0 else np.float32(np.inf)


@jit
def _collect(
    first: int,
    stop: int,
    source: Matrix,
    n_neurons: int,
    peaks: NDArray[np.float32],
    cutoffs: NDArray[np.float32],
    offsets: NDArray[np.int64],
    neurons: NDArray[np.int32],
    kept_scores: NDArray[np.float32],
) -> None:
    """Fill `neurons` and `kept_scores` [entry], from the cluster's offset on, with what is above its cutoff; neurons ascend."""
    for cluster in range(first, stop):
        row = source.flat[cluster * source.pitch : cluster * source.pitch + n_neurons]
        entry, cutoff = offsets[cluster], cutoffs[cluster]
        for span in range(peaks.shape[1]):
            if peaks[cluster, span] > cutoff:
                scores = row[span * SPAN : (span + 1) * SPAN].view(np.float32)
                for i in range(scores.size):
                    if cutoff < scores[i] < np.inf:
                        neurons[entry], kept_scores[entry] = span * SPAN + i, scores[i]
                        entry += 1


@jit
def _count_above_sparse(
    first: int,
    stop: int,
    offsets: NDArray[np.int64],
    scores: NDArray[np.float32],
    t: float,
    cutoffs: NDArray[np.float32],
    counts: NDArray[np.int64],
) -> None:
    """Fill every cluster's cutoff and how many of its scores are larger than it."""
    for cluster in range(first, stop):
        row = scores[offsets[cluster] : offsets[cluster + 1]]
        cutoff = _cut_off(_find_largest(row.view(np.int32)), t)
        n_kept = 0
        for score in row:
            n_kept += cutoff < score < np.inf
        cutoffs[cluster], counts[cluster] = cutoff, n_kept


@jit
def _collect_sparse(
    first: int,
    stop: int,
    offsets: NDArray[np.int64],
    neurons: NDArray[np.int32],
    scores: NDArray[np.float32],
    cutoffs: NDArray[np.float32],
    kept_offsets: NDArray[np.int64],
    kept_neurons: NDArray[np.int32],
    kept_scores: NDArray[np.float32],
) -> None:
    """Fill `kept_neurons` and `kept_scores` [entry], from the cluster's `kept_offsets` on, with what is above its cutoff."""
    for cluster in range(first, stop):
        entry = kept_offsets[cluster]
        for i in range(offsets[cluster], offsets[cluster + 1]):
            if cutoffs[cluster] < scores[i] < np.inf:
                kept_neurons[entry], kept_scores[entry] = neurons[i], scores[i]
                entry += 1


@jit
def _select(
    first: int,
    stop: int,
    offsets: NDArray[np.int64],
    neurons: NDArray[np.int32],
    scores: NDArray[np.float32],
    weights: NDArray[np.float32],
    selected: NDArray[np.int32],
    na: NDArray[np.float32],
    ica: NDArray[np.float32],
    naica: NDArray[np.float32],
) -> None:
    """Fill the v entries of clusters `first:stop`, the largest product of score and weight first.

    offsets: [cluster + 1]. neurons, scores: [entry]. weights: [neuron]. The rest: [cluster, v]. Products gather in a buffer of
    twice v or more; when it is full, the v largest stay. Ties go to the earlier entry, the smaller neuron. A product of -inf
    or NaN is not selected.
    """
    v = selected.shape[1]
    size = max(4 * WIDTH, -(-2 * v // WIDTH) * WIDTH)
    products, entries = np.empty(size, np.float32), np.empty(size, np.int64)
    n_larger, ranked = np.empty(size, np.int32), np.empty(v, np.int64)
    for cluster in range(first, stop):
        n = 0
        for i in range(offsets[cluster], offsets[cluster + 1]):
            product = np.float32(scores[i] * weights[neurons[i]])
            # False for NaN, the weight of a common neuron.
            if product > -np.inf:
                # Full: all but the v largest go, so that every entry is ranked a bounded number of times.
                if n == size:
                    n = _keep_largest(products, entries, n_larger, ranked)
                products[n], entries[n] = product, i
                n += 1
        _rank(products, n, n_larger, ranked)
        n = min(v, n)
        selected[cluster, n:] = -1
        na[cluster, n:], ica[cluster, n:], naica[cluster, n:] = np.nan, np.nan, np.nan
        for rank in range(n):
            i = entries[ranked[rank]]
            selected[cluster, rank], naica[cluster, rank] = neurons[i], products[ranked[rank]]
            na[cluster, rank], ica[cluster, rank] = scores[i], weights[neurons[i]]


@jit
def _rank(products: NDArray[np.float32], n: int, n_larger: NDArray[np.int32], ranked: NDArray[np.int64]) -> None:
    """Fill `ranked` [v] with the indices of the largest of n products, descending, ties in their order; -1 where n is less.

    A product's rank is the number of larger ones: comparing all with all vectorises, and for fifty is the fastest way.
    """
    padded = -(-n // WIDTH) * WIDTH
    # -inf is larger than nothing: the padding changes no count.
    products[n:padded] = -np.inf
    n_larger[:padded] = 0
    ranked[:] = -1
    values, counts = products[:padded], n_larger[:padded]
    for j in range(0, n, 4):  # four at once: fewer trips to the counts
        a, b, c, d = products[j], products[j + 1], products[j + 2], products[j + 3]
        for i in range(values.size):
            value = values[i]
            larger = np.int32(np.int32(a > value) + np.int32(b > value))
            counts[i] += np.int32(larger + np.int32(np.int32(c > value) + np.int32(d > value)))
    for i in range(n):
        rank = n_larger[i]
        while rank < ranked.size and ranked[rank] >= 0:  # equal ones share a rank and take the next in turn
            rank += 1
        if rank < ranked.size:
            ranked[rank] = i


@jit
def _keep_largest(
    products: NDArray[np.float32], entries: NDArray[np.int64], n_larger: NDArray[np.int32], ranked: NDArray[np.int64]
) -> int:
    """The number of products that stay, v; moves them and their entries to the front, in the order in which they came.

    In that order, because ties go to the earlier.
    """
    _rank(products, products.size, n_larger, ranked)
    # The ranks are no longer needed: their array serves for flags.
    n_larger[:] = 0
    for index in ranked:
        n_larger[index] = 1
    n = 0
    for i in range(products.size):
        if n_larger[i]:
            products[n], entries[n] = products[i], entries[i]
            n += 1
    return n
