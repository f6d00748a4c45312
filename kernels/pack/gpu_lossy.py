"""The lossy precisions of a packed block on a GPU: int8 steps, and zeros below a threshold; the bits are the CPU's.

One program takes one neuron's row. A threshold is looked for in registers, where a row of `HELD` values fits; a longer one is
read several times over. Everything but the division into steps is done on the integers that the values' bits are.
"""

import math
from typing import NamedTuple, Self

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from actstore.kernels.gpu import FORMATS, INFINITY, MAGNITUDE, TritonFunction, as_bits, jit, launch, upload, widen
from actstore.kernels.pack.steps import FREE_BITS, INFINITE, MARK, NO_VALUE

SPAN = 1024  # values of a row that are looked at together: eight a thread
HELD = 16_384  # values of the longest row that the threads of a program keep in registers: 32 a thread, as many threads as are
MAX_WARPS = 16  # in 16 warps; a block has that many slots by default

_NO_SCALE = tl.constexpr(float("inf"))
_FREE_BITS = tl.constexpr(FREE_BITS)
_NO_VALUE = tl.constexpr(NO_VALUE)
_INFINITE = tl.constexpr(INFINITE)
_MARK = tl.constexpr(MARK)
_LARGEST = tl.constexpr(float(np.finfo(np.float32).max))
_TO_INTEGER = tl.constexpr(1.5 * 2.0**52)
"""Adding this to a float64 and taking it off again rounds it to an integer, ties to even."""


