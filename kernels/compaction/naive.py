"""Compacted blocks: the specification."""

from typing import TYPE_CHECKING, Any

import numpy as np

from actstore.kernels.compaction.compacted import SPAN, Compacted, empty

if TYPE_CHECKING:
    from numpy.typing import NDArray


def compact(block: "NDArray[Any]", base: "NDArray[Any]", capacity: int) -> "Compacted[NDArray[Any]]":
    """The entries of `block` [neuron, slot] whose bits are not those of `base` [slot], at most `capacity` per neuron."""
    result = empty(len(block), len(base), capacity, block.itemsize)
    result.base[:] = base.view(result.base.dtype)
    for neuron, row in enumerate(block):
        bits = row.view(result.base.dtype)
        slots = np.flatnonzero(bits != result.base)
        result.totals[neuron] = len(slots)
        result.counts[neuron] = np.bincount(slots // SPAN, minlength=result.counts.shape[1])
        kept = slots[:capacity]
        result.offsets[neuron, : len(kept)] = kept % SPAN
        result.values[neuron, : len(kept)] = bits[kept]
    return result


def expand(compacted: "Compacted[NDArray[Any]]") -> "NDArray[Any]":
    """The bits [neuron, slot] of the block."""
    out = np.tile(compacted.base, (len(compacted.totals), 1))
    for neuron, total in enumerate(compacted.totals):
        spans = np.repeat(np.arange(compacted.counts.shape[1]), compacted.counts[neuron])
        out[neuron, spans * SPAN + compacted.offsets[neuron, :total]] = compacted.values[neuron, :total]
    return out
