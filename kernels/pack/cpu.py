"""Packing token-major activations into neuron-major blocks, compiled.

One thread owns a neuron. A tile of tokens × neurons is loaded from the rows, cast, written to the block through a
transpose in registers, and counted, before the next one comes. Arguments were checked by `api`.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.bits import BITS_DTYPES, FLOAT32, FORMAT_CODES, INFINITIES, Bits, narrow, widen
from actstore.kernels.floats import FloatArray
from actstore.kernels.jit import jit, over_neurons
from actstore.kernels.pack import cpu_statistics as gather
from actstore.kernels.pack.columns import Columns
from actstore.kernels.pack.cpu_statistics import DEPTH, WIDTH, Running, StatisticsArrays
from actstore.kernels.pack.statistics import STATISTICS, Statistics
from actstore.kernels.prefetch import prefetch
from actstore.kernels.transpose import SIDE, transpose_square

NOTHING = -1  # the format of no block, and of what is not a float


class Matrix(NamedTuple):
    """A matrix whose rows are contiguous: its bits as one flat array, and where its rows start."""

    flat: NDArray[Any]  # [element] unsigned, of the elements' width; int8 stays what it is
    pitch: int  # elements between the starts of two rows
    format: int  # one of FORMAT_CODES, or NOTHING


class Tokens(NamedTuple):
    """The arrays of `Columns`, as compiled code takes them."""

    rows: NDArray[np.int64]  # [token]
    slots: NDArray[np.int64]  # [token]
    segments: NDArray[np.int64]  # [segment + 1]
    labels: NDArray[np.int32]  # [segment, column]
    counted: NDArray[np.bool_]  # [token]
    tokens: NDArray[np.int64]  # [token] token indices


def pack(
    values: FloatArray, columns: Columns, out: FloatArray | None, statistics: Statistics | None, threads: int
) -> None:
    """Fill the columns' slots of `out` and add to `statistics`; see `api.pack`."""
    source = as_matrix(values)
    # Not a part of the values, which may be read-only: what compiles must be able to write to its target.
    target = Matrix(np.empty(0, source.flat.dtype), 0, NOTHING) if out is None else as_matrix(out)
    arrays = StatisticsArrays(**_all_statistics(statistics).arrays())
    arguments = (source, target, _as_tokens(columns), arrays, statistics is not None)
    over_neurons(_pack, values.shape[1], WIDTH, threads, *arguments)


def _all_statistics(statistics: Statistics | None) -> Statistics:
    """`statistics`, with arrays to be thrown away for those that it lacks: compiled code gathers all."""
    if statistics is None:
        return Statistics.empty(0, 0, 0)
    n_neurons, k = statistics.exemplar_values.shape
    missing = [name for name in STATISTICS if name not in statistics.arrays()]
    scratch = Statistics.empty(n_neurons, len(statistics.positives), k, missing)
    return Statistics(scratch.arrays() | statistics.arrays())


def pack_signs(
    values: FloatArray,
    columns: Columns,
    out_bits: NDArray[np.uint8],
    positives: NDArray[np.int64] | None,
    threads: int,
) -> None:
    """Set the bits of positive values and count them by label; see `api.pack_signs`."""
    tokens = _as_tokens(columns)
    if positives is None:
        positives = np.empty((0, values.shape[1]), np.int64)
        tokens = tokens._replace(labels=np.empty((len(columns.labels), 0), np.int32))
    over_neurons(
        _pack_signs, values.shape[1], WIDTH, threads, as_matrix(values), as_matrix(out_bits), tokens, positives
    )


def as_matrix(array: NDArray[np.generic]) -> Matrix:
    """The matrix whose memory `array` [row, column] shares; a copy's where its rows are not contiguous."""
    if not has_contiguous_rows(array):
        array = np.ascontiguousarray(array)
    code = FORMAT_CODES.get(array.dtype, NOTHING)
    pitch = array.strides[0] // array.itemsize
    length = (len(array) - 1) * pitch + array.shape[1] if array.size else 0
    flat = np.lib.stride_tricks.as_strided(array, (length,), (array.itemsize,))
    return Matrix(flat.view(BITS_DTYPES.get(code, array.dtype)), pitch, code)


def has_contiguous_rows(array: NDArray[np.generic]) -> bool:
    """Whether the columns of every row lie side by side, and the rows follow each other by whole elements."""
    row_stride = array.strides[0]
    return (
        (array.shape[1] < 2 or array.strides[1] == array.itemsize)
        and row_stride >= 0
        and row_stride % array.itemsize == 0
    )


def _as_tokens(columns: Columns) -> Tokens:
    tokens = columns.first_token + columns.slots
    return Tokens(columns.rows, columns.slots, columns.segments, columns.labels, columns.counted, tokens)


