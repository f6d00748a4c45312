"""The tokens that neurons promote and suppress, on the CPU: the product by BLAS, its extremes compiled.

The vocabulary streams through tiles of the product; a neuron's k largest so far say what may still enter, and most of the
tile holds nothing that may. Checks are made by `api`.
"""

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.contribution.products import Factors, Tile, as_tensor, over_tiles
from actstore.kernels.floats import FloatArray
from actstore.kernels.jit import jit
from actstore.kernels.top_k.cpu import insert
from actstore.kernels.top_k.naive import TopK
from actstore.kernels.vocabulary_top_k.naive import VocabularyTopK

SPAN = 64  # products that are looked at together: that test vectorises


def vocabulary_top_k(
    write_vectors: FloatArray, unembedding: FloatArray, k: int, gain: NDArray[np.float32] | None, threads: int
) -> VocabularyTopK:
    """The k largest and smallest products of every neuron; see `api.vocabulary_top_k`."""
    shape = (len(write_vectors), k)
    largest, smallest = (TopK(np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int64)) for _ in range(2))

    def insert_products(product: NDArray[np.float32], tile: Tile) -> None:
        _insert_products(product, tile, *largest, *smallest)

    if k:
        factors = Factors(
            as_tensor(write_vectors), as_tensor(unembedding), None, None if gain is None else as_tensor(gain)
        )
        over_tiles(factors, insert_products, threads)
    np.negative(smallest.values, out=smallest.values)
    return VocabularyTopK(largest, smallest)


@jit
def _insert_products(
    product: NDArray[np.float32],
    tile: Tile,
    largest: NDArray[np.float32],
    largest_tokens: NDArray[np.int64],
    negated: NDArray[np.float32],
    smallest_tokens: NDArray[np.int64],
) -> None:
    """Insert a tile's products into `largest`, and what is smallest of them into `negated`, with its sign changed.

    product: [neuron of the tile, column of the tile]. largest, negated and their tokens: [neuron, k], descending. A neuron's
    tiles come in the order of their columns: a token that ties with the last of the k comes later and is not inserted.
    """
    last = largest.shape[1] - 1
    for i in range(tile.n_neurons):
        neuron = tile.neuron + i
        row = product[i, : tile.n_columns]  # [column of the tile]
        for start in range(0, row.size, SPAN):
            span = row[start : start + SPAN]
            above, below = largest[neuron, last], -negated[neuron, last]  # what a product must exceed, and fall below
            # Most spans hold nothing that may be inserted, and this test vectorises. NaN passes neither comparison.
            enters = False
            for j in range(span.size):
                enters |= (span[j] > above) | (span[j] < below)
            if enters:
                for j in range(span.size):
                    token = tile.column + start + j
                    # Asked again for each: an insertion before it in the span has raised the bar.
                    if span[j] > largest[neuron, last]:
                        insert(largest[neuron], largest_tokens[neuron], span[j], token)
                    if -span[j] > negated[neuron, last]:
                        insert(negated[neuron], smallest_tokens[neuron], -span[j], token)
