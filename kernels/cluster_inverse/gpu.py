"""NA-ICA on a GPU, in Triton: thresholding dense scores, counting clusters, weighing and choosing.

What `api` does, but everything stays on the device; takes tensors of any device that Triton runs on. The only atomic
additions are of integers, so that the same input gives the same bits. Arguments were checked by `api`.
"""

from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from actstore.kernels.cluster_inverse.clusters import ClusterInverse, Clusters
from actstore.kernels.gpu import TritonFunction, jit, launch

SPAN = 1024  # scores that one program looks at
BLOCK = 64  # entries of a cluster that are weighed together


class DeviceClusters(NamedTuple):
    """`Clusters` on a device."""

    offsets: Tensor  # [cluster + 1] int64
    neurons: Tensor  # [entry] int32
    scores: Tensor  # [entry] float32

    def to_host(self) -> Clusters:
        """The same in numpy; waits for the device."""
        return Clusters(*(array.cpu().numpy() for array in self))


class DeviceClusterInverse(NamedTuple):
    """`ClusterInverse` on a device."""

    neurons: Tensor  # [cluster, v] int32
    na: Tensor  # [cluster, v] float32
    ica: Tensor  # [cluster, v] float32
    naica: Tensor  # [cluster, v] float32
    common: Tensor  # [common] int32

    def to_host(self) -> ClusterInverse:
        """The same in numpy; waits for the device."""
        return ClusterInverse(*(array.cpu().numpy() for array in self))