def quantise(block: Tensor, out: Tensor | None = None, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The int8 steps [neuron, slot] of a block and the scale [neuron] of a step; as `api.quantise`, bit for bit.

    out, scale: written and returned where given.
    """
    source = _check_block(block)
    if out is None:
        out = torch.empty(block.shape, dtype=torch.int8, device=block.device)
    elif out.dtype != torch.int8 or out.shape != block.shape or out.device != block.device:
        properties = f"{out.dtype} {list(out.shape)} on {out.device}"
        raise ValueError(f"out must be int8 {list(block.shape)} on {block.device}, not {properties}")
    if scale is None:
        scale = torch.empty(len(block), dtype=torch.float32, device=block.device)
    if not block.numel():
        scale.zero_()
        return out, scale
    launch(
        _quantise,
        len(block),
        source,
        source.stride(0),
        source.shape[1],
        out,
        out.stride(0),
        scale,
        SOURCE=FORMATS[block.dtype],
        SPAN=SPAN,
        on=block,
        fuse=False,
    )
    return out, scale


class Share(NamedTuple):
    """What a block is sparsified by, on the device, for all of its layers."""

    keep: Tensor
    """[1] float64: as an argument of a kernel it would be rounded to float32."""
    counted: Tensor
    """[slot] uint8."""

    @classmethod
    def of(cls, keep: float, counted: NDArray[np.bool_], device: torch.device) -> Self:
        """Uploaded without waiting."""
        return cls(upload(np.array([keep], np.float64), device), upload(counted.astype(np.uint8), device))


def sparsify(block: Tensor, keep: float, counted: NDArray[np.bool_] | None = None) -> tuple[Tensor, Tensor]:
    """The threshold [neuron] and how many non-zero values were dropped [neuron]; as `api.sparsify`, bit for bit."""
    if counted is None:
        counted = np.ones(block.shape[1], np.bool_)
    threshold = torch.empty(len(block), dtype=torch.float32, device=block.device)
    dropped = torch.empty(len(block), dtype=torch.int64, device=block.device)
    sparsify_into(block, Share.of(keep, counted, block.device), threshold, dropped)
    return threshold, dropped


def sparsify_into(block: Tensor, share: Share, threshold: Tensor, dropped: Tensor) -> None:
    """`sparsify`, whose results are written into `threshold` [neuron] float32 and `dropped` [neuron] int64."""
    source = _check_block(block)
    if not block.numel():
        threshold.zero_()
        dropped.zero_()
        return
    n_slots = source.shape[1]
    row = triton.next_power_of_2(n_slots)
    kernel: TritonFunction[..., None] = _sparsify_long
    sizes = {"SPAN": SPAN}
    if n_slots <= HELD:
        kernel, sizes = _sparsify_held, {"ROW": row, "num_warps": max(1, min(MAX_WARPS, row // SPAN))}
    launch(
        kernel,
        len(block),
        source,
        source.stride(0),
        n_slots,
        share.counted,
        share.keep,
        threshold,
        dropped,
        SOURCE=FORMATS[block.dtype],
        INFINITE=int(as_bits(torch.tensor(math.inf, dtype=block.dtype))),
        N_BITS=torch.finfo(block.dtype).bits - 1,
        on=block,
        fuse=False,
        **sizes,
    )


def _check_block(block: Tensor) -> Tensor:
    if block.ndim != 2 or (block.numel() and block.shape[1] > 1 and block.stride(1) != 1):
        properties = f"{list(block.shape)} with strides {list(block.stride())}"
        raise ValueError(f"block must be [neuron, slot], contiguous along its slots, not {properties}")
    return as_bits(block)


@jit
def _quantise(
    block: tl.tensor,
    pitch: tl.tensor,
    n_slots: tl.tensor,
    out: tl.tensor,
    out_pitch: tl.tensor,
    scales: tl.tensor,
    SOURCE: tl.constexpr,
    SPAN: tl.constexpr,
) -> None:
    """Fill the int8 steps of one neuron and their scale.

    Grid: [neuron]. A program reads its row twice, SPAN slots at a time: for the largest magnitude, then for the steps.

    block: [neuron, slot] the bits of SOURCE as integers, `pitch` elements from one neuron to the next, contiguous along
    slots. out: [neuron, slot] int8, likewise with `out_pitch`. scales: [neuron] float32. NaN becomes `NO_VALUE`, an
    infinity ±INFINITE, which the lowest bit of the scale then says; a row of zeros has scale 0. The bits are those of
    the CPU.
    """
    neuron = tl.program_id(0).to(tl.int64)
    largest, marks = tl.zeros([SPAN], tl.int32), tl.zeros([SPAN], tl.int32)
    for span_start in range(0, n_slots, SPAN):
        slots = span_start + tl.arange(0, SPAN)
        raw = tl.load(block + neuron * pitch + slots, mask=slots < n_slots, other=0)
        magnitude = widen(raw, SOURCE) & MAGNITUDE  # [SPAN]
        largest = tl.maximum(largest, tl.where(magnitude < INFINITY, magnitude, 0))
        marks = tl.maximum(marks, tl.where(magnitude == INFINITY, _MARK, 0))
    peak, mark = tl.max(largest, axis=0), tl.max(marks, axis=0)  # scalars
    n_steps = tl.where(mark > 0, _INFINITE - 1, _INFINITE).to(tl.float64)
    # A float32 quotient taken in float64 and rounded once more is the nearest float32; compiled `/` on float32 is not.
    quotient = (peak.to(tl.float32, bitcast=True).to(tl.float64) / n_steps).to(tl.float32).to(tl.int32, bitcast=True)
    scale_bits = tl.where(peak > 0, tl.maximum((quotient + _FREE_BITS) & ~_FREE_BITS, _FREE_BITS + 1), 0)
    # Just below the largest float, the largest multiple would be infinite: there it is rounded down.
    too_large = scale_bits.to(tl.float32, bitcast=True).to(tl.float64) * n_steps > _LARGEST
    scale_bits = tl.where(too_large, scale_bits - (_FREE_BITS + 1), scale_bits)
    scale = scale_bits.to(tl.float32, bitcast=True)
    exact = tl.where(peak > 0, scale, _NO_SCALE).to(tl.float64)  # x / inf is 0
    for span_start in range(0, n_slots, SPAN):
        slots = span_start + tl.arange(0, SPAN)
        raw = tl.load(block + neuron * pitch + slots, mask=slots < n_slots, other=0)
        bits = widen(raw, SOURCE)  # [SPAN]
        magnitude = bits & MAGNITUDE
        value = tl.where(magnitude < INFINITY, bits, 0).to(tl.float32, bitcast=True)
        nearest = (value.to(tl.float64) / exact + _TO_INTEGER) - _TO_INTEGER
        special = tl.where(magnitude == INFINITY, tl.where(bits < 0, -_INFINITE, _INFINITE), _NO_VALUE)
        steps = tl.where(magnitude < INFINITY, nearest.to(tl.int32), special)  # [SPAN]
        tl.store(out + neuron * out_pitch + slots, steps.to(tl.int8), mask=slots < n_slots)
    tl.store(scales + neuron, (scale_bits | mark).to(tl.float32, bitcast=True))


@jit
def _load(
    row: tl.tensor,
    counted: tl.tensor,
    slots: tl.tensor,
    n_slots: tl.tensor,
    INFINITE: tl.constexpr,
    N_BITS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The bits of a row at `slots`, and their magnitudes, int32; -1 at slots that are not counted, and for NaN.

    All of one shape. The load's mask is of slots alone, so that what lies side by side is loaded together.
    """
    inside = slots < n_slots
    raw = tl.load(row + slots, mask=inside, other=0)
    considered = tl.load(counted + slots, mask=inside, other=0) != 0
    magnitude = raw.to(tl.int32) & ((1 << N_BITS) - 1)
    return raw, tl.where(considered & (magnitude <= INFINITE), magnitude, -1)


@jit
def _rank(n_infinite: tl.tensor, n_finite: tl.tensor, keep: tl.tensor) -> tl.tensor:
    """How many finite magnitudes come before the threshold in descending order, scalar int32.

    n_infinite, n_finite: scalar int32, of the counted values. keep: [1] float64.
    """
    n_kept = tl.ceil((n_infinite + n_finite).to(tl.float64) * tl.load(keep)).to(tl.int32)
    return tl.maximum(n_kept - n_infinite, 0)


@jit
def _drop(
    row: tl.tensor, slots: tl.tensor, n_slots: tl.tensor, threshold: tl.tensor, N_BITS: tl.constexpr
) -> tl.tensor:
    """Zero the values of a row at `slots` up to a magnitude; 1 for each that was not zero, int32 of the slots' shape.

    What stays is stored too: whole words, of which few would not be touched anyway.
    """
    raw = tl.load(row + slots, mask=slots < n_slots, other=0)
    magnitude = raw.to(tl.int32) & ((1 << N_BITS) - 1)
    drop = magnitude <= threshold
    tl.store(row + slots, tl.where(drop, 0, raw).to(row.dtype.element_ty), mask=slots < n_slots)
    return (drop & (magnitude > 0)).to(tl.int32)


@jit
def _sparsify_held(
    block: tl.tensor,
    pitch: tl.tensor,
    n_slots: tl.tensor,
    counted: tl.tensor,
    keep: tl.tensor,
    thresholds: tl.tensor,
    dropped: tl.tensor,
    SOURCE: tl.constexpr,
    INFINITE: tl.constexpr,
    N_BITS: tl.constexpr,
    ROW: tl.constexpr,
) -> None:
    """Zero the small values of one neuron in place; fill its threshold and how many non-zero values were dropped.

    Grid: [neuron]. A program keeps its row in registers while it looks for the threshold, and reads it once more to drop.

    block: [neuron, slot] the bits of SOURCE as integers, `pitch` elements from one neuron to the next, contiguous along
    slots. counted: [slot] uint8. keep: [1] float64. thresholds: [neuron] float32. dropped: [neuron] int64. INFINITE: the
    bits of infinity; N_BITS: those of a magnitude; ROW: the number of slots, rounded up to a power of two. Magnitudes are
    compared as integers; of those above INFINITE, NaN, none is counted or dropped.
    """
    row = block + tl.program_id(0).to(tl.int64) * pitch
    slots = tl.arange(0, ROW)  # [ROW]
    _, magnitude = _load(row, counted, slots, n_slots, INFINITE, N_BITS)  # [ROW]
    n_infinite = tl.sum((magnitude == INFINITE).to(tl.int32), axis=0)  # scalars
    n_finite = tl.sum((magnitude >= 0).to(tl.int32), axis=0) - n_infinite
    n_larger = _rank(n_infinite, n_finite, keep)
    finite = tl.where(magnitude == INFINITE, -1, magnitude)  # [ROW]
    # Bit by bit from the top: the largest number that more than n_larger of the magnitudes reach.
    threshold = tl.zeros((), tl.int32)  # the bits of a magnitude
    for i in range(N_BITS):
        candidate = threshold + (1 << (N_BITS - 1 - i))
        n_reaching = tl.sum((finite >= candidate).to(tl.int32), axis=0)
        threshold = tl.where(n_reaching > n_larger, candidate, threshold)
    threshold = tl.where(n_larger < n_finite, threshold, 0)
    n_dropped = tl.sum(_drop(row, slots, n_slots, threshold, N_BITS), axis=0)
    exact = widen(threshold.to(block.dtype.element_ty), SOURCE).to(tl.float32, bitcast=True)
    tl.store(thresholds + tl.program_id(0), exact)
    tl.store(dropped + tl.program_id(0), n_dropped.to(tl.int64))


@jit
def _sparsify_long(
    block: tl.tensor,
    pitch: tl.tensor,
    n_slots: tl.tensor,
    counted: tl.tensor,
    keep: tl.tensor,
    thresholds: tl.tensor,
    dropped: tl.tensor,
    SOURCE: tl.constexpr,
    INFINITE: tl.constexpr,
    N_BITS: tl.constexpr,
    SPAN: tl.constexpr,
) -> None:
    """What `_sparsify_held` does, for a row that does not fit in registers.

    Grid: [neuron]. A program reads its row N_BITS + 2 times, SPAN slots at a time. Arguments as there.
    """
    row = block + tl.program_id(0).to(tl.int64) * pitch
    finite, infinite = tl.zeros([SPAN], tl.int32), tl.zeros([SPAN], tl.int32)
    for span_start in range(0, n_slots, SPAN):
        slots = span_start + tl.arange(0, SPAN)
        _, magnitude = _load(row, counted, slots, n_slots, INFINITE, N_BITS)  # [SPAN]
        infinite += (magnitude == INFINITE).to(tl.int32)
        finite += ((magnitude >= 0) & (magnitude < INFINITE)).to(tl.int32)
    n_finite = tl.sum(finite, axis=0)
    n_larger = _rank(tl.sum(infinite, axis=0), n_finite, keep)
    threshold = tl.zeros((), tl.int32)
    for i in range(N_BITS):
        candidate = threshold + (1 << (N_BITS - 1 - i))
        reaching = tl.zeros([SPAN], tl.int32)
        for span_start in range(0, n_slots, SPAN):
            slots = span_start + tl.arange(0, SPAN)
            _, magnitude = _load(row, counted, slots, n_slots, INFINITE, N_BITS)
            reaching += ((magnitude >= candidate) & (magnitude < INFINITE)).to(tl.int32)
        threshold = tl.where(tl.sum(reaching, axis=0) > n_larger, candidate, threshold)
    threshold = tl.where(n_larger < n_finite, threshold, 0)
    n_dropped = tl.zeros([SPAN], tl.int32)
    for span_start in range(0, n_slots, SPAN):
        n_dropped += _drop(row, span_start + tl.arange(0, SPAN), n_slots, threshold, N_BITS)
    exact = widen(threshold.to(block.dtype.element_ty), SOURCE).to(tl.float32, bitcast=True)
    tl.store(thresholds + tl.program_id(0), exact)
    tl.store(dropped + tl.program_id(0), tl.sum(n_dropped, axis=0).to(tl.int64))
