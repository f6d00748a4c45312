"""Compacted blocks: checks and dispatch.

A block at precision `sparse` is zero at most slots, and where an expert was not routed to it has no value at all slots of
others. Copied from a GPU as the entries that differ from that, it is a tenth of its bytes, and is the same again afterwards.
"""

from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.compaction import cpu
from actstore.kernels.compaction.compacted import SPAN, Compacted, empty, nbytes_per_neuron
from actstore.kernels.floats import FloatArray, on_gpu

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SPAN", "Compacted", "compact", "expand", "nbytes_per_neuron"]


@overload
def compact(
    block: FloatArray, base: FloatArray, capacity: int, threads: int | None = None
) -> Compacted[NDArray[Any]]: ...
@overload
def compact(block: "Tensor", base: "Tensor", capacity: int, threads: int | None = None) -> "Compacted[Tensor]": ...
def compact(block: Any, base: Any, capacity: int, threads: int | None = None) -> Any:
    """Every value of `block` [neuron, slot] whose bits are not those of `base` [slot], with its place.

    block: float32, float16, or uint16 for bfloat16, contiguous along slots; a tensor on a GPU gives tensors there. Of a neuron
    at most `capacity` entries are kept, and all are counted: one whose total is larger cannot be expanded. Raises ValueError
    for shapes and dtypes that do not fit.
    """
    if on_gpu(block):
        from actstore.kernels.compaction import gpu  # only here: Triton takes its time to load

        return gpu.compact(block, base, capacity)
    if block.ndim != 2 or base.shape != block.shape[1:] or base.dtype != block.dtype:
        found = f"{base.dtype} {list(base.shape)} for {block.dtype} {list(block.shape)}"
        raise ValueError(f"base must hold one value for each slot of block, of its dtype, not {found}")
    result = empty(len(block), len(base), capacity, block.itemsize)
    result.base[:] = base.view(result.base.dtype)
    cpu.compact(np.ascontiguousarray(block).view(result.base.dtype), result, threads or 1)
    return result


def expand(
    compacted: Compacted[NDArray[Any]], first: int = 0, stop: int | None = None, threads: int | None = None
) -> NDArray[Any]:
    """The bits [neuron, slot] of neurons `first:stop` of a compacted block, of all neurons unless said.

    The result does not depend on `threads`, one unless said. Raises ValueError where a neuron has more entries than were kept.
    """
    first, stop, _ = slice(first, stop).indices(len(compacted.totals))
    capacity = compacted.values.shape[1]
    largest = int(compacted.totals[first:stop].max(initial=0))
    if largest > capacity:
        raise ValueError(f"a neuron has {largest} entries, of which {capacity} were kept: read the block itself")
    out = np.empty((max(stop - first, 0), len(compacted.base)), compacted.base.dtype)
    cpu.expand(compacted, first, out, threads or 1)
    return out
