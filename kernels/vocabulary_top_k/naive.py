"""The tokens that every neuron promotes and suppresses most: the specification, in plain numpy and float64."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.floats import FloatArray, as_array, decode
from actstore.kernels.top_k.naive import TopK

if TYPE_CHECKING:
    import torch


class VocabularyTopK(NamedTuple):
    """The vocabulary's tokens with the largest and with the smallest products of every neuron."""

    largest: TopK
    """Values [neuron, k], descending, and token ids; unused entries are -inf with token -1."""
    smallest: TopK
    """Values [neuron, k], ascending, and token ids; unused entries are +inf with token -1."""


def vocabulary_top_k(
    write_vectors: "torch.Tensor | FloatArray",
    unembedding: "torch.Tensor | FloatArray",
    k: int,
    gain: "torch.Tensor | FloatArray | None" = None,
) -> VocabularyTopK:
    """The k largest and the k smallest of `w · (gain ⊙ u)`; see `api.vocabulary_top_k`."""
    directions = _float64(unembedding) * (1.0 if gain is None else _float64(gain))
    with np.errstate(invalid="ignore"):
        products = _float64(write_vectors) @ directions.T
    largest, smallest = _largest(products, k), _largest(-products, k)
    return VocabularyTopK(largest, TopK(-smallest.values, smallest.tokens))


def _largest(products: NDArray[np.float64], k: int) -> TopK:
    best = TopK(np.full((len(products), k), -np.inf, np.float32), np.full((len(products), k), -1))
    for neuron, row in enumerate(products):
        numbers = np.where(np.isnan(row), -np.inf, row)
        tokens = [token for token in np.argsort(-numbers, kind="stable")[:k] if numbers[token] > -np.inf]
        best.values[neuron, : len(tokens)] = numbers[tokens]
        best.tokens[neuron, : len(tokens)] = tokens
    return best


def _float64(values: "torch.Tensor | FloatArray") -> NDArray[np.float64]:
    return decode(as_array(values)).astype(np.float64)
