"""NA-ICA: the specification, in plain Python."""

import math
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.cluster_inverse.clusters import Clusters

Selection = list[tuple[int, np.float32, np.float32, np.float32]]
"""Of one cluster, by descending naica: neuron, na, ica, naica."""


def threshold(rows: list[dict[int, np.float32]], t: float) -> list[dict[int, np.float32]]:
    """Of every row of scores by neuron, those larger than t times the largest."""
    clusters = []
    for row in rows:
        finite = {neuron: score for neuron, score in row.items() if np.isfinite(score)}
        largest = max((float(score) for score in finite.values()), default=0.0)
        cutoff = np.float32(t * largest) if largest > 0 else np.inf
        clusters.append({neuron: score for neuron, score in finite.items() if score > cutoff})
    return clusters


def cluster_inverse(
    clusters: list[dict[int, np.float32]], u: float = 0.3, v: int = 20, ica: bool = True
) -> tuple[list[Selection], list[int]]:
    """The first v neurons of every cluster, and the common neurons."""
    frequency = Counter(neuron for cluster in clusters for neuron in cluster)
    common = sorted(neuron for neuron, df in frequency.items() if df / len(clusters) > u)
    weights = {n: np.float32(math.log(len(clusters) / (df + 1)) if ica else 1) for n, df in frequency.items()}
    selections = []
    for cluster in clusters:
        entries = [(n, na, weights[n], na * weights[n]) for n, na in cluster.items() if n not in common]
        entries = [entry for entry in entries if not np.isnan(entry[3])]
        selections.append(sorted(entries, key=lambda entry: (-entry[3], entry[0]))[:v])
    return selections, common


def as_rows(clusters: Clusters) -> list[dict[int, np.float32]]:
    """The scores of each cluster by neuron."""
    ends = zip(clusters.offsets[:-1], clusters.offsets[1:], strict=True)
    return [dict(zip(clusters.neurons[a:b].tolist(), clusters.scores[a:b], strict=True)) for a, b in ends]


def dense_rows(scores: NDArray[np.float32]) -> list[dict[int, np.float32]]:
    """The scores of each cluster by neuron, of dense scores [cluster, neuron]."""
    return [dict(enumerate(row)) for row in scores]