@jit
def _pack(
    first: int, stop: int, source: Matrix, target: Matrix, tokens: Tokens, arrays: StatisticsArrays, counting: bool
) -> None:
    """Write neurons `first:stop` of the source's rows to the target, and add them to `arrays` if `counting`.

    source: [row, neuron]. target: [neuron, slot], or of the format NOTHING. Every buffer is a tile, [DEPTH, WIDTH]; beyond
    the last token or neuron a tile holds what an earlier one has left, which is computed with and never written.
    """
    raw = np.zeros((DEPTH, WIDTH), source.flat.dtype)  # the bits as they come
    bits = raw.view(np.uint32) if source.format == FLOAT32 else np.zeros((DEPTH, WIDTH), np.uint32)
    coded = np.zeros((DEPTH, WIDTH), target.flat.dtype)  # the bits as they are stored
    codes = np.zeros((DEPTH, WIDTH), np.uint16)  # places in the histogram; see `classify`
    running = gather.start()
    n_tokens = tokens.rows.size
    for neuron in range(first, stop, WIDTH):
        width = min(WIDTH, stop - neuron)
        gather.clear(running)
        segment: Any = np.int64(0)  # a literal 0 would compile everything below twice
        for start in range(0, n_tokens, DEPTH):
            tile_stop = min(start + DEPTH, n_tokens)
            _load(source, tokens.rows[start:tile_stop], neuron, width, raw)
            _prefetch_rows(source, tokens.rows[tile_stop : tile_stop + DEPTH], neuron, width)
            if source.format != FLOAT32:
                widen(raw.reshape(-1), source.format, bits.reshape(-1))
            # The same format is stored as it came, so that NaN payloads and the sign of zero survive.
            if target.format == source.format:
                _store(raw.view(target.flat.dtype), tokens.slots[start:tile_stop], neuron, width, target)
            elif target.format != NOTHING:
                narrow(bits.reshape(-1), target.format, coded.reshape(-1))
                _store(coded, tokens.slots[start:tile_stop], neuron, width, target)
            if counting:
                if target.format != NOTHING and target.format != source.format:
                    # Before `classify`, which makes NaN of what enters no statistic.
                    gather.count_overflow(bits, tile_stop - start, target.format, running)
                gather.classify(bits, tokens.counted[start:tile_stop], codes)
                gather.count_bins(codes, tile_stop - start, running)
                tile = bits.view(np.float32)
                gather.add_moments(tile, tile_stop - start, running)
                segment = _add_segments(tile, start, tile_stop, segment, tokens, running, width, neuron, arrays)
        if counting:
            gather.close(running, width, neuron, arrays)


@jit
def _add_segments(
    tile: NDArray[np.float32],
    start: int,
    end: int,
    segment: int,
    tokens: Tokens,
    running: Running,
    width: int,
    neuron: int,
    arrays: StatisticsArrays,
) -> int:
    """The segment that goes on after tokens `start:end`, the `tile` [token, neuron], having closed those that end there.

    An empty segment is closed at once and adds nothing.
    """
    token = start
    while segment < tokens.segments.size - 1:
        segment_stop = min(tokens.segments[segment + 1], end)
        gather.add_segment(tile, token - start, segment_stop - start, start, running)
        token = segment_stop
        if tokens.segments[segment + 1] > end:
            break
        gather.close_segment(running, width, neuron, tokens.tokens, tokens.labels[segment], arrays)
        segment += 1
    return segment


@jit
def _load(source: Matrix, rows: NDArray[np.int64], neuron: int, width: int, raw: Bits) -> None:
    """Fill `raw` [token, neuron] with `width` neurons from `neuron` on of the source's `rows` [token]."""
    for t in range(rows.size):
        row_start = rows[t] * source.pitch + neuron
        row = source.flat[row_start : row_start + width]
        if width == WIDTH:  # a loop of constant length is a few vector moves
            for n in range(WIDTH):
                raw[t, n] = row[n]
        else:
            for n in range(width):
                raw[t, n] = row[n]


@jit
def _prefetch_rows(source: Matrix, rows: NDArray[np.int64], neuron: int, width: int) -> None:
    """Ask for the next tile while this one is counted: waiting for it took a tenth of the time."""
    line = 64 // source.flat.itemsize
    for row in rows:
        for n in range(0, width, line):
            prefetch(source.flat, row * source.pitch + neuron + n)


