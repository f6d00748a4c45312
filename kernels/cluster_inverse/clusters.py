"""Clusters of neurons, one for each query, and what is counted and chosen from them; all sparse, all mergeable.

A neuron is a flat id, 0 or more, over all layers. Plain numpy.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Clusters:
    """The neurons that queries were attributed to, and their scores. Raises ValueError where the arrays disagree."""

    offsets: NDArray[np.int64]
    """[cluster + 1] ascending from 0: entries `offsets[c]:offsets[c + 1]` are cluster c."""
    neurons: NDArray[np.int32]
    """[entry] ascending within a cluster, each neuron once; given in any integer dtype."""
    scores: NDArray[np.float32]
    """[entry] the neuron's attribution."""

    def __post_init__(self) -> None:
        neurons = np.asarray(self.neurons)
        _expect(neurons.size == 0 or neurons.dtype.kind in "iu", f"neurons must be integers, not {neurons.dtype}")
        least, largest = neurons.min(initial=0), neurons.max(initial=0)
        _expect(least >= 0 and largest < 2**31, f"neurons must be ids from 0 to 2^31 - 1, not {least} to {largest}")
        object.__setattr__(self, "offsets", np.ascontiguousarray(self.offsets, np.int64))
        object.__setattr__(self, "neurons", np.ascontiguousarray(neurons, np.int32))
        object.__setattr__(self, "scores", np.ascontiguousarray(self.scores, np.float32))
        n_entries = len(self.neurons)
        is_list = self.neurons.ndim == 1 and self.scores.shape == (n_entries,)
        _expect(is_list, f"neurons and scores must be lists of one length, not {neurons.shape} and {self.scores.shape}")
        check_offsets(self.offsets, n_entries)
        ascends = self.neurons[1:] > self.neurons[:-1]
        borders = self.offsets[(self.offsets > 0) & (self.offsets < n_entries)]
        ascends[borders - 1] = True
        _expect(bool(ascends.all()), "neurons must ascend within a cluster, each once")

    @property
    def n_clusters(self) -> int:
        """The number of clusters, empty ones too."""
        return len(self.offsets) - 1

    @classmethod
    def concatenate(cls, parts: Iterable["Clusters"]) -> Self:
        """The clusters of all parts, one after the other."""
        parts = [*parts]
        starts = np.cumsum([0, *(len(part.neurons) for part in parts)])
        return cls(
            np.concatenate([[0], *(part.offsets[1:] + start for part, start in zip(parts, starts[:-1], strict=True))]),
            np.concatenate([np.empty(0, np.int32), *(part.neurons for part in parts)]),
            np.concatenate([np.empty(0, np.float32), *(part.scores for part in parts)]),
        )


@dataclass(frozen=True)
class Frequency:
    """In how many clusters each neuron is; parts' add up: `a + b`."""

    counts: NDArray[np.int64]
    """[neuron] clusters that hold it."""
    n_clusters: int
    """All clusters that were counted, empty ones too."""

    def ica(self) -> NDArray[np.float32]:
        """The inverse cluster attribution [neuron], log(C / (df + 1)) of C clusters of which df hold the neuron."""
        with np.errstate(divide="ignore"):  # of no cluster, -inf
            return np.log(self.n_clusters / (self.counts + 1)).astype(np.float32)

    def common(self, u: float = 0.3) -> NDArray[np.int32]:
        """The neurons, ascending, that more than the share u of the clusters hold."""
        return np.flatnonzero(self.counts / max(self.n_clusters, 1) > u).astype(np.int32)

    def __add__(self, other: "Frequency") -> "Frequency":
        if len(self.counts) != len(other.counts):
            raise ValueError(f"cannot add the frequencies of {len(self.counts)} and of {len(other.counts)} neurons")
        return Frequency(self.counts + other.counts, self.n_clusters + other.n_clusters)


@dataclass(frozen=True)
class ClusterInverse:
    """The first v neurons of every cluster by `naica`, descending; unused entries are neuron -1 and NaN."""

    neurons: NDArray[np.int32]
    """[cluster, v]"""
    na: NDArray[np.float32]
    """[cluster, v] the neuron's score in the cluster."""
    ica: NDArray[np.float32]
    """[cluster, v] its inverse cluster attribution."""
    naica: NDArray[np.float32]
    """[cluster, v] their product."""
    common: NDArray[np.int32]
    """[common] ascending ids of the neurons that were removed because they are in too many clusters."""


@dataclass(frozen=True)
class Pooled:
    """What the clusters of each label say of a neuron: the sum of its values and in how many clusters it is."""

    offsets: NDArray[np.int64]
    """[label + 1] entries `offsets[k]:offsets[k + 1]` are label k's."""
    neurons: NDArray[np.int32]
    """[entry] ascending within a label."""
    totals: NDArray[np.float64]
    """[entry] sum over the label's clusters that hold the neuron, in their order."""
    counts: NDArray[np.int64]
    """[entry] number of these clusters."""
    n_clusters: NDArray[np.int64]
    """[label] number of the label's clusters, whatever they hold."""

    def merge(self, other: "Pooled") -> "Pooled":
        """What both parts' clusters say together; neither is changed."""
        if len(self.n_clusters) != len(other.n_clusters):
            raise ValueError(f"cannot merge pools of {len(self.n_clusters)} and of {len(other.n_clusters)} labels")
        labels = (np.repeat(np.arange(len(part.n_clusters)), np.diff(part.offsets)) for part in (self, other))
        return add_up(
            np.concatenate([*labels]),
            np.concatenate([self.neurons, other.neurons]),
            np.concatenate([self.totals, other.totals]),
            np.concatenate([self.counts, other.counts]),
            self.n_clusters + other.n_clusters,
        )


def add_up(
    labels: NDArray[np.int64],
    neurons: NDArray[np.int32],
    totals: NDArray[np.floating],
    counts: NDArray[np.int64],
    n_clusters: NDArray[np.int64],
) -> Pooled:
    """The entries, [entry] each, with those of the same label and neuron added in the order in which they come."""
    # One integer for label and neuron, sorted as the pair is; `bincount` adds in the order of the entries.
    keys, key_of_entry = np.unique((labels << 32) | neurons, return_inverse=True)
    return Pooled(
        np.searchsorted(keys, np.arange(len(n_clusters) + 1) << 32),
        (keys & 0xFFFFFFFF).astype(np.int32),
        np.bincount(key_of_entry, totals, len(keys)).astype(np.float64),
        np.bincount(key_of_entry, counts, len(keys)).astype(np.int64),
        n_clusters,
    )


def check_offsets(offsets: NDArray[np.int64], n_entries: int) -> None:
    """Raise ValueError unless `offsets` ascend from 0 to the number of entries."""
    is_complete = offsets.ndim == 1 and offsets.size > 0 and offsets[0] == 0 and offsets[-1] == n_entries
    _expect(
        bool(is_complete and (np.diff(offsets) >= 0).all()),
        f"offsets must ascend from 0 to the number of entries, {n_entries}",
    )


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
