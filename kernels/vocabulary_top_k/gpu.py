"""The tokens that neurons promote and suppress, on a GPU; takes tensors of any device that Triton runs on.

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
from actstore.kernels.gpu import INFINITY, MAGNITUDE, jit, launch, upload
from actstore.kernels.top_k.naive import TopK
from actstore.kernels.vocabulary_top_k.naive import VocabularyTopK

PARTS = 4  # of the vocabulary, so that a few thousand neurons give work to every processor
MAX_ENTRIES = 32  # of a neuron, for which a tile of NEURONS neurons has the registers
FEW_NEURONS = 16  # of the smaller tile for a larger k
_TOKEN_BITS = tl.constexpr(31)
_TOKENS = tl.constexpr((1 << 31) - 1)
_EMPTY = tl.constexpr(-(1 << 62))  # below the key of every finite product; unused entries count up from it
_FULL = tl.constexpr(1 << 62)  # above every key


class DeviceTopK(NamedTuple):
    """Keys [neuron, k] int64 on a device, descending: of the products, and of their negatives."""

    largest: Tensor  # keys of the products
    negated: Tensor  # keys of their negatives, of which the largest are the smallest products

    def to_host(self) -> VocabularyTopK:
        """The products and tokens that the keys stand for; waits for the device."""
        smallest = _decode(self.negated)
        return VocabularyTopK(_decode(self.largest), TopK(-smallest.values, smallest.tokens))


def vocabulary_top_k(
    write_vectors: Tensor, unembedding: Tensor, k: int, gain: NDArray[np.float32] | None = None
) -> DeviceTopK:
    """The k largest and smallest products of every neuron; see `api.vocabulary_top_k`."""
    device, n_neurons, n_tokens = write_vectors.device, len(write_vectors), len(unembedding)
    entries = triton.next_power_of_2(k)
    tile_neurons = NEURONS if entries <= MAX_ENTRIES else FEW_NEURONS
    n_parts = max(1, min(PARTS, triton.cdiv(n_tokens, COLUMNS)))
    keys = torch.full((2, n_neurons, n_parts, k), _EMPTY.value, dtype=torch.int64, device=device)
    if n_neurons and n_tokens and k:
        launch(
            _top_k,
            triton.cdiv(n_neurons, tile_neurons) * n_parts,
            n_tokens=n_tokens,
            n_parts=n_parts,
            part=triton.cdiv(triton.cdiv(n_tokens, n_parts), COLUMNS) * COLUMNS,
            keys=keys,
            side=keys.stride(0),
            k=k,
            ENTRIES=entries,
            on=write_vectors,
            fuse=True,
            **factors(write_vectors, unembedding, None if gain is None else upload(gain, device), neurons=tile_neurons),
        )
    return DeviceTopK(*keys.view(2, n_neurons, n_parts * k).sort(dim=2, descending=True).values[:, :, :k])


def _decode(keys: Tensor) -> TopK:
    """The products and tokens that `keys` [neuron, k] stand for; waits for the device."""
    host = keys.cpu().numpy()
    unused = host < _EMPTY.value + (1 << 53)
    ordered = (host >> _TOKEN_BITS.value).astype(np.int32)
    values = np.where(ordered < 0, ordered ^ np.int32(MAGNITUDE.value), ordered).view(np.float32)
    return TopK(
        np.where(unused, np.float32(-np.inf), values), np.where(unused, -1, _TOKENS.value - (host & _TOKENS.value))
    )


@jit
def _insert(best: tl.tensor, products: tl.tensor, tokens: tl.tensor, valid: tl.tensor, k: tl.tensor) -> tl.tensor:
    """The `best` keys [NEURONS, ENTRIES], the least of each neuron replaced by those of larger products.

    best: int64, all of a neuron different, in no order. products: [NEURONS, COLUMNS] float32. tokens: [COLUMNS] int64. valid:
    [COLUMNS] bool, False for a column beyond the part. -inf and NaN are never inserted.
    """
    bits = products.to(tl.int32, bitcast=True)  # [NEURONS, COLUMNS]
    magnitude = bits & MAGNITUDE
    # As integers, negative floats are in reverse order: all bits but the sign are flipped. -0 and 0 tie.
    ordered = tl.where(magnitude == 0, 0, tl.where(bits < 0, bits ^ MAGNITUDE, bits))
    wins = valid[None, :] & (magnitude <= INFINITY) & ((magnitude < INFINITY) | (bits > 0))
    # [NEURONS, COLUMNS]
    candidates = tl.where(wins, (ordered.to(tl.int64) << _TOKEN_BITS) + (_TOKENS - tokens[None, :]), _EMPTY)
    n_larger = tl.sum((candidates > tl.min(best, axis=1)[:, None]).to(tl.int32), axis=1)  # [NEURONS]
    # Most tiles hold little that is large enough: as many rounds as the neuron with the most needs, and never more than k.
    for _ in range(tl.minimum(tl.max(n_larger, axis=0), k)):
        largest = tl.max(candidates, axis=1)[:, None]  # [NEURONS, 1]
        best = tl.where((best == tl.min(best, axis=1)[:, None]) & (best < largest), largest, best)
        candidates = tl.where(candidates == largest, _EMPTY, candidates)  # keys differ: one goes
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
    ENTRIES: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    PRODUCTS: tl.constexpr,
    NEURONS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    """Fill the keys of the k largest and the k smallest products of a tile of neurons over one part of the vocabulary.

    Grid: [tile of NEURONS neurons × n_parts], parts fastest. A program streams `part` tokens, COLUMNS at a time.

    keys: [2, neuron, n_parts, k] int64, contiguous, `side` elements between the two: keys of the products, and of their
    negatives, in no order; unused entries are near `_EMPTY`. factors: what is multiplied, and LEFT, RIGHT, PRODUCTS and DEPTH
    how; see `gpu_products.multiply`. ENTRIES: k rounded up to a power of two. The last part may be shorter, or empty.
    """
    program = tl.program_id(0).to(tl.int64)
    part_index = program % n_parts
    neurons = program // n_parts * NEURONS + tl.arange(0, NEURONS)  # [NEURONS]
    entries = tl.arange(0, ENTRIES).to(tl.int64)  # [ENTRIES]
    # No two unused entries of a neuron are alike, so that one is replaced at a time; those beyond k are above every key.
    unused = tl.where(entries < k, _EMPTY + 1 + entries, _FULL)[None, :]
    largest = unused + tl.zeros([NEURONS, ENTRIES], tl.int64)  # [NEURONS, ENTRIES]
    negated = largest
    stop = tl.minimum((part_index + 1) * part, n_tokens)
    for tile_start in range(part_index * part, stop, COLUMNS):
        tokens = tile_start + tl.arange(0, COLUMNS).to(tl.int64)  # [COLUMNS]
        valid = tokens < stop
        # [NEURONS, COLUMNS]
        product = multiply(factors, neurons, tokens, valid, LEFT, RIGHT, PRODUCTS, NEURONS, COLUMNS, DEPTH)
        largest = _insert(largest, product, tokens, valid, k)
        negated = _insert(negated, -product, tokens, valid, k)
    targets = keys + ((neurons * n_parts + part_index) * k)[:, None] + entries[None, :]  # [NEURONS, ENTRIES]
    inside = (neurons < factors.n_neurons)[:, None] & (entries < k)[None, :]
    tl.store(targets, largest, mask=inside)
    tl.store(targets + side, negated, mask=inside)
