"""The k largest activations of every neuron, compiled."""

from typing import Any

import numpy as np

from actstore.kernels.bits import BITS_DTYPES, FLOAT32, FORMAT_CODES, widen
from actstore.kernels.jit import jit, over_neurons

SPAN = 256  # tokens that are looked at together: most spans hold nothing large enough, and that test vectorises


def top_k(values: Any, tokens: Any, segments: Any, best_values: Any, best_tokens: Any, threads: int) -> None:
    """Add `values` [neuron, token] to the `best_values` and `best_tokens` [neuron, k]; see `api.top_k`.

    segments: empty where every token stands for itself.
    """
    source = FORMAT_CODES[values.dtype]
    bits = np.ascontiguousarray(values).view(BITS_DTYPES[source])
    over_neurons(_top_k, len(bits), 1, threads, bits, source, tokens, segments, best_values, best_tokens)


def merge(values: Any, tokens: Any, other_values: Any, other_tokens: Any, threads: int) -> None:
    """Add the entries of another part to `values` and `tokens` [neuron, k]."""
    over_neurons(_merge, len(values), 1, threads, values, tokens, other_values, other_tokens)


@jit
def insert(values: Any, tokens: Any, value: Any, token: Any) -> None:
    """Put a value into its place in one neuron's descending `values` [k] and `tokens` [k], if it has one."""
    last = values.size - 1
    if last < 0 or not value > -np.inf or not _precedes(value, token, values[last], tokens[last]):
        return
    place = last
    while place > 0 and _precedes(value, token, values[place - 1], tokens[place - 1]):
        values[place] = values[place - 1]
        tokens[place] = tokens[place - 1]
        place -= 1
    values[place] = value
    tokens[place] = token


@jit
def _precedes(value: Any, token: Any, other_value: Any, other_token: Any) -> Any:
    return value > other_value or (value == other_value and token < other_token)


@jit
def _top_k(
    first: int, stop: int, bits: Any, source: int, tokens: Any, segments: Any, best_values: Any, best_tokens: Any
) -> None:
    widened = np.empty(0 if source == FLOAT32 else tokens.size, np.uint32)
    for neuron in range(first, stop):
        if source == FLOAT32:
            row = bits[neuron].view(np.float32)
        else:
            widen(bits[neuron], source, widened)
            row = widened.view(np.float32)
        values, places = best_values[neuron], best_tokens[neuron]
        if segments.size:
            for s in range(segments.size - 1):
                if _promises(row, segments[s], segments[s + 1], tokens, values, places):
                    at = _find_largest(row, segments[s], segments[s + 1])
                    insert(values, places, row[at], tokens[at])
        else:
            for start in range(0, tokens.size, SPAN):
                end = min(start + SPAN, tokens.size)
                if _promises(row, start, end, tokens, values, places):
                    for at in range(start, end):
                        insert(values, places, row[at], tokens[at])


@jit
def _promises(row: Any, start: int, stop: int, tokens: Any, values: Any, places: Any) -> bool:
    """Whether any value of a span may enter: it is larger than the last, or ties with it and comes earlier."""
    last = values.size - 1
    if last < 0 or start == stop:
        return False
    least = values[last]
    span = row[start:stop]
    larger, equal = False, False
    for i in range(span.size):
        larger |= span[i] > least
        equal |= span[i] == least
    return larger or (equal and tokens[start] < places[last])


@jit
def _find_largest(row: Any, start: int, stop: int) -> int:
    """The first place of the largest value that is no NaN."""
    at = start
    largest = np.float32(-np.inf)
    for i in range(start, stop):
        if row[i] > largest:
            largest = row[i]
            at = i
    return at


@jit
def _merge(first: int, stop: int, values: Any, tokens: Any, other_values: Any, other_tokens: Any) -> None:
    for neuron in range(first, stop):
        for i in range(other_values.shape[1]):
            insert(values[neuron], tokens[neuron], other_values[neuron, i], other_tokens[neuron, i])
