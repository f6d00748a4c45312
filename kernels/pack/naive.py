"""Packing and the lossy precisions: the specification, in plain numpy."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.floats import FloatArray, as_array, cast, decode
from actstore.kernels.pack.columns import Columns
from actstore.kernels.pack.statistics import HISTOGRAM_EDGES, N_BINS, Statistics
from actstore.kernels.pack.steps import FREE_BITS, INFINITE, MARK, NO_VALUE
from actstore.kernels.top_k import naive as naive_top_k

if TYPE_CHECKING:
    import torch


def pack(
    values: "torch.Tensor | FloatArray", columns: Columns, out: FloatArray | None, statistics: Statistics | None
) -> None:
    """Put the columns' rows of `values` [row, neuron] into their slots of `out` [neuron, slot]; add to `statistics`."""
    packed_values = as_array(values)[columns.rows].T
    stored_values = packed_values if out is None else cast(packed_values, out.dtype)
    if out is not None:
        out[:, columns.slots] = stored_values
    if statistics is not None:
        n_labels, k = len(statistics.positives), statistics.exemplar_values.shape[1]
        batch_statistics = summarise(decode(packed_values), columns, n_labels, k)
        batch_statistics.overflow[:] = (np.isfinite(decode(packed_values)) & np.isinf(decode(stored_values))).sum(
            axis=1
        )
        statistics.merge(batch_statistics)


def summarise(values: NDArray[np.float32], columns: Columns, n_labels: int, k: int) -> Statistics:
    """The statistics of `values` [neuron, token]."""
    result = Statistics.empty(len(values), n_labels, k)
    counted = np.broadcast_to(columns.counted, values.shape)
    finite = np.isfinite(values) & counted
    result.count[:] = finite.sum(axis=1)
    result.non_finite[:] = (counted & ~finite).sum(axis=1)
    for neuron in np.flatnonzero(result.count):
        exact = values[neuron, finite[neuron]].astype(np.float64)
        result.mean[neuron] = exact.mean()
        result.m2[neuron] = ((exact - exact.mean()) ** 2).sum()
        result.minimum[neuron] = exact.min()
        result.maximum[neuron] = exact.max()
        result.histogram[neuron] = np.bincount(bins(exact), minlength=N_BINS)
    _add_positives(finite & (values > 0), columns, result.positives)
    best = naive_top_k.top_k(
        np.where(finite, values, np.float32(np.nan)), columns.first_token + columns.slots, k, columns.segments
    )
    result.exemplar_values[:], result.exemplar_tokens[:] = best
    return result


def bins(values: NDArray[np.floating]) -> NDArray[np.intp]:
    """The histogram bin of every finite value: a value on an edge belongs to the bin farther from zero."""
    return (
        np.where(
            values >= 0,
            np.searchsorted(HISTOGRAM_EDGES, values, side="right"),
            np.searchsorted(HISTOGRAM_EDGES, values, side="left"),
        )
        - 1
    )


def pack_signs(
    values: "torch.Tensor | FloatArray",
    columns: Columns,
    out_bits: NDArray[np.uint8],
    positives: NDArray[np.int64] | None,
) -> None:
    """Set bit `slot` of `out_bits` [neuron, slot/8], little bit order, where a value is above zero; count by label."""
    above = decode(as_array(values))[columns.rows].T > 0
    bits = np.unpackbits(out_bits, axis=1, bitorder="little")
    bits[:, columns.slots] |= above
    out_bits[:] = np.packbits(bits, axis=1, bitorder="little")
    if positives is not None:
        _add_positives(above & columns.counted, columns, positives)


def quantise(block: FloatArray) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8 [neuron, slot] and scale [neuron] of a block [neuron, slot]; see `api.quantise`."""
    values = decode(block)
    finite, infinite = np.isfinite(values), np.isinf(values)
    largest = np.abs(np.where(finite, values, 0)).max(axis=1, initial=0)
    marked = infinite.any(axis=1)
    n_steps = np.where(marked, INFINITE - 1, INFINITE).astype(np.float32)
    # Rounded up to 17 bits of mantissa, the scale leaves room for seven more: every multiple by -127..127 is exact.
    bits = (largest / n_steps).view(np.uint32)
    bits = np.where(largest > 0, np.maximum((bits + FREE_BITS) & ~np.uint32(FREE_BITS), FREE_BITS + 1), 0)
    bits = bits.astype(np.uint32)
    # Just below the largest float, the largest multiple would be infinite: there it is rounded down.
    too_large = bits.view(np.float32).astype(np.float64) * n_steps > np.finfo(np.float32).max
    bits[too_large] -= np.uint32(FREE_BITS + 1)
    scale = bits.view(np.float32)
    steps = np.divide(
        values, scale[:, None], where=finite & (scale[:, None] > 0), out=np.zeros(values.shape), dtype=np.float64
    )
    others = np.where(infinite, np.copysign(INFINITE, values), NO_VALUE)
    return np.where(finite, np.rint(steps), others).astype(np.int8), (bits | (marked * np.uint32(MARK))).view(
        np.float32
    )


def sparsify(
    block: FloatArray, keep: float, counted: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Zero all but the largest magnitudes of every neuron of a block [neuron, slot], in place; see `api.sparsify`."""
    values = decode(block)
    finite = np.isfinite(values)
    threshold = np.zeros(len(values), np.float32)
    for neuron, row in enumerate(values):
        considered = ~np.isnan(row) if counted is None else ~np.isnan(row) & counted
        largest_first = np.sort(np.abs(row[considered & finite[neuron]]))[::-1]
        n_values = considered.sum()
        n_kept = max(0, int(np.ceil(keep * n_values)) - int(n_values - len(largest_first)))
        if n_kept < len(largest_first):
            threshold[neuron] = largest_first[n_kept]
    drop = finite & (np.abs(values) <= threshold[:, None])
    dropped = (drop & (values != 0)).sum(axis=1)
    block[drop] = 0
    return threshold, dropped


def _add_positives(above: NDArray[np.bool_], columns: Columns, positives: NDArray[np.int64]) -> None:
    borders = zip(columns.segments[:-1], columns.segments[1:], strict=True)
    for (start, stop), labels in zip(borders, columns.labels, strict=True):
        for label in labels[labels >= 0]:
            positives[label] += above[:, start:stop].sum(axis=1)
