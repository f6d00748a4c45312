"""The tokens that write vectors speak for and against, on a GPU; takes tensors of any device that Triton runs on.

A product and its token become one integer, ordered as the specification orders them: the larger value first, the smaller
token on a tie. All keys of a neuron differ, so that keeping the k largest of them leaves nothing to decide. A program streams
a part of the vocabulary past the keys that a tile of neurons keeps in registers. Checks are made by `api`.
"""

from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from actstore.kernels.contribution.gpu_products import COLUMNS, NEURONS, Factors, factors, multiply
from actstore.kernels.gpu import INFINITY, MAGNITUDE, jit, on_device_of, upload
from actstore.kernels.top_k.naive import TopK
from actstore.kernels.vocabulary_top_k.naive import VocabularyTopK

PARTS = 4  # of the vocabulary, so that a few thousand neurons give work to every processor
PLACES = 32  # for which a tile of that many neurons has the registers
FEW_NEURONS = 16  # a smaller tile, for more
_TOKEN_BITS = tl.constexpr(31)
_TOKENS = tl.constexpr((1 << 31) - 1)
_EMPTY = tl.constexpr(-(1 << 62))  # below the key of every finite product; empty places count up from it
_FULL = tl.constexpr(1 << 62)  # above every key


class DeviceTopK(NamedTuple):
    """Keys [neuron, k] int64 on a device, descending: of the products, and of their negatives."""

    largest: Tensor
    negated: Tensor

    def to_host(self) -> VocabularyTopK:
        """The products and tokens that the keys stand for; waits for the device."""
        smallest = _decode(self.negated)
        return VocabularyTopK(_decode(self.largest), TopK(-smallest.values, smallest.tokens))


def vocabulary_top_k(
    write_vectors: Tensor, unembedding: Tensor, k: int, gain: NDArray[np.float32] | None = None
) -> DeviceTopK:
    """The k largest and smallest products of every neuron; see `api.vocabulary_top_k`."""
    device, n_neurons, n_tokens = write_vectors.device, len(write_vectors), len(unembedding)
    places = triton.next_power_of_2(k)
    neurons = NEURONS if places <= PLACES else FEW_NEURONS
    n_parts = max(1, min(PARTS, triton.cdiv(n_tokens, COLUMNS)))
    keys = torch.full((2, n_neurons, n_parts, k), _EMPTY.value, dtype=torch.int64, device=device)
    if n_neurons and n_tokens and k:
        with on_device_of(write_vectors):
            _top_k[(triton.cdiv(n_neurons, neurons) * n_parts,)](
                n_tokens=n_tokens,
                n_parts=n_parts,
                part=triton.cdiv(triton.cdiv(n_tokens, n_parts), COLUMNS) * COLUMNS,
                keys=keys,
                side=keys.stride(0),
                k=k,
                PLACES=places,
                **factors(write_vectors, unembedding, None if gain is None else upload(gain, device), neurons=neurons),
            )
    return DeviceTopK(*keys.view(2, n_neurons, n_parts * k).sort(dim=2, descending=True).values[:, :, :k])


def _decode(keys: Tensor) -> TopK:
    host = keys.cpu().numpy()
    empty = host < _EMPTY.value + (1 << 53)
    ordered = (host >> _TOKEN_BITS.value).astype(np.int32)
    values = np.where(ordered < 0, ordered ^ np.int32(MAGNITUDE.value), ordered).view(np.float32)
    return TopK(
        np.where(empty, np.float32(-np.inf), values), np.where(empty, -1, _TOKENS.value - (host & _TOKENS.value))
    )


@jit
def _insert(best: tl.tensor, products: tl.tensor, tokens: tl.tensor, there: tl.tensor, k: tl.tensor) -> tl.tensor:
    """The `best` keys [neuron, place], the least of them replaced by those of larger `products` [neuron, token]."""
    bits = products.to(tl.int32, bitcast=True)
    magnitude = bits & MAGNITUDE
    ordered = tl.where(magnitude == 0, 0, tl.where(bits < 0, bits ^ MAGNITUDE, bits))
    wins = there[None, :] & (magnitude <= INFINITY) & ((magnitude < INFINITY) | (bits > 0))
    found = tl.where(wins, (ordered.to(tl.int64) << _TOKEN_BITS) + (_TOKENS - tokens[None, :]), _EMPTY)
    n_larger = tl.sum((found > tl.min(best, axis=1)[:, None]).to(tl.int32), axis=1)
    # Most tiles hold little that is large enough.
    for _ in range(tl.minimum(tl.max(n_larger, axis=0), k)):
        largest = tl.max(found, axis=1)[:, None]
        best = tl.where((best == tl.min(best, axis=1)[:, None]) & (best < largest), largest, best)
        found = tl.where(found == largest, _EMPTY, found)
    return best


@jit
def _top_k(
    n_tokens: tl.tensor,
    n_parts: tl.tensor,
    part: tl.tensor,
    keys: tl.tensor,
    side: tl.tensor,
    k: tl.tensor,
    factors: Factors,
    PLACES: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    NATIVE: tl.constexpr,
    NEURONS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    program = tl.program_id(0).to(tl.int64)
    own = program % n_parts
    neurons = program // n_parts * NEURONS + tl.arange(0, NEURONS)
    places = tl.arange(0, PLACES).to(tl.int64)
    # No two empty places of a neuron are alike, and one beyond k is full for ever.
    empty = tl.where(places < k, _EMPTY + 1 + places, _FULL)[None, :]
    largest = empty + tl.zeros([NEURONS, PLACES], tl.int64)
    negated = largest
    stop = tl.minimum((own + 1) * part, n_tokens)
    for first in range(own * part, stop, COLUMNS):
        tokens = first + tl.arange(0, COLUMNS).to(tl.int64)
        there = tokens < stop
        product = multiply(factors, neurons, tokens, there, LEFT, RIGHT, NATIVE, NEURONS, COLUMNS, DEPTH)
        largest = _insert(largest, product, tokens, there, k)
        negated = _insert(negated, -product, tokens, there, k)
    at = keys + ((neurons * n_parts + own) * k)[:, None] + places[None, :]
    inside = (neurons < factors.n_neurons)[:, None] & (places < k)[None, :]
    tl.store(at, largest, mask=inside)
    tl.store(at + side, negated, mask=inside)
