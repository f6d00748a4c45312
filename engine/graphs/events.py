"""Where neurons fire in the captured text: what their graphs are made of."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from actstore.engine.graphs.values import silent_means
from actstore.kernels.jit import default_threads
from actstore.kernels.pack.statistics import HISTOGRAM_EDGES, N_BINS
from actstore.store.capture.overflow import saturate
from actstore.store.capture.saturation import overflows_in_any, saturated_maxima

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from actstore.engine.graphs.contexts import Contexts
    from actstore.store.reader import Capture


class Events(NamedTuple):
    """The positions at which some neurons of a layer fire."""

    offsets: NDArray[np.int64]
    """[neuron + 1]"""
    ranks: NDArray[np.int32]
    """[event] ranks of the contexts, ascending within a neuron."""
    values: NDArray[np.float32]
    """[event] activations, as shares of the neuron's maximum."""
    silent: NDArray[np.float32]
    """[event] mean activation at the occurrences of the event's token at which the neuron does not fire."""
    rest: NDArray[np.float64]
    """[neuron] mean activation at all positions that do not fire, as a share of the maximum."""
    maximum: NDArray[np.float32]
    """[neuron] over the capture; a neuron whose maximum is not above 0 never fires."""


def most_events(captures: Sequence[Capture], layer: int, site: str, share: float) -> NDArray[np.int64]:
    """The most positions at which each neuron of a layer fires, as `find_events` says; shape [neuron].

    By the histograms of the captures: the bin that the least firing activation lies in counts whole.
    """
    maximum = saturated_maxima(captures[0], layer, site, overflows_in_any(captures, layer, site))
    least = np.where((maximum > 0) & np.isfinite(maximum), np.float32(share) * maximum, np.inf)
    bins = np.searchsorted(HISTOGRAM_EDGES, least, side="right") - 1  # [neuron]; one too many for infinity
    histogram = np.sum([one.layer_statistics(layer, site).histogram for one in captures], axis=0)  # [neuron, bin]
    at_least = np.cumsum(histogram[:, ::-1], axis=1, dtype=np.int64)[:, ::-1]
    return np.where(bins < N_BINS, at_least[np.arange(len(bins)), np.minimum(bins, N_BINS - 1)], 0)


def find_events(
    capture: Capture,
    contexts: Contexts,
    layer: int,
    neurons: Sequence[int],
    *,
    site: str = "mlp.post",
    share: float = 0.5,
    also: Sequence[Capture] = (),
    held_out: NDArray[np.int32] | None = None,
    threads: int | None = None,
) -> Events:
    """The positions of text at which neurons of a layer fire: those with at least `share` of the neuron's maximum.

    The maximum is that of the statistics of `capture`, for the captures of `also` too; their positions follow its own in
    `contexts`. Values that are not finite never fire. Values too large for precision half, and their maximum, count as 65,504
    in all captures: the store only knows that they are at least that. held_out: ranks that are left out of `Events.silent`.
    """
    captures = (capture, *also)
    statistics = [one.layer_statistics(layer, site) for one in captures]
    indices = np.asarray(neurons, np.int64)
    overflows = overflows_in_any(captures, layer, site)
    maximum = saturated_maxima(capture, layer, site, overflows)[indices]
    overflows = overflows[indices]
    scale = np.where((maximum > 0) & np.isfinite(maximum), maximum, 1).astype(np.float64)
    n_seen = np.sum([s.count[indices] for s in statistics], axis=0)
    total = np.sum([np.where(s.count > 0, s.mean * s.count, 0)[indices] for s in statistics], axis=0)
    ids = contexts.ids
    is_evidence = contexts.is_evidence(held_out)

    def find_firing(number: int) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32], float]:
        largest = float(maximum[number])
        if not 0 < largest < np.inf:
            return np.empty(0, np.int32), np.empty(0, np.float32), np.empty(0, np.float32), 0.0
        parts = [one.activations(layer, int(indices[number]), site) for one in captures]
        values = parts[0] if len(parts) == 1 else np.concatenate(parts)
        values = saturate(values[None], overflows[number : number + 1])[0]
        is_hit = values >= np.float32(share * largest)
        hits = np.flatnonzero(is_hit)
        ranks = contexts.rank[hits]
        shares = (values[hits] / np.float32(largest)).astype(np.float32, copy=False)
        fires = (ranks >= 0) & np.isfinite(shares)
        ranks, shares, hits = ranks[fires], shares[fires], hits[fires]
        rest = float(
            (total[number] / scale[number] - shares.sum(dtype=np.float64)) / max(n_seen[number] - len(ranks), 1)
        )
        if overflows[number]:  # the statistics have the values from before they were saturated
            elsewhere = values[(contexts.rank >= 0) & ~is_hit]
            rest = float(elsewhere[np.isfinite(elsewhere)].mean(dtype=np.float64) / largest) if len(elsewhere) else 0.0
        rest = rest if np.isfinite(rest) else 0.0
        means = silent_means(ids, values, is_evidence & ~is_hit, ids[hits], rest * largest) / largest
        order = np.argsort(ranks)
        return ranks[order], shares[order], means[order].astype(np.float32), rest

    n_threads = min(threads or default_threads(), max(1, len(indices)))
    with ThreadPoolExecutor(n_threads, thread_name_prefix="actstore-events") as pool:
        neuron_events = list(pool.map(find_firing, range(len(indices))))
    return _join_events(neuron_events, maximum)


def _join_events(
    neuron_events: list[tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32], float]],
    maximum: NDArray[np.float32],
) -> Events:
    """The events of neurons one after another, from the ranks, values, silent means and rest of each."""
    return Events(
        np.cumsum([0, *(len(ranks) for ranks, *_ in neuron_events)], dtype=np.int64),
        np.concatenate([np.empty(0, np.int32), *(ranks for ranks, *_ in neuron_events)]),
        np.concatenate([np.empty(0, np.float32), *(shares for _, shares, *_ in neuron_events)]),
        np.concatenate([np.empty(0, np.float32), *(means for *_, means, _ in neuron_events)]),
        np.array([rest for *_, rest in neuron_events], np.float64),
        maximum,
    )
