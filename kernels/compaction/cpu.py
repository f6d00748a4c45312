"""Compacted blocks, compiled. Arguments were checked by `api`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.compaction.compacted import SPAN, Compacted
from actstore.kernels.jit import jit, over_neurons

Integers = NDArray[np.int16 | np.int32]


def compact(bits: Integers, result: Compacted[NDArray[Any]], threads: int) -> None:
    """Fill all of `result` but its base; see `api.compact`."""
    over_neurons(
        _compact, len(bits), 1, threads, bits, result.base, result.totals, result.counts, result.offsets, result.values
    )


def expand(compacted: Compacted[NDArray[Any]], first: int, out: Integers, threads: int) -> None:
    """Fill `out` [neuron, slot] with the neurons from `first` on; see `api.expand`."""
    parts = compacted.base, compacted.counts, compacted.offsets, compacted.values
    over_neurons(_expand, len(out), 1, threads, first, *parts, out)


@jit
def _compact(
    first: int,
    stop: int,
    bits: Integers,
    base: Integers,
    totals: NDArray[np.int32],
    counts: NDArray[np.int16],
    offsets: NDArray[np.uint8],
    values: Integers,
) -> None:
    """Fill the parts of neurons `first:stop` of `bits` [neuron, slot]."""
    capacity = values.shape[1]
    for neuron in range(first, stop):
        total = 0
        for span in range(counts.shape[1]):
            before = total
            for slot in range(span * SPAN, min((span + 1) * SPAN, base.size)):
                if bits[neuron, slot] != base[slot]:
                    if total < capacity:
                        offsets[neuron, total] = slot - span * SPAN
                        values[neuron, total] = bits[neuron, slot]
                    total += 1
            counts[neuron, span] = total - before
        totals[neuron] = total


@jit
def _expand(
    first: int,
    stop: int,
    origin: int,
    base: Integers,
    counts: NDArray[np.int16],
    offsets: NDArray[np.uint8],
    values: Integers,
    out: Integers,
) -> None:
    """Fill rows `first:stop` of `out` [row, slot], the first of which is neuron `origin`."""
    for i in range(first, stop):
        row, entry = out[i], 0
        row[:] = base
        for span in range(counts.shape[1]):
            start = span * SPAN
            for _ in range(counts[origin + i, span]):
                row[start + offsets[origin + i, entry]] = values[origin + i, entry]
                entry += 1
