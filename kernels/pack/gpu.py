"""Packing token-major activations into neuron-major blocks on a GPU; takes tensors of any device that Triton runs on.

One program takes one piece of a text window for `WIDTH` neurons: it loads a tile of tokens × neurons, stores it transposed
and cast, and gathers its statistics from registers, so that every value is read once. Nothing waits for the device.

The sizes below follow from what Triton 3.6 to 3.9 compile for sm_90, not from timings. A value costs some 75 instructions,
5 of them in float64, so that arithmetic and not memory bounds the kernel; an element of the tile that follows its own tokens
through the piece halves them, for nothing crosses threads until the piece ends.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from actstore.kernels.gpu import (
    FORMATS,
    INFINITY,
    MAGNITUDE,
    as_bits,
    jit,
    jit_for_any,
    launch,
    narrow,
    overflows,
    widen,
)
from actstore.kernels.pack.columns import Columns
from actstore.kernels.pack.gpu_checks import check_block, check_device, check_labels, check_rows, check_statistics
from actstore.kernels.pack.gpu_columns import columns_on, octets_on, routed_on
from actstore.kernels.pack.gpu_statistics import (
    BINS,
    MIDDLE,
    DeviceStatistics,
    Partials,
    count_bins,
    find_first_largest,
    merge,
    reduce_moments,
)

WIDTH = 64  # neurons of a tile: a whole 128-byte line of 16-bit values per row
DEPTH = 16  # tokens of a tile
WARPS = 8  # gives a thread 4 elements of a tile: 128 registers, so that 16 warps share a processor; 8 elements need 240
OCTETS = 8  # bytes of sign bits per neuron: a tile of 64 tokens

_FIELD = tl.constexpr((1 << 10) - 1)  # holds the tokens of a piece
_NO_SEGMENT = tl.constexpr(0x7FFFFFFF)


def pack(
    values: Tensor,
    columns: Columns,
    out: Tensor | None,
    statistics: DeviceStatistics | None,
    rows: Tensor | None = None,
) -> None:
    """Fill the columns' slots of `out` and add to `statistics`; as `api.pack`, but all on the device of `values`.

    rows: [row] int64, where `values` are an expert's: the row of the batch that each is. Other slots are left as they are.

    out: [neuron, slot] float32, float16 or bfloat16. Counts, extremes, histogram and exemplars are those of the CPU, to the
    bit but for the sign of a zero; moments are summed in float64 in an order that depends on the kind of GPU alone.
    """
    n_neurons = check_rows(values, columns, rows)
    if out is not None:
        check_block(out, "out", values, n_neurons, columns.n_slots)
    if statistics is not None:
        check_statistics(statistics.count, values, n_neurons)
        check_labels(statistics.positives, columns, n_neurons)
    device_columns = columns_on(values.device, columns, rows)
    if values.numel() == 0 or device_columns.n_pieces == 0 or (out is None and statistics is None):
        return
    source = as_bits(values)
    # Kernels take no tensor where they touch none.
    partials = None if statistics is None else Partials.empty(device_columns.n_pieces, n_neurons, values.device)
    n_tiles = triton.cdiv(n_neurons, WIDTH)
    launch(
        _pack,
        n_tiles * device_columns.n_pieces,
        source,
        source.stride(0),
        source.stride(1),
        n_neurons,
        n_tiles,
        device_columns.rows,
        device_columns.slots,
        device_columns.counted,
        device_columns.piece_starts,
        device_columns.piece_segments,
        device_columns.labels,
        device_columns.labels.shape[1],
        None if out is None else as_bits(out),
        0 if out is None else out.stride(0),
        partials,
        None if statistics is None else statistics.histogram,
        None if statistics is None else statistics.non_finite,
        None if statistics is None else statistics.overflow,
        None if statistics is None else statistics.positives,
        SOURCE=FORMATS[values.dtype],
        TARGET=FORMATS[values.dtype if out is None else out.dtype],
        STORING=out is not None,
        COUNTING=statistics is not None,
        WIDTH=WIDTH,
        DEPTH=DEPTH,
        num_warps=WARPS,
        on=values,
        fuse=True,  # moments, in float64, are the only sums of products
    )
    if partials is not None and statistics is not None:
        merge(partials, device_columns, statistics)


def pack_signs(
    values: Tensor, columns: Columns, out_bits: Tensor, positives: Tensor | None = None, rows: Tensor | None = None
) -> None:
    """Set the bits of positive values and count them by label; as `api.pack_signs`, but all on the device of `values`.

    out_bits: [neuron, slot / 8] uint8. positives: [label, neuron] int32. rows: as for `pack`.
    """
    n_neurons = check_rows(values, columns, rows)
    if out_bits.dtype != torch.uint8:
        raise TypeError(f"out_bits must be uint8, not {out_bits.dtype}")
    check_block(out_bits, "out_bits", values, n_neurons, -(-columns.n_slots // 8))
    if positives is not None:
        check_device(positives, "positives", values)
        check_labels(positives, columns, n_neurons)
    octets = octets_on(values.device, columns)
    n_octets = len(octets.rows) // 8
    if values.numel() == 0 or n_octets == 0:
        return
    octet_rows = octets.rows if rows is None else routed_on(values.device, columns, rows).octets(octets)
    source = as_bits(values)
    labels = columns_on(values.device, columns).labels
    n_tiles = triton.cdiv(n_neurons, WIDTH)
    launch(
        _pack_signs,
        n_tiles * triton.cdiv(n_octets, OCTETS),
        source,
        source.stride(0),
        source.stride(1),
        n_neurons,
        n_tiles,
        octet_rows,
        octets.segments,
        n_octets,
        labels,
        labels.shape[1],
        out_bits,
        out_bits.stride(0),
        octets.first,
        positives,
        SOURCE=FORMATS[values.dtype],
        COUNTING=positives is not None and labels.shape[1] > 0,
        WIDTH=WIDTH,
        OCTETS=OCTETS,
        on=values,
        fuse=False,
    )


@jit
def _count_by_label(
    counts: tl.tensor,
    segment: tl.tensor,
    labels: tl.tensor,
    n_columns: tl.tensor,
    positives: tl.tensor,
    neurons: tl.tensor,
    n_neurons: tl.tensor,
) -> None:
    """Add the positive `counts` of `neurons` to every label of a segment in `positives`.

    counts: [WIDTH] int32. neurons: [WIDTH] int64. segment: scalar int64, the row of labels [segment, column] int32, -1
    for none. positives: [label, neuron] int32, contiguous; atomic additions of integers, whose order changes nothing.
    """
    for column in range(n_columns):
        label = tl.load(labels + segment * n_columns + column)
        labelled = tl.where(label >= 0, counts, 0)  # [WIDTH]; 0 without a label, and then nothing is added
        targets = positives + label.to(tl.int64) * n_neurons + neurons
        tl.atomic_add(targets, labelled, mask=(neurons < n_neurons) & (labelled > 0), sem="relaxed")


@jit
def _pack(
    values: tl.tensor,
    row_stride: tl.tensor,
    neuron_stride: tl.tensor,
    n_neurons: tl.tensor,
    n_tiles: tl.tensor,
    rows: tl.tensor,
    slots: tl.tensor,
    counted: tl.tensor,
    piece_starts: tl.tensor,
    piece_segments: tl.tensor,
    labels: tl.tensor,
    n_columns: tl.tensor,
    out: tl.tensor,
    out_pitch: tl.tensor,
    partials: Partials,
    histogram: tl.tensor,
    non_finite: tl.tensor,
    overflow: tl.tensor,
    positives: tl.tensor,
    SOURCE: tl.constexpr,
    TARGET: tl.constexpr,
    STORING: tl.constexpr,
    COUNTING: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    """Store a piece of a text window for a tile of neurons in their slots, and gather its statistics.

    Grid: [piece × tile of WIDTH neurons], tiles fastest. A program walks its piece, DEPTH tokens at a time; values are
    read once.

    values: [row, neuron] the bits of SOURCE as integers, with any strides. rows, slots: [token] int64. counted: [token]
    uint8. piece_starts, piece_segments: [piece + 1] int32. labels: [segment, column] int32, of n_columns columns, -1
    for none. out: [neuron, slot] the bits of TARGET, contiguous along slots, if STORING. If COUNTING: partials, [piece,
    neuron] each, written whole; histogram [neuron, bin], non_finite and overflow [neuron], positives [label, neuron],
    all int32, contiguous and added to with atomic additions. A piece has at most 1,023 tokens, which 10 bits of a
    counter hold.

    Values that are not finite enter no statistic but `non_finite`, tokens that are not counted none but `overflow`. On a tie
    the earlier token has the largest value.
    """
    piece = tl.program_id(0) // n_tiles
    neurons = (tl.program_id(0) % n_tiles).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)  # [WIDTH]
    inside = neurons < n_neurons
    # Each lane, an element of the tile, follows its own tokens; lanes meet when the piece ends.
    counts, middle = tl.zeros([DEPTH, WIDTH], tl.int32), tl.zeros([DEPTH, WIDTH], tl.int32)
    anchor, total = tl.zeros([DEPTH, WIDTH], tl.float64), tl.zeros([DEPTH, WIDTH], tl.float64)
    squares = tl.zeros([DEPTH, WIDTH], tl.float64)
    minimum = tl.full([DEPTH, WIDTH], float("inf"), tl.float32)
    best, best_token = tl.full([DEPTH, WIDTH], -float("inf"), tl.float32), tl.zeros([DEPTH, WIDTH], tl.int32)
    n_lost = tl.zeros([DEPTH, WIDTH], tl.int32)
    start = tl.load(piece_starts + piece)
    stop = tl.load(piece_starts + piece + 1)
    for tile_start in range(start, stop, DEPTH):
        tokens = tile_start + tl.arange(0, DEPTH)  # [DEPTH]
        valid = tokens < stop
        row = tl.load(rows + tokens, mask=valid, other=0)  # [DEPTH]
        tile = valid[:, None] & inside[None, :]  # [DEPTH, WIDTH]
        # Addresses in 64 bits: a batch of logits-wide rows passes 2³¹ elements.
        raw = tl.load(values + row[:, None] * row_stride + neurons[None, :] * neuron_stride, mask=tile, other=0)
        bits = widen(raw, SOURCE)  # [DEPTH, WIDTH]
        if STORING:
            coded = raw if SOURCE == TARGET else narrow(bits, TARGET)
            slot = tl.load(slots + tokens, mask=valid, other=0)  # [DEPTH]
            target = out + neurons[:, None] * out_pitch + slot[None, :]  # [WIDTH, DEPTH]
            tl.store(target, tl.trans(coded), mask=inside[:, None] & valid[None, :])
            if COUNTING and SOURCE != TARGET:
                n_lost += overflows(bits, TARGET).to(tl.int32)  # what is masked is 0
        if COUNTING:
            # [DEPTH, WIDTH], as all that follows
            considered = (tl.load(counted + tokens, mask=valid, other=0) != 0)[:, None] & inside[None, :]
            finite = considered & ((bits & MAGNITUDE) < INFINITY)
            value = bits.to(tl.float32, bitcast=True)
            middle += count_bins(bits, finite, neurons, histogram)
            exact = value.to(tl.float64)
            # The lane's first finite value: it has seen none before.
            anchor = tl.where(finite & ((counts & _FIELD) == 0), exact, anchor)
            difference = tl.where(finite, exact - anchor, 0.0)
            total += difference
            squares += difference * difference
            minimum = tl.where(finite & (value < minimum), value, minimum)
            # A lane's tokens ascend: an equal value later on does not win.
            wins = finite & (value > best)
            best = tl.where(wins, value, best)
            best_token = tl.where(wins, tokens[:, None], best_token)
            # Three counts in one number: of the finite, of those above zero, of those that are not finite.
            counts += finite.to(tl.int32) + ((finite & (value > 0)).to(tl.int32) << 10)
            counts += (considered ^ finite).to(tl.int32) << 20
    if COUNTING:
        partial_offsets = neurons + piece.to(tl.int64) * n_neurons  # [WIDTH]
        mean, m2 = reduce_moments(counts & _FIELD, anchor, total, squares)  # [WIDTH]
        largest, first_token = find_first_largest(best, best_token)  # [WIDTH]
        all_counts = tl.sum(counts, axis=0)  # [WIDTH]
        tl.store(partials.finite + partial_offsets, all_counts & _FIELD, mask=inside)
        tl.store(partials.mean + partial_offsets, mean, mask=inside)
        tl.store(partials.m2 + partial_offsets, m2, mask=inside)
        tl.store(partials.minimum + partial_offsets, tl.min(minimum, axis=0), mask=inside)
        tl.store(partials.best + partial_offsets, largest, mask=inside)
        tl.store(partials.token + partial_offsets, first_token, mask=inside)
        zeros, n_odd = tl.sum(middle, axis=0), all_counts >> 20
        tl.atomic_add(histogram + neurons * BINS + MIDDLE, zeros, mask=inside & (zeros > 0), sem="relaxed")
        tl.atomic_add(non_finite + neurons, n_odd, mask=inside & (n_odd > 0), sem="relaxed")
        if STORING and SOURCE != TARGET:
            lost = tl.sum(n_lost, axis=0)
            tl.atomic_add(overflow + neurons, lost, mask=inside & (lost > 0), sem="relaxed")
        above = (all_counts >> 10) & _FIELD
        segment = tl.load(piece_segments + piece).to(tl.int64)
        _count_by_label(above, segment, labels, n_columns, positives, neurons, n_neurons)


@jit_for_any("n_octets", "first_octet")
def _pack_signs(
    values: tl.tensor,
    row_stride: tl.tensor,
    neuron_stride: tl.tensor,
    n_neurons: tl.tensor,
    n_tiles: tl.tensor,
    rows: tl.tensor,
    segments: tl.tensor,
    n_octets: tl.tensor,
    labels: tl.tensor,
    n_columns: tl.tensor,
    out_bits: tl.tensor,
    out_pitch: tl.tensor,
    first_octet: tl.tensor,
    positives: tl.tensor,
    SOURCE: tl.constexpr,
    COUNTING: tl.constexpr,
    WIDTH: tl.constexpr,
    OCTETS: tl.constexpr,
) -> None:
    """Set the bits of positive values, and count them by label, for OCTETS bytes of a tile of neurons.

    Grid: [tile of OCTETS bytes × tile of WIDTH neurons], neurons fastest.

    values: [row, neuron] the bits of SOURCE as integers, with any strides. rows: [byte · 8] int64, the row of each
    slot, -1 for none. segments: [byte · 8] int32, the window of each slot's token, -1 for none. labels: [segment,
    column] int32. out_bits: [neuron, byte] uint8, contiguous along bytes, of which byte `first_octet` is that of the
    first slot. positives: [label, neuron] int32, contiguous, added to with atomic additions, if COUNTING.
    """
    tile_octet = (tl.program_id(0) // n_tiles).to(tl.int64) * OCTETS
    neurons = (tl.program_id(0) % n_tiles).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)  # [WIDTH]
    inside = neurons < n_neurons
    slots = tile_octet * 8 + tl.arange(0, OCTETS * 8)  # [OCTETS · 8]
    row = tl.load(rows + slots, mask=slots // 8 < n_octets, other=-1)  # [OCTETS · 8]
    tile = (row >= 0)[:, None] & inside[None, :]
    raw = tl.load(values + row[:, None] * row_stride + neurons[None, :] * neuron_stride, mask=tile, other=0)
    bits = widen(raw, SOURCE)  # [OCTETS · 8, WIDTH]
    # Above zero and no NaN: bits 1 to those of infinity. Masked values are 0.
    above = ((bits > 0) & (bits <= INFINITY)).to(tl.int32)
    eights = tl.reshape(above << (slots & 7)[:, None], [OCTETS, 8, WIDTH])
    octets = tile_octet + tl.arange(0, OCTETS)  # [OCTETS]
    target = out_bits + neurons[:, None] * out_pitch + (first_octet + octets)[None, :]  # [WIDTH, OCTETS]
    mask = inside[:, None] & (octets < n_octets)[None, :]
    # Each byte belongs to one program; those that batches share are joined in the stream's order.
    new_octets = tl.trans(tl.sum(eights, axis=1)).to(tl.uint8)  # [WIDTH, OCTETS]
    tl.store(target, tl.load(target, mask=mask, other=0) | new_octets, mask=mask)
    if COUNTING:
        segment = tl.load(segments + slots, mask=slots // 8 < n_octets, other=-1).to(tl.int64)  # [OCTETS · 8]
        lowest = tl.min(tl.where(segment >= 0, segment, _NO_SEGMENT), axis=0)
        highest = tl.max(segment, axis=0)
        # Windows follow one another: few have a token among these slots.
        for s in range(lowest, highest + 1):
            counts = tl.sum(tl.where((segment == s)[:, None], above, 0), axis=0)  # [WIDTH]
            _count_by_label(counts, s, labels, n_columns, positives, neurons, n_neurons)
