"""Packing token-major activations into neuron-major blocks, compiled.

One thread owns a neuron. A tile of tokens × neurons is loaded from the rows, cast, written to the block through a
transpose in registers, and counted, before the next one comes. Knows nothing about checks: `api` has made them.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.bits import BITS_DTYPES, FLOAT32, FORMAT_CODES, INFINITIES, narrow, widen
from actstore.kernels.jit import jit, over_neurons
from actstore.kernels.pack import cpu_statistics as gather
from actstore.kernels.pack.columns import Columns
from actstore.kernels.pack.cpu_statistics import DEPTH, WIDTH, Tally
from actstore.kernels.pack.statistics import STATISTICS, Statistics
from actstore.kernels.prefetch import prefetch
from actstore.kernels.transpose import SIDE, transpose_square

NOTHING = -1  # the format of no block


class Matrix(NamedTuple):
    """A matrix whose rows are contiguous: its bits as one flat array, and where its rows start."""

    flat: Any  # [element] uint8, uint16 or uint32
    pitch: int  # elements between the starts of two rows
    format: int  # one of FORMAT_CODES


class Tokens(NamedTuple):
    """The arrays of `Columns`, as compiled code takes them."""

    rows: Any
    slots: Any
    segments: Any
    labels: Any
    counted: Any
    tokens: Any  # [token] token indices


def pack(
    values: NDArray[Any], columns: Columns, out: NDArray[Any] | None, statistics: Statistics | None, threads: int
) -> None:
    """Fill the columns' slots of `out` and add to `statistics`; see `api.pack`."""
    source = as_matrix(values)
    # Not a part of the values, which may be read-only: what compiles must be able to write to its target.
    target = Matrix(np.empty(0, source.flat.dtype), 0, NOTHING) if out is None else as_matrix(out)
    tally = Tally(**_all_statistics(statistics).arrays())
    arguments = (source, target, _as_tokens(columns), tally, statistics is not None)
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
    values: NDArray[Any],
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


def as_matrix(array: NDArray[Any]) -> Matrix:
    """The matrix whose memory `array` [row, column] shares; a copy's where its rows are not contiguous."""
    if not has_contiguous_rows(array):
        array = np.ascontiguousarray(array)
    code = FORMAT_CODES.get(array.dtype, NOTHING)
    pitch = array.strides[0] // array.itemsize
    length = (len(array) - 1) * pitch + array.shape[1] if array.size else 0
    flat = np.lib.stride_tricks.as_strided(array, (length,), (array.itemsize,))
    return Matrix(flat.view(BITS_DTYPES.get(code, array.dtype)), pitch, code)


def has_contiguous_rows(array: NDArray[Any]) -> bool:
    """Whether the columns of every row lie side by side, and the rows follow each other by whole elements."""
    between = array.strides[0]
    return (array.shape[1] < 2 or array.strides[1] == array.itemsize) and between >= 0 and between % array.itemsize == 0


def _as_tokens(columns: Columns) -> Tokens:
    tokens = columns.first_token + columns.slots
    return Tokens(columns.rows, columns.slots, columns.segments, columns.labels, columns.counted, tokens)


@jit
def _pack(first: int, stop: int, source: Matrix, target: Matrix, tokens: Tokens, tally: Tally, counting: bool) -> None:
    raw = np.zeros((DEPTH, WIDTH), source.flat.dtype)
    bits = raw.view(np.uint32) if source.format == FLOAT32 else np.zeros((DEPTH, WIDTH), np.uint32)
    coded = np.zeros((DEPTH, WIDTH), target.flat.dtype)
    codes = np.zeros((DEPTH, WIDTH), np.uint16)
    running = gather.start()
    n_tokens = tokens.rows.size
    for neuron in range(first, stop, WIDTH):
        width = min(WIDTH, stop - neuron)
        gather.clear(running)
        segment: Any = np.int64(0)  # a literal 0 would compile everything below twice
        for start in range(0, n_tokens, DEPTH):
            end = min(start + DEPTH, n_tokens)
            _load(source, tokens.rows[start:end], neuron, width, raw)
            _expect(source, tokens.rows[end : end + DEPTH], neuron, width)
            if source.format != FLOAT32:
                widen(raw.reshape(-1), source.format, bits.reshape(-1))
            if target.format == source.format:
                _store(raw.view(target.flat.dtype), tokens.slots[start:end], neuron, width, target)
            elif target.format != NOTHING:
                narrow(bits.reshape(-1), target.format, coded.reshape(-1))
                _store(coded, tokens.slots[start:end], neuron, width, target)
            if counting:
                if target.format != NOTHING and target.format != source.format:
                    gather.count_overflow(bits, end - start, target.format, running)
                gather.classify(bits, tokens.counted[start:end], codes)
                gather.count_bins(codes, end - start, running)
                tile = bits.view(np.float32)
                gather.add_moments(tile, end - start, running)
                segment = _add_segments(tile, start, end, segment, tokens, running, width, neuron, tally)
        if counting:
            gather.close(running, width, neuron, tally)


