"""The lossy precisions of a packed block, compiled: int8 steps, and zeros below a threshold.

Works on one neuron's row after the other, in its float32 bits. Arguments were checked by `api`.
"""

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.bits import widen
from actstore.kernels.floats import FloatArray
from actstore.kernels.jit import jit, over_neurons
from actstore.kernels.pack.cpu import Matrix, as_matrix
from actstore.kernels.pack.steps import FREE_BITS, INFINITE, MARK, NO_VALUE

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INFINITY = np.uint32(0x7F800000)
_FREE_BITS = np.uint32(FREE_BITS)
_LARGEST = np.float64(np.finfo(np.float32).max)
_DIGITS = ((20, 11), (10, 10), (0, 10))  # how a magnitude's 31 bits are cut for selection: shift and width
_RADIX = 1 << 11


def quantise(block: FloatArray, out: NDArray[np.int8], threads: int) -> NDArray[np.float32]:
    """The scale [neuron]; fills `out` [neuron, slot] with steps; see `api.quantise`."""
    scale = np.zeros(len(block), np.float32)
    over_neurons(_quantise, len(block), 1, threads, as_matrix(block), block.shape[1], as_matrix(out), scale)
    return scale


def sparsify(
    block: FloatArray, keep: float, counted: NDArray[np.bool_] | None, threads: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The threshold [neuron] and how many non-zero values were dropped [neuron]; see `api.sparsify`."""
    if counted is None:
        counted = np.ones(block.shape[1], np.bool_)
    threshold = np.zeros(len(block), np.float32)
    dropped = np.zeros(len(block), np.int64)
    over_neurons(_sparsify, len(block), 1, threads, as_matrix(block), counted, float(keep), threshold, dropped)
    return threshold, dropped


@jit
def _quantise(first: int, stop: int, block: Matrix, n_slots: int, out: Matrix, scales: NDArray[np.float32]) -> None:
    """Fill `out` [neuron, slot] int8 and `scales` [neuron] of neurons `first:stop` of `block` [neuron, slot]."""
    bits = np.empty(n_slots, np.uint32)
    values = bits.view(np.float32)
    for neuron in range(first, stop):
        widen(block.flat[neuron * block.pitch : neuron * block.pitch + n_slots], block.format, bits)
        scale, marked = _find_scale(bits)
        steps = out.flat[neuron * out.pitch : neuron * out.pitch + n_slots]
        exact = np.float64(scale) if scale > 0 else np.inf  # x / inf is 0
        for i in range(n_slots):
            magnitude = bits[i] & _MAGNITUDE
            infinite = float(INFINITE) if values[i] > 0 else float(-INFINITE)
            special = infinite if magnitude == _INFINITY else float(NO_VALUE)
            value = values[i] if magnitude < _INFINITY else np.float32(0)
            # In float64, so that the quotient is rounded to an integer only once.
            steps[i] = np.int8(np.rint(np.float64(value) / exact) if magnitude < _INFINITY else special)
        # The mark goes into the scale's lowest bit, which rounding has left free.
        scales[neuron] = np.uint32(np.float32(scale).view(np.uint32) | marked).view(np.float32)


@jit
def _find_scale(bits: NDArray[np.uint32]) -> tuple[np.float32, np.uint32]:
    """The scale of a row, and its mark: `MARK` where a value is infinite, else 0."""
    largest, marked = np.uint32(0), np.uint32(0)
    for i in range(bits.size):
        magnitude = np.uint32(bits[i] & _MAGNITUDE)
        largest = max(largest, magnitude if magnitude < _INFINITY else np.uint32(0))
        marked = max(marked, np.uint32(MARK) if magnitude == _INFINITY else np.uint32(0))
    if largest == 0:
        return np.float32(0), marked
    n_steps = np.float32(INFINITE - 1) if marked else np.float32(INFINITE)
    quotient = np.float32(np.uint32(largest).view(np.float32) / n_steps).view(np.uint32)
    # Rounded up to 17 bits of mantissa, and never to 0, nor to a scale whose only bits are the free ones.
    scale = np.uint32(max(np.uint32(quotient + _FREE_BITS) & ~_FREE_BITS, np.uint32(_FREE_BITS + np.uint32(1))))
    # Just below the largest float, the largest multiple would be infinite: there it is rounded down.
    too_large = np.float64(np.uint32(scale).view(np.float32)) * np.float64(n_steps) > _LARGEST
    rounded = np.uint32(scale - np.uint32(_FREE_BITS + np.uint32(1))) if too_large else np.uint32(scale)
    return np.uint32(rounded).view(np.float32), marked


@jit
def _sparsify(
    first: int,
    stop: int,
    block: Matrix,
    counted: NDArray[np.bool_],
    keep: float,
    thresholds: NDArray[np.float32],
    dropped: NDArray[np.int64],
) -> None:
    """Zero the small values of neurons `first:stop` of `block` [neuron, slot]; fill `thresholds` and `dropped` [neuron].

    counted: [slot]. Magnitudes are compared as the integers that their bits are; those of infinity and NaN are the largest.
    """
    bits = np.empty(counted.size, np.uint32)
    candidates = np.empty(counted.size, np.uint32)
    for neuron in range(first, stop):
        row = block.flat[neuron * block.pitch : neuron * block.pitch + counted.size]
        widen(row, block.format, bits)
        n_finite, n_infinite = _find_candidates(bits, counted, candidates)
        n_kept = int(np.ceil(keep * (n_finite + n_infinite)))
        threshold = _select(candidates[:n_finite], max(n_kept - n_infinite, 0))
        count = np.int64(0)
        for i in range(counted.size):
            magnitude = np.uint32(bits[i] & _MAGNITUDE)
            # 0 less 1 wraps around to the largest number: what is zero already was not dropped.
            count += np.int64(np.uint32(magnitude - np.uint32(1)) < threshold)
            row[i] = 0 if magnitude <= threshold else row[i]
        thresholds[neuron] = np.uint32(threshold).view(np.float32)
        dropped[neuron] = count


@jit
def _find_candidates(
    bits: NDArray[np.uint32], counted: NDArray[np.bool_], candidates: NDArray[np.uint32]
) -> tuple[int, int]:
    """How many counted values are finite, and how many infinite; fills `candidates` with the magnitudes of the finite."""
    n_finite, n_infinite = 0, 0
    for i in range(bits.size):
        if counted[i]:
            magnitude = np.uint32(bits[i] & _MAGNITUDE)
            if magnitude < _INFINITY:
                candidates[n_finite] = magnitude
                n_finite += 1
            # NaN is neither: it is no value, and no share is taken of it.
            elif magnitude == _INFINITY:
                n_infinite += 1
    return n_finite, n_infinite


@jit
def _select(candidates: NDArray[np.uint32], n_larger: int) -> np.uint32:
    """The largest candidate that has `n_larger` others before it in descending order; 0 where there are not that many.

    Digit by digit from the top: count the digits, find that of the candidate sought, keep the candidates that share it.
    `candidates` [candidate] are overwritten. Three passes whatever the values, where a sort takes many more.
    """
    if n_larger >= candidates.size:
        return np.uint32(0)
    counts = np.empty(_RADIX, np.int64)
    for shift, width in _DIGITS:
        counts[: 1 << width] = 0
        mask = np.uint32((1 << width) - 1)
        for candidate in candidates:
            counts[(candidate >> np.uint32(shift)) & mask] += 1
        digit = (1 << width) - 1
        while counts[digit] <= n_larger:
            n_larger -= counts[digit]
            digit -= 1
        n_same = 0
        for candidate in candidates:
            # Written always and counted if it stays: no branch per candidate.
            candidates[n_same] = candidate
            n_same += int(((candidate >> np.uint32(shift)) & mask) == digit)
        candidates = candidates[:n_same]
    equal: np.uint32 = candidates[0]  # as all are that share every digit
    return equal
