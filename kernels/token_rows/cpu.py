"""Token rows, compiled. Arguments were checked by `api`."""

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.bits import Bits, narrow, widen
from actstore.kernels.floats import FloatArray
from actstore.kernels.jit import jit
from actstore.kernels.pack.cpu import as_matrix
from actstore.kernels.pack.steps import INFINITE, MARK, NO_VALUE
from actstore.kernels.token_rows.naive import Decoding
from actstore.kernels.transpose import SIDE, transpose_into_rows

_WIDTH = 512  # neurons that are decoded together: what lies between two steps stays in the nearest cache
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32}


def scatter_rows(values: NDArray[np.generic], target: NDArray[np.int64], out: NDArray[np.generic], column: int) -> None:
    """See `api.scatter_rows`."""
    bits = _UNSIGNED[values.itemsize]
    source = as_matrix(values.view(bits) if values.flags.c_contiguous else np.ascontiguousarray(values).view(bits))
    flat = out.view(bits).reshape(-1)
    _scatter(source.flat, source.pitch, len(values), target, flat, out.shape[1], column)


@jit
def _scatter(
    source: NDArray[np.unsignedinteger],
    pitch: int,
    n_neurons: int,
    target: NDArray[np.int64],
    out: NDArray[np.unsignedinteger],
    out_pitch: int,
    column: int,
) -> None:
    """source: flat [neuron, token]. target: [token]. out: flat [row, neuron].

    What lies in one cache line of each of 16 neurons is taken at once: the neurons' rows are a power of two apart, so that no
    more lines of theirs stay in the nearest caches.
    """
    strip = 64 // out.itemsize
    n_tokens, n_full = target.size, n_neurons // SIDE * SIDE
    whole = np.empty(strip // SIDE, np.bool_)  # [square] whether all of its tokens are wanted
    for start in range(0, n_tokens, strip):
        for square in range(whole.size):
            first_token = start + square * SIDE
            n_wanted = 0
            for token in range(first_token, min(first_token + SIDE, n_tokens)):
                n_wanted += target[token] >= 0
            whole[square] = n_wanted == SIDE
        for first in range(0, n_full, SIDE):
            for square in range(whole.size):
                if whole[square]:
                    token = start + square * SIDE
                    at = first * pitch + token
                    transpose_into_rows(source, at, pitch, out, target, token, out_pitch, column + first)
        for square in range(whole.size):
            for token in range(start + square * SIDE, min(start + (square + 1) * SIDE, n_tokens)):
                if target[token] >= 0:
                    at = target[token] * out_pitch + column
                    for neuron in range(n_full if whole[square] else 0, n_neurons):
                        out[at + neuron] = source[neuron * pitch + token]


def decode_rows(raw: NDArray[np.generic], blocks: NDArray[np.int32], decoding: Decoding, out: FloatArray) -> None:
    """See `api.decode_rows`."""
    into = as_matrix(out)
    parameters = decoding.limit, decoding.shift, decoding.factor
    if decoding.scales is None:
        source = as_matrix(raw)
        _decode_floats(source.flat, source.format, len(raw), raw.shape[1], *parameters, into.flat, into.format)
        return
    bits = np.ascontiguousarray(decoding.scales).view(np.uint32)
    scales = (bits & ~np.uint32(MARK)).view(np.float32)
    # What a step of 127 says: infinite where the scale is marked.
    with np.errstate(over="ignore"):
        largest = np.where(bits & MARK, np.float32(np.inf), scales * np.float32(INFINITE)).astype(np.float32)
    _decode_steps(raw.view(np.int8), blocks, scales, largest, *parameters, into.flat, into.format)


@jit
def _transform(
    bits: NDArray[np.uint32],
    limit: NDArray[np.float32],
    shift: NDArray[np.float32],
    factor: NDArray[np.float32],
) -> None:
    """Clip the float32 values whose bits are `bits` [neuron], and shift and multiply them; NaN is in no comparison."""
    values = bits.view(np.float32)
    for i in range(limit.size):
        value = values[i]
        value = limit[i] if value > limit[i] else value
        value = -limit[i] if value < -limit[i] else value
        values[i] = (value - shift[i]) * factor[i]


@jit
def _decode_floats(
    source: Bits,
    source_format: int,
    n_rows: int,
    width: int,
    limit: NDArray[np.float32],
    shift: NDArray[np.float32],
    factor: NDArray[np.float32],
    out: Bits,
    out_format: int,
) -> None:
    """source, out: flat [row, neuron]."""
    bits = np.empty(_WIDTH, np.uint32)
    for row in range(n_rows):
        for first in range(0, width, _WIDTH):
            stop = min(first + _WIDTH, width)
            at, end = row * width + first, row * width + stop
            part = bits[: stop - first]
            widen(source[at:end], source_format, part)
            _transform(part, limit[first:stop], shift[first:stop], factor[first:stop])
            narrow(part, out_format, out[at:end])


@jit
def _decode_steps(
    steps: NDArray[np.int8],
    blocks: NDArray[np.int32],
    scales: NDArray[np.float32],
    largest: NDArray[np.float32],
    limit: NDArray[np.float32],
    shift: NDArray[np.float32],
    factor: NDArray[np.float32],
    out: Bits,
    out_format: int,
) -> None:
    """steps: [row, neuron]. blocks: [row]. scales, largest: [block, neuron]. out: flat [row, neuron]."""
    n_rows, width = steps.shape
    bits = np.empty(_WIDTH, np.uint32)
    values = bits.view(np.float32)
    for row in range(n_rows):
        block = blocks[row]
        for first in range(0, width, _WIDTH):
            n = min(_WIDTH, width - first)
            for i in range(n):
                step = np.int32(steps[row, first + i])
                value = np.float32(step) * scales[block, first + i]
                top = largest[block, first + i]
                value = top if step == INFINITE else value
                value = -top if step == -INFINITE else value
                values[i] = np.float32(np.nan) if step == NO_VALUE else value
            stop = first + n
            _transform(bits[:n], limit[first:stop], shift[first:stop], factor[first:stop])
            narrow(bits[:n], out_format, out[row * width + first : row * width + stop])
