"""Compacted blocks on a GPU: what differs from the common row, moved together by a prefix sum, in the same order every time."""

from typing import Any

import numpy as np
import torch
import triton.language as tl
from torch import Tensor

from actstore.kernels.compaction.compacted import SPAN, Compacted, Part, parts_of
from actstore.kernels.gpu import as_bits, jit, launch

LOOK = 1024  # slots of a row that are looked at together: eight a thread

_DTYPES = {np.int16: torch.int16, np.int32: torch.int32, np.uint8: torch.uint8}


def compact(block: Tensor, base: Tensor, capacity: int, out: Compacted[Tensor] | None = None) -> Compacted[Tensor]:
    """What of `block` [neuron, slot] differs from `base` [slot], of its dtype; as `api.compact`, without waiting for it."""
    bits, common = as_bits(block), as_bits(base)
    if block.ndim != 2 or (block.numel() and block.shape[1] > 1 and block.stride(1) != 1):
        properties = f"{list(block.shape)} with strides {list(block.stride())}"
        raise ValueError(f"block must be [neuron, slot], contiguous along its slots, not {properties}")
    if common.shape != bits.shape[1:] or common.dtype != bits.dtype or base.device != block.device:
        found = f"{base.dtype} {list(base.shape)} on {base.device}"
        raise ValueError(f"base must be {block.dtype} [{block.shape[1]}] on {block.device}, not {found}")
    n_neurons, n_slots = block.shape
    if out is None:
        parts = parts_of(n_neurons, n_slots, capacity, block.element_size())
        out = Compacted(**{name: _empty(part, block.device) for name, part in parts.items()})
    if common.data_ptr() != out.base.data_ptr():
        out.base.copy_(common)
    if not block.numel():
        out.totals.zero_()
        return out
    launch(
        _compact,
        n_neurons,
        bits,
        bits.stride(0),
        n_slots,
        out.base,
        out.totals,
        out.counts,
        out.counts.shape[1],
        out.offsets,
        out.values,
        capacity,
        LOOK=LOOK,
        SPAN=SPAN,
        on=block,
        fuse=False,
    )
    return out


def common_row(block: Tensor, fill: int, out: Tensor | None = None) -> Tensor:
    """The row [slot] from which few values of a sparse block [neuron, slot] differ, in its dtype: 0 or the bits `fill`.

    `fill` where the first neuron has it: what is missing of one neuron of a layer is missing of all. out: its bits are written
    there, where given.
    """
    first = as_bits(block)[0]
    return torch.mul(first, first == fill, out=out).view(block.dtype)


def _empty(part: Part, device: torch.device) -> Tensor:
    dtype: Any = part.dtype.type
    return torch.empty(part.shape, dtype=_DTYPES[dtype], device=device)


@jit
def _compact(
    block: tl.tensor,
    pitch: tl.tensor,
    n_slots: tl.tensor,
    base: tl.tensor,
    totals: tl.tensor,
    counts: tl.tensor,
    n_spans: tl.tensor,
    offsets: tl.tensor,
    values: tl.tensor,
    capacity: tl.tensor,
    LOOK: tl.constexpr,
    SPAN: tl.constexpr,
) -> None:
    """Move what differs from the common row together, for one neuron.

    Grid: [neuron]. A program reads its row once, LOOK slots at a time; a prefix sum says where each entry goes.

    block: [neuron, slot] bits as integers, `pitch` elements from one neuron to the next, contiguous along slots. base:
    [slot], likewise. totals: [neuron] int32. counts: [neuron, span] int16, of `n_spans` spans of SPAN slots. offsets:
    [neuron, entry] uint8 and values: [neuron, entry] of the block's integers, `capacity` entries each, all contiguous.
    Entries beyond the capacity are counted and not kept.
    """
    neuron = tl.program_id(0).to(tl.int64)
    total = tl.zeros((), tl.int32)
    for start in range(0, n_slots, LOOK):
        slots = start + tl.arange(0, LOOK)  # [LOOK]
        inside = slots < n_slots
        raw = tl.load(block + neuron * pitch + slots, mask=inside, other=0)  # [LOOK]
        common = tl.load(base + slots, mask=inside, other=0)  # [LOOK]
        differs = (raw != common).to(tl.int32)  # what is masked does not
        entry = total + tl.cumsum(differs, axis=0) - differs  # [LOOK]
        is_kept = (differs != 0) & (entry < capacity)
        tl.store(offsets + neuron * capacity + entry, (slots % SPAN).to(tl.uint8), mask=is_kept)
        tl.store(values + neuron * capacity + entry, raw, mask=is_kept)
        by_span = tl.sum(tl.reshape(differs, [LOOK // SPAN, SPAN]), axis=1)  # [LOOK / SPAN]
        spans = start // SPAN + tl.arange(0, LOOK // SPAN)  # [LOOK / SPAN]
        tl.store(counts + neuron * n_spans + spans, by_span.to(tl.int16), mask=spans < n_spans)
        total += tl.sum(by_span, axis=0)
    tl.store(totals + neuron, total)
