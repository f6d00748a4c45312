"""NA-ICA (Chen, Dejl and Toni, arXiv 2406.10868): which neurons' attributions are particular to a query.

Each query has a cluster: the neurons it was attributed to most. `threshold` makes clusters of scores,
`cluster_frequency` counts in how many of them a neuron is, `cluster_inverse` weighs scores by that and chooses, `pool`
adds up by label. All is sparse; parts of the queries go through one by one, and a total of their frequencies through
`cluster_inverse` again.
"""

from typing import TYPE_CHECKING

import numpy as np

from actstore.kernels.cluster_inverse import cpu
from actstore.kernels.cluster_inverse.clusters import ClusterInverse, Clusters, Frequency, Pooled, add_up
from actstore.kernels.floats import as_array, on_gpu
from actstore.kernels.jit import default_threads

if TYPE_CHECKING:
    import torch
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "ClusterInverse",
    "Clusters",
    "Frequency",
    "Pooled",
    "cluster_frequency",
    "cluster_inverse",
    "pool",
    "threshold",
]


def threshold(
    scores: "NDArray[np.float32] | torch.Tensor | Clusters", t: float = 0.2, threads: int | None = None
) -> Clusters:
    """The neurons of every query with a score larger than t times the query's largest.

    t times the largest is rounded to float32. Scores that are not finite are left out, of the largest too. Where the
    largest is not above zero the cluster is empty, as the formula has it: t below 1 makes t times the largest no smaller
    than the largest.

    scores: [cluster, neuron] float32, read once, but for what is near a large one; or clusters, of which fewer neurons
    remain. Scores on a GPU are searched there; what is kept comes back to the CPU. `gpu.threshold` leaves it there.
    t: 0 or more, below 1. Raises ValueError for another t and for shapes that do not fit, TypeError for other dtypes.
    """
    if not 0 <= t < 1:
        raise ValueError(f"t must be 0 or more and below 1, not {t}")
    threads = threads or default_threads()
    if isinstance(scores, Clusters):
        return Clusters(*cpu.threshold_sparse(scores.offsets, scores.neurons, scores.scores, t, threads))
    source = scores if on_gpu(scores) else as_array(scores, "scores")
    if str(source.dtype) not in ("float32", "torch.float32"):
        raise TypeError(f"scores must be float32, not {source.dtype}: convert them first")
    if source.ndim != 2:
        raise ValueError(f"scores must be [cluster, neuron], not {list(source.shape)}")
    if not isinstance(source, np.ndarray):
        from actstore.kernels.cluster_inverse import gpu  # only here: Triton takes its time to load

        return gpu.threshold(source, t).to_host()
    return Clusters(*cpu.threshold(source.astype(np.float32, copy=False), t, threads))


def cluster_frequency(clusters: Clusters, n_neurons: int) -> Frequency:
    """In how many of the clusters each of `n_neurons` neurons is; add those of all parts.

    Raises ValueError where a cluster holds a neuron that is not below `n_neurons`.
    """
    largest = clusters.neurons.max(initial=-1)
    if largest >= n_neurons:
        raise ValueError(f"clusters must hold neurons below {n_neurons}, the number of neurons, not {largest}")
    counts = np.zeros(n_neurons, np.int64)
    cpu.count(clusters.neurons, counts)
    return Frequency(counts, clusters.n_clusters)


def cluster_inverse(
    clusters: Clusters,
    frequency: Frequency | None = None,
    *,
    u: float = 0.3,
    v: int = 20,
    ica: bool = True,
    threads: int | None = None,
) -> ClusterInverse:
    """The v neurons of every cluster with the largest na·ica, and the common neurons, which are removed before.

    With C clusters, of which df hold a neuron, its ica is log(C / (df + 1)), na its score in a cluster. A neuron is common
    where df / C > u. Ties go to the smaller neuron id; NaN is never chosen. ica and the product are rounded to float32.

    The formula is for many clusters. A neuron that all clusters hold has a negative ica, and one that all but one hold an
    ica of 0: u removes both, unless it is 1. Up to 1 / u clusters, where one is more than the share u, every neuron is
    common and nothing is left.

    clusters: of all queries, or a part of them. frequency: of all queries (of these, unless given). u: 1 keeps common
    neurons, the paper's baseline with them. ica: False for its baseline without, where ica is 1.
    Raises ValueError for u or v out of range, and for a frequency that cannot be of these clusters.
    """
    if not 0 <= u <= 1:
        raise ValueError(f"u must be a share between 0 and 1, not {u}")
    if v < 0:
        raise ValueError(f"v must be 0 or more, not {v}")
    if frequency is None:
        frequency = cluster_frequency(clusters, int(clusters.neurons.max(initial=-1)) + 1)
    _check_frequency(clusters, frequency)
    common = frequency.common(u)
    weights = frequency.ica() if ica else np.ones(len(frequency.counts), np.float32)
    weights[common] = np.nan
    arrays = clusters.offsets, clusters.neurons, clusters.scores
    neurons, na, icas, naica = cpu.select(*arrays, weights, v, threads or default_threads())
    return ClusterInverse(neurons, na, icas, naica, common)


def pool(chosen: ClusterInverse | Clusters, labels: "ArrayLike", n_labels: int) -> Pooled:
    """For every label, the neurons that its clusters hold: the sum of their naica, and in how many clusters each is.

    The largest of a label are its domain's neurons. Sums are in float64, in the order of the clusters; of `Clusters` they
    are of scores. Parts merge: `Pooled.merge`.

    labels: [cluster] of each query, -1 for none. Raises ValueError for others.
    """
    label_ids = np.asarray(labels)
    n_clusters = chosen.n_clusters if isinstance(chosen, Clusters) else len(chosen.neurons)
    if label_ids.shape != (n_clusters,) or (n_clusters and label_ids.dtype.kind not in "iu"):
        raise ValueError(
            f"labels must be one integer for each of {n_clusters} clusters, not {label_ids.dtype} {list(label_ids.shape)}"
        )
    label_ids = label_ids.astype(np.int64)
    if label_ids.min(initial=-1) < -1 or label_ids.max(initial=-1) >= n_labels:
        raise ValueError(
            f"labels must be from 0 to {n_labels - 1}, or -1 for none, not {label_ids.min()} to {label_ids.max()}"
        )
    if isinstance(chosen, Clusters):
        neurons, values, entry_labels = chosen.neurons, chosen.scores, np.repeat(label_ids, np.diff(chosen.offsets))
    else:
        neurons, values, entry_labels = (
            a.ravel() for a in np.broadcast_arrays(chosen.neurons, chosen.naica, label_ids[:, None])
        )
    is_counted = (entry_labels >= 0) & (neurons >= 0)
    return add_up(
        entry_labels[is_counted],
        neurons[is_counted],
        values[is_counted],
        np.ones(is_counted.sum(), np.int64),
        np.bincount(label_ids[label_ids >= 0], minlength=n_labels),
    )


def _check_frequency(clusters: Clusters, frequency: Frequency) -> None:
    largest = clusters.neurons.max(initial=-1)
    if largest >= len(frequency.counts):
        raise ValueError(
            f"frequency must count every neuron up to {largest}, but counts {len(frequency.counts)} neurons"
        )
    if frequency.n_clusters < clusters.n_clusters:
        numbers = f"frequency of {frequency.n_clusters} clusters and {clusters.n_clusters} clusters"
        raise ValueError(f"frequency must be of these clusters or of more, not {numbers}: add those of all parts")
