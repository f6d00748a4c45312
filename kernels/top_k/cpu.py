"""The k largest activations of every neuron, compiled."""

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.bits import BITS_DTYPES, FLOAT32, FORMAT_CODES, Bits, widen
from actstore.kernels.floats import FloatArray
from actstore.kernels.jit import jit, over_neurons

SPAN = 256  # tokens that are looked at together: most spans hold nothing large enough, and that test vectorises


def top_k(
    values: FloatArray,
    tokens: NDArray[np.int64],
    segments: NDArray[np.int64],
    best_values: NDArray[np.float32],
    best_tokens: NDArray[np.int64],
    threads: int,
) -> None:
    """Add `values` [neuron, token] to the `best_values` and `best_tokens` [neuron, k]; see `api.top_k`.

    tokens: [token] ascending. segments: [segment + 1], empty where every token stands for itself.
    """
    source = FORMAT_CODES[values.dtype]
    bits = np.ascontiguousarray(values).view(BITS_DTYPES[source])
    over_neurons(_top_k, len(bits), 1, threads, bits, source, tokens, segments, best_values, best_tokens)


def merge(
    values: NDArray[np.float32],
    tokens: NDArray[np.int64],
    other_values: NDArray[np.float32],
    other_tokens: NDArray[np.int64],
    threads: int,
) -> None:
    """Add the entries of another part, [neuron, its k], to `values` and `tokens` [neuron, k], in place."""
    over_neurons(_merge, len(values), 1, threads, values, tokens, other_values, other_tokens)


@jit
def insert(values: NDArray[np.float32], tokens: NDArray[np.int64], value: np.float32, token: np.int64 | int) -> None:
    """Insert a value into one neuron's descending `values` [k] and `tokens` [k], if it is among the k largest.

    The last entry is lost. NaN and -inf are never inserted; a tie goes to the earlier token, in whatever order they come.
    """
    last = values.size - 1
    # Not `value <= -np.inf`, which is false for NaN.
    if last < 0 or not value > -np.inf or not _precedes(value, token, values[last], tokens[last]):
        return
    rank = last
    while rank > 0 and _precedes(value, token, values[rank - 1], tokens[rank - 1]):
        values[rank] = values[rank - 1]
        tokens[rank] = tokens[rank - 1]
        rank -= 1
    values[rank] = value
    tokens[rank] = token


@jit
def _precedes(
    value: np.float32, token: np.int64 | int, other_value: np.float32, other_token: np.int64
) -> np.bool_ | bool:
    """Whether a value and its token come before another in descending order; false for NaN."""
    return value > other_value or (value == other_value and token < other_token)


@jit
def _top_k(
    first: int,
    stop: int,
    bits: Bits,
    source: int,
    tokens: NDArray[np.int64],
    segments: NDArray[np.int64],
    best_values: NDArray[np.float32],
    best_tokens: NDArray[np.int64],
) -> None:
    """Add `bits` [neuron, token], in format `source`, to the best entries [neuron, k] of neurons `first:stop`.

    tokens: [token] ascending. segments: [segment + 1], or empty: then every token is a segment of its own.
    """
    widened = np.empty(0 if source == FLOAT32 else tokens.size, np.uint32)  # [token]; float32 is read where it lies
    for neuron in range(first, stop):
        if source == FLOAT32:
            row = bits[neuron].view(np.float32)  # [token]
        else:
            widen(bits[neuron], source, widened)
            row = widened.view(np.float32)
        values, entry_tokens = best_values[neuron], best_tokens[neuron]  # [k] each
        if segments.size:
            for s in range(segments.size - 1):
                if _promises(row, segments[s], segments[s + 1], tokens, values, entry_tokens):
                    index = _find_largest(row, segments[s], segments[s + 1])
                    insert(values, entry_tokens, row[index], tokens[index])
        else:
            for start in range(0, tokens.size, SPAN):
                span_stop = min(start + SPAN, tokens.size)
                if _promises(row, start, span_stop, tokens, values, entry_tokens):
                    for index in range(start, span_stop):
                        insert(values, entry_tokens, row[index], tokens[index])


@jit
def _promises(
    row: NDArray[np.float32],
    start: int,
    stop: int,
    tokens: NDArray[np.int64],
    values: NDArray[np.float32],
    entry_tokens: NDArray[np.int64],
) -> bool:
    """Whether any value of `row[start:stop]` may be among the k: larger than the last, or a tie at an earlier token.

    The test has no branch per value, so that it vectorises; that most spans fail it is what makes the search fast.
    """
    last = values.size - 1
    if last < 0 or start == stop:
        return False
    least = values[last]
    span = row[start:stop]
    larger, equal = False, False
    for i in range(span.size):
        larger |= span[i] > least
        equal |= span[i] == least
    # The span's first token is its earliest: if that does not win the tie, none does.
    return larger or (equal and tokens[start] < entry_tokens[last])


@jit
def _find_largest(row: NDArray[np.float32], start: int, stop: int) -> int:
    """The first index of the largest value of `row[start:stop]` that is no NaN; `start` where all are NaN or -inf."""
    index = start
    largest = np.float32(-np.inf)
    for i in range(start, stop):
        if row[i] > largest:
            largest = row[i]
            index = i
    return index


@jit
def _merge(
    first: int,
    stop: int,
    values: NDArray[np.float32],
    tokens: NDArray[np.int64],
    other_values: NDArray[np.float32],
    other_tokens: NDArray[np.int64],
) -> None:
    """Insert every entry of another part into the k of its neuron; unused ones, being -inf, are never inserted."""
    for neuron in range(first, stop):
        for i in range(other_values.shape[1]):
            insert(values[neuron], tokens[neuron], other_values[neuron, i], other_tokens[neuron, i])
