"""The k largest activations of every neuron: the specification, in plain Python."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.floats import FloatArray, decode


class TopK(NamedTuple):
    """The largest values of every neuron, descending, and their tokens; unused entries are -inf with token -1."""

    values: NDArray[np.float32]  # [neuron, k]
    tokens: NDArray[np.int64]  # [neuron, k]


def top_k(
    values: FloatArray,
    tokens: NDArray[np.int64],
    k: int,
    segments: NDArray[np.int64] | None = None,
    state: TopK | None = None,
) -> TopK:
    """The k largest of `values` [neuron, token] and `state` together; see `api.top_k`."""
    decoded = decode(values)
    spans = [*pairwise(range(len(tokens) + 1) if segments is None else segments)]
    result = TopK(np.full((len(values), k), -np.inf, np.float32), np.full((len(values), k), -1, np.int64))
    for neuron, row in enumerate(decoded):
        candidates = [] if state is None else [*zip(state.values[neuron], state.tokens[neuron], strict=True)]
        for start, stop in spans:
            candidates += sorted(zip(row[start:stop], tokens[start:stop], strict=True), key=_order)[:1]
        best = sorted((entry for entry in candidates if entry[0] > -np.inf), key=_order)[:k]
        for rank, (value, token) in enumerate(best):
            result.values[neuron, rank] = value
            result.tokens[neuron, rank] = token
    return result


def merge(a: TopK, b: TopK) -> TopK:
    """The k largest of two parts together."""
    return top_k(
        np.empty((len(a.values), 0), np.float32), np.empty(0, np.int64), a.values.shape[1], state=_joined(a, b)
    )


def _joined(a: TopK, b: TopK) -> TopK:
    return TopK(np.concatenate([a.values, b.values], axis=1), np.concatenate([a.tokens, b.tokens], axis=1))


def _order(entry: tuple[np.float32, np.int64]) -> tuple[float, int]:
    """Sorts the largest value first, the earlier token on a tie, NaN and -inf last."""
    value, token = entry
    return (np.inf if np.isnan(value) else -float(value), int(token))