@jit
def _store(coded: Bits, slots: NDArray[np.int64], neuron: int, width: int, target: Matrix) -> None:
    """Write the tile `coded` [token, neuron] to the `slots` [token] of `width` neurons from `neuron` on of the target.

    Squares of SIDE × SIDE go through a transpose in registers where the slots follow one another; what is left at the edges,
    and scattered slots, value by value.
    """
    flat, block, pitch = coded.reshape(-1), target.flat, target.pitch
    depth = slots.size
    contiguous = slots[depth - 1] - slots[0] == depth - 1
    square_width = width // SIDE * SIDE if contiguous else 0
    square_depth = depth // SIDE * SIDE if contiguous else 0
    for n in range(0, square_width, SIDE):
        for t in range(0, square_depth, SIDE):
            transpose_square(flat, t * WIDTH + n, WIDTH, block, (neuron + n) * pitch + slots[t], pitch)
    for t in range(depth):
        for n in range(square_width if t < square_depth else 0, width):
            block[(neuron + n) * pitch + slots[t]] = coded[t, n]


@jit
def _pack_signs(
    first: int, stop: int, source: Matrix, target: Matrix, tokens: Tokens, positives: NDArray[np.int64]
) -> None:
    """Set the bits of the positive values of neurons `first:stop` in the target, and add them to `positives`.

    source: [row, neuron]. target: [neuron, byte] uint8. positives: [label, neuron]. One thread owns a neuron's bytes: no two
    set bits of the same one.
    """
    raw = np.zeros((DEPTH, WIDTH), source.flat.dtype)
    above = np.zeros((DEPTH, WIDTH), np.uint8)  # [token, neuron] 0 or 1
    octets = np.zeros((DEPTH, WIDTH), np.uint8)  # [byte, neuron]
    octet_indices = np.zeros(DEPTH, np.int64)  # [byte] in a row of the target
    counts = np.zeros(WIDTH, np.int32)  # [neuron] of the segment so far
    n_tokens = tokens.rows.size
    for neuron in range(first, stop, WIDTH):
        width = min(WIDTH, stop - neuron)
        segment: Any = np.int64(0)
        for start in range(0, n_tokens, DEPTH):
            tile_stop = min(start + DEPTH, n_tokens)
            _load(source, tokens.rows[start:tile_stop], neuron, width, raw)
            _find_positive(raw, source.format, above)
            n_octets = _gather_octets(above, tokens.slots[start:tile_stop], octets, octet_indices)
            for n in range(width):
                row = (neuron + n) * target.pitch
                for i in range(n_octets):
                    target.flat[row + octet_indices[i]] |= octets[i, n]
            segment = _count_positive(above, start, tile_stop, segment, tokens, counts, width, neuron, positives)


@jit
def _count_positive(
    above: NDArray[np.uint8],
    start: int,
    end: int,
    segment: int,
    tokens: Tokens,
    counts: NDArray[np.int32],
    width: int,
    neuron: int,
    positives: NDArray[np.int64],
) -> int:
    """The segment that goes on after tokens `start:end`, having added the counts of those that end there."""
    token = start
    while segment < tokens.segments.size - 1:
        segment_stop = min(tokens.segments[segment + 1], end)
        for t in range(token, segment_stop):
            if tokens.counted[t]:
                for n in range(WIDTH):
                    counts[n] += above[t - start, n]
        token = segment_stop
        if tokens.segments[segment + 1] > end:
            break
        for label in tokens.labels[segment]:
            if label >= 0:
                for n in range(width):
                    positives[label, neuron + n] += counts[n]
        counts[:] = 0
        segment += 1
    return segment


@jit
def _find_positive(raw: Bits, source_format: int, above: NDArray[np.uint8]) -> None:
    """Fill `above` [token, neuron] with 1 where a value is above zero: its bits are 1 to those of infinity, in any format."""
    infinity = INFINITIES[source_format]
    for t in range(DEPTH):
        for n in range(WIDTH):
            above[t, n] = np.uint8(raw[t, n] != 0) & np.uint8(raw[t, n] <= infinity)


@jit
def _gather_octets(
    above: NDArray[np.uint8], slots: NDArray[np.int64], octets: NDArray[np.uint8], octet_indices: NDArray[np.int64]
) -> int:
    """The number of bytes that the slots fall into; fills `octets` [byte, neuron] and `octet_indices` [byte].

    Slots ascend, so that those of a byte follow one another.
    """
    n_octets = 0
    for t in range(slots.size):
        if n_octets == 0 or octet_indices[n_octets - 1] != slots[t] >> 3:
            octet_indices[n_octets] = slots[t] >> 3
            octets[n_octets, :] = 0
            n_octets += 1
        shift = np.uint8(slots[t] & 7)
        for n in range(WIDTH):
            octets[n_octets - 1, n] |= np.uint8(above[t, n] << shift)
    return n_octets