@jit
def _add_segments(
    tile: Any, start: int, end: int, segment: int, tokens: Tokens, running: Any, width: int, neuron: int, tally: Tally
) -> int:
    """The segment that goes on after tokens `start:end`, having closed those that end there."""
    at = start
    while segment < tokens.segments.size - 1:
        until = min(tokens.segments[segment + 1], end)
        gather.add_segment(tile, at - start, until - start, start, running)
        at = until
        if tokens.segments[segment + 1] > end:
            break
        gather.close_segment(running, width, neuron, tokens.tokens, tokens.labels[segment], tally)
        segment += 1
    return segment


@jit
def _load(source: Matrix, rows: Any, neuron: int, width: int, raw: Any) -> None:
    for t in range(rows.size):
        at = rows[t] * source.pitch + neuron
        row = source.flat[at : at + width]
        if width == WIDTH:  # a loop of constant length is a few vector moves
            for n in range(WIDTH):
                raw[t, n] = row[n]
        else:
            for n in range(width):
                raw[t, n] = row[n]


@jit
def _expect(source: Matrix, rows: Any, neuron: int, width: int) -> None:
    """Ask for the next tile while this one is counted: waiting for it took a tenth of the time."""
    line = 64 // source.flat.itemsize
    for row in rows:
        for n in range(0, width, line):
            prefetch(source.flat, row * source.pitch + neuron + n)


@jit
def _store(coded: Any, slots: Any, neuron: int, width: int, target: Matrix) -> None:
    flat, block, pitch = coded.reshape(-1), target.flat, target.pitch
    depth = slots.size
    contiguous = slots[depth - 1] - slots[0] == depth - 1
    side = width // SIDE * SIDE if contiguous else 0
    whole = depth // SIDE * SIDE if contiguous else 0
    for n in range(0, side, SIDE):
        for t in range(0, whole, SIDE):
            transpose_square(flat, t * WIDTH + n, WIDTH, block, (neuron + n) * pitch + slots[t], pitch)
    for t in range(depth):
        for n in range(side if t < whole else 0, width):
            block[(neuron + n) * pitch + slots[t]] = coded[t, n]


@jit
def _pack_signs(first: int, stop: int, source: Matrix, target: Matrix, tokens: Tokens, positives: Any) -> None:
    raw = np.zeros((DEPTH, WIDTH), source.flat.dtype)
    above = np.zeros((DEPTH, WIDTH), np.uint8)
    octets = np.zeros((DEPTH, WIDTH), np.uint8)
    places = np.zeros(DEPTH, np.int64)
    counts = np.zeros(WIDTH, np.int32)
    n_tokens = tokens.rows.size
    for neuron in range(first, stop, WIDTH):
        width = min(WIDTH, stop - neuron)
        segment: Any = np.int64(0)
        for start in range(0, n_tokens, DEPTH):
            end = min(start + DEPTH, n_tokens)
            _load(source, tokens.rows[start:end], neuron, width, raw)
            _find_positive(raw, source.format, above)
            n_octets = _gather_octets(above, tokens.slots[start:end], octets, places)
            for n in range(width):
                row = (neuron + n) * target.pitch
                for i in range(n_octets):
                    target.flat[row + places[i]] |= octets[i, n]
            segment = _count_positive(above, start, end, segment, tokens, counts, width, neuron, positives)


@jit
def _count_positive(
    above: Any, start: int, end: int, segment: int, tokens: Tokens, counts: Any, width: int, neuron: int, positives: Any
) -> int:
    """The segment that goes on after tokens `start:end`, having added the counts of those that end there."""
    at = start
    while segment < tokens.segments.size - 1:
        until = min(tokens.segments[segment + 1], end)
        for t in range(at, until):
            if tokens.counted[t]:
                for n in range(WIDTH):
                    counts[n] += above[t - start, n]
        at = until
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
def _find_positive(raw: Any, source_format: int, above: Any) -> None:
    """Mark what lies between zero and infinity: bits 1 to those of infinity, in every format."""
    infinity = INFINITIES[source_format]
    for t in range(DEPTH):
        for n in range(WIDTH):
            above[t, n] = np.uint8(raw[t, n] != 0) & np.uint8(raw[t, n] <= infinity)


@jit
def _gather_octets(above: Any, slots: Any, octets: Any, places: Any) -> int:
    """The number of bytes that the slots fall into; fills `octets` [byte, neuron] and their `places` in a row."""
    count = 0
    for t in range(slots.size):
        if count == 0 or places[count - 1] != slots[t] >> 3:
            places[count] = slots[t] >> 3
            octets[count, :] = 0
            count += 1
        shift = np.uint8(slots[t] & 7)
        for n in range(WIDTH):
            octets[count - 1, n] |= np.uint8(above[t, n] << shift)
    return count