def threshold(scores: Tensor, t: float) -> DeviceClusters:
    """The neurons with a score larger than t times the cluster's largest; `scores` is [cluster, neuron] float32.

    Waits once, for the number of neurons that are kept.
    """
    scores = scores.detach()
    (n_clusters, n_neurons), device = scores.shape, scores.device
    n_spans = -(-n_neurons // SPAN)
    peaks = torch.empty(n_clusters, n_spans, device=device)
    counts = torch.empty(n_clusters, n_spans, dtype=torch.int64, device=device)
    if not counts.numel():
        offsets = torch.zeros(n_clusters + 1, dtype=torch.int64, device=device)
        return DeviceClusters(offsets, torch.empty(0, dtype=torch.int32, device=device), torch.empty(0, device=device))

    source = (scores, *scores.stride(), n_neurons, n_spans)

    def start(kernel: TritonFunction[..., None], *arguments: Tensor) -> None:
        launch(kernel, counts.numel(), *source, *arguments, SPAN=SPAN, on=scores, fuse=False)

    start(_find_peaks, peaks)
    largest = peaks.amax(dim=1)
    cutoffs = (largest.double() * t).float().where(largest > 0, torch.inf)
    start(_count_above, peaks, cutoffs, counts)
    ends = counts.flatten().cumsum(0)
    offsets = torch.nn.functional.pad(ends[n_spans - 1 :: n_spans], (1, 0))
    n_kept = int(offsets[-1])
    neurons, kept_scores = torch.empty(n_kept, dtype=torch.int32, device=device), torch.empty(n_kept, device=device)
    start(_collect, peaks, cutoffs, ends - counts.flatten(), neurons, kept_scores)
    return DeviceClusters(offsets, neurons, kept_scores)


def cluster_frequency(clusters: DeviceClusters, n_neurons: int) -> Tensor:
    """In how many clusters each neuron is, [neuron] int64; add those of all parts."""
    counts = torch.zeros(n_neurons, dtype=torch.int32, device=clusters.neurons.device)
    n_entries = len(clusters.neurons)
    if n_entries:
        n_programs = -(-n_entries // SPAN)
        launch(_count, n_programs, clusters.neurons, n_entries, counts, SPAN=SPAN, on=counts, fuse=False)
    return counts.long()


def cluster_inverse(
    clusters: DeviceClusters, counts: Tensor, n_clusters: int, u: float = 0.3, v: int = 20, ica: bool = True
) -> DeviceClusterInverse:
    """The v neurons of every cluster with the largest na·ica, and the common neurons; as `api.cluster_inverse`.

    counts: [neuron] int64 and n_clusters: of all queries.
    """
    device = counts.device
    df = counts.double()
    is_common = df / max(n_clusters, 1) > u
    weights = (n_clusters / (df + 1)).log().float() if ica else torch.ones(len(counts), device=device)
    weights[is_common] = torch.nan  # which is never chosen
    entries = torch.empty(len(clusters.offsets) - 1, v, dtype=torch.int64, device=device)
    if entries.numel():
        launch(_select, len(entries), *clusters, weights, entries, v, BLOCK=BLOCK, on=counts, fuse=False)
    is_used, entry_index = entries >= 0, entries.clamp(0)
    neurons = _take(clusters.neurons, entry_index, is_used, -1)
    na = _take(clusters.scores, entry_index, is_used, torch.nan)
    weight = _take(weights, neurons.clamp(0).long(), is_used, torch.nan)
    return DeviceClusterInverse(neurons, na, weight, na * weight, is_common.nonzero()[:, 0].int())


def _take(source: Tensor, index: Tensor, is_used: Tensor, default: float) -> Tensor:
    """`source` [entry] at `index` [cluster, v] where `is_used`, else `default`."""
    return source[index].where(is_used, default) if len(source) else torch.full_like(index, default, dtype=source.dtype)


@jit
def _load_span(
    scores: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    n_neurons: tl.tensor,
    n_spans: tl.tensor,
    program: tl.tensor,
    SPAN: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The neurons [SPAN] int64 of a program's span and their scores [SPAN] in its cluster; -inf beyond the last neuron.

    scores: [cluster, neuron] float32, with any strides. Programs are [cluster × span], spans fastest.
    """
    neuron = program % n_spans * SPAN + tl.arange(0, SPAN)
    pointers = scores + program // n_spans * row_stride + neuron * column_stride
    return neuron, tl.load(pointers, mask=neuron < n_neurons, other=float("-inf"))


@jit
def _find_peaks(
    scores: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    n_neurons: tl.tensor,
    n_spans: tl.tensor,
    peaks: tl.tensor,
    SPAN: tl.constexpr,
) -> None:
    """Fill the largest finite score of a span, or -inf.

    Grid: [cluster × span], spans fastest. scores: as in `_load_span`. peaks: [cluster, span] float32, contiguous.
    """
    program = tl.program_id(0).to(tl.int64)
    _, score = _load_span(scores, row_stride, column_stride, n_neurons, n_spans, program, SPAN)
    finite = tl.abs(score) < float("inf")  # [SPAN]
    tl.store(peaks + program, tl.max(tl.where(finite, score, float("-inf")), axis=0))


@jit
def _count_above(
    scores: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    n_neurons: tl.tensor,
    n_spans: tl.tensor,
    peaks: tl.tensor,
    cutoffs: tl.tensor,
    counts: tl.tensor,
    SPAN: tl.constexpr,
) -> None:
    """Fill how many finite scores of a span are larger than the cluster's cutoff.

    Grid: [cluster × span], spans fastest; a span whose peak is not above the cutoff, as most, is not read again.
    scores: as in `_load_span`. peaks: [cluster, span] float32. cutoffs: [cluster] float32, +inf for a cluster that is
    empty. counts: [cluster, span] int64. All contiguous but the scores.
    """
    program = tl.program_id(0).to(tl.int64)
    cutoff = tl.load(cutoffs + program // n_spans)
    count = tl.zeros((), tl.int64)
    if tl.load(peaks + program) > cutoff:
        _, score = _load_span(scores, row_stride, column_stride, n_neurons, n_spans, program, SPAN)
        is_kept = (score > cutoff) & (score < float("inf"))  # [SPAN]
        count += tl.sum(is_kept.to(tl.int32), axis=0)
    tl.store(counts + program, count)


@jit
def _collect(
    scores: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    n_neurons: tl.tensor,
    n_spans: tl.tensor,
    peaks: tl.tensor,
    cutoffs: tl.tensor,
    starts: tl.tensor,
    neurons: tl.tensor,
    kept_scores: tl.tensor,
    SPAN: tl.constexpr,
) -> None:
    """Write what a span keeps side by side, from where the spans before it end.

    Grid: [cluster × span], spans fastest. scores, peaks, cutoffs: as in `_count_above`. starts: [cluster, span] int64,
    the entries of all spans before. neurons: [entry] int32. kept_scores: [entry] float32. Neurons of a cluster ascend.
    """
    program = tl.program_id(0).to(tl.int64)
    cutoff = tl.load(cutoffs + program // n_spans)
    if tl.load(peaks + program) > cutoff:
        neuron, score = _load_span(scores, row_stride, column_stride, n_neurons, n_spans, program, SPAN)
        is_kept = (score > cutoff) & (score < float("inf"))  # [SPAN]
        entry = tl.load(starts + program) + tl.cumsum(is_kept.to(tl.int32), axis=0) - 1  # [SPAN]
        tl.store(neurons + entry, neuron.to(tl.int32), mask=is_kept)
        tl.store(kept_scores + entry, score, mask=is_kept)


@jit
def _count(neurons: tl.tensor, n_entries: tl.tensor, counts: tl.tensor, SPAN: tl.constexpr) -> None:
    """Add 1 to the count of every neuron each time that it comes.

    Grid: [span of SPAN entries]. neurons: [entry] int32. counts: [neuron] int32, zero beforehand; atomic additions of
    integers, whose order changes nothing.
    """
    entry = tl.program_id(0).to(tl.int64) * SPAN + tl.arange(0, SPAN)  # [SPAN]
    valid = entry < n_entries
    neuron = tl.load(neurons + entry, mask=valid, other=0)
    tl.atomic_add(counts + neuron, tl.full((SPAN,), 1, tl.int32), mask=valid)


@jit
def _select(
    offsets: tl.tensor,
    neurons: tl.tensor,
    scores: tl.tensor,
    weights: tl.tensor,
    entries: tl.tensor,
    v: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Fill the entries of a cluster's first v: each time the largest product after the one before, at the first entry.

    Grid: [cluster]. A program goes through its entries v times, BLOCK at a time: v is small, and so are clusters.

    offsets: [cluster + 1] int64. neurons: [entry] int32, ascending within a cluster. scores: [entry] float32. weights:
    [neuron] float32, NaN for what is never chosen: a NaN product compares false. entries: [cluster, v] int64,
    contiguous, written whole; -1 where products run out. Ties go to the earlier entry, the smaller neuron.
    """
    cluster = tl.program_id(0).to(tl.int64)
    first, stop = tl.load(offsets + cluster), tl.load(offsets + cluster + 1)
    last = tl.full((), float("inf"), tl.float32)
    last_entry = tl.full((), -1, tl.int64)
    for rank in range(0, v):
        best = tl.full((), float("-inf"), tl.float32)
        best_entry = tl.full((), -1, tl.int64)
        for start in range(first, stop, BLOCK):
            entry = start + tl.arange(0, BLOCK).to(tl.int64)  # [BLOCK]
            valid = entry < stop
            neuron = tl.load(neurons + entry, mask=valid, other=0)
            weight = tl.load(weights + neuron, mask=valid, other=0.0)
            product = tl.load(scores + entry, mask=valid, other=0.0) * weight  # [BLOCK]
            later = valid & (
                (product < last) | ((product == last) & (entry > last_entry))
            )  # [BLOCK]; not taken in a round before
            product = tl.where(later, product, float("-inf"))
            largest = tl.max(product, axis=0)  # scalar
            largest_entry = tl.min(tl.where(later & (product == largest), entry, stop), axis=0)  # scalar
            better = largest > best
            best = tl.where(better, largest, best)
            best_entry = tl.where(better, largest_entry, best_entry)
        tl.store(entries + cluster * v + rank, best_entry)
        last = best
        last_entry = best_entry
