"""The tokens that every neuron's write vector speaks for and against: the specification, in plain numpy and float64."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.floats import as_array, decode
from actstore.kernels.top_k.naive import TopK


class VocabularyTopK(NamedTuple):
    """The vocabulary's tokens with the largest and with the smallest products of every neuron."""

    largest: TopK
    """Values [neuron, k], descending, and token ids; an empty place is -inf and token -1."""
    smallest: TopK
    """Values [neuron, k], ascending, and token ids; an empty place is +inf and token -1."""


def vocabulary_top_k(write_vectors: Any, unembedding: Any, k: int, gain: Any = None) -> VocabularyTopK:
    """The k largest and the k smallest of `w · (gain ⊙ u)`; see `api.vocabulary_top_k`."""
    directions = _float64(unembedding) * (1.0 if gain is None else _float64(gain))
    with np.errstate(invalid="ignore"):
        products = _float64(write_vectors) @ directions.T
    largest, smallest = _largest(products, k), _largest(-products, k)
    return VocabularyTopK(largest, TopK(-smallest.values, smallest.tokens))


def _largest(products: NDArray[np.float64], k: int) -> TopK:
    best = TopK(np.full((len(products), k), -np.inf, np.float32), np.full((len(products), k), -1))
    for neuron, row in enumerate(products):
        row = np.where(np.isnan(row), -np.inf, row)
        tokens = [token for token in np.argsort(-row, kind="stable")[:k] if row[token] > -np.inf]
        best.values[neuron, : len(tokens)] = row[tokens]
        best.tokens[neuron, : len(tokens)] = tokens
    return best


def _float64(values: Any) -> NDArray[np.float64]:
    return decode(as_array(values)).astype(np.float64)
