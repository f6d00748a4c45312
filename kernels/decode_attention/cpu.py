"""Attention of one new token per row on the CPU, over keys and values whose positions follow one another.

Loops run along positions, so that they fill whole vector registers however narrow a head is: the library's own kernels, made
for many queries at once, took 3 to 10 times as long at heads of 8 dimensions. Sums may be reassociated, which is what lets
them be vectorised; their order depends on the number of positions alone.
"""

import numba
import numpy as np
from numpy.typing import NDArray

from actstore.kernels.jit import jit

_LOWEST = np.float32(-87.0)  # e to the power of less is no normal number

# Not nnan or ninf: NaN must stay NaN. Contraction lets a product and a sum become one rounding, where there is the instruction.
_inline = numba.njit(fastmath={"reassoc", "contract", "nsz"}, nogil=True)


@_inline
def _exp(x: np.float32) -> np.float32:
    """Powers of e, of x from -87 to 0, to 2 units in the last place: Cephes' polynomial, which is vectorised."""
    # x = n · ln 2 + r with |r| <= ln 2 / 2. ln 2 is taken off in two parts, the first of which has few bits, so that
    # n times it is exact.
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1)
    # 2^n by its exponent bits: n is -126 or more, so that the number is a normal one.
    power: np.float32 = p * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return power


@_inline
def _weigh(scores: NDArray[np.float32], n: int) -> np.float32:
    """The sum of the weights that the first n `scores` [position] are turned into, in place, not yet divided by it.

    The largest score is subtracted first: no weight is above 1, and the sum is 1 or more.
    """
    highest = scores[0]
    for t in range(n):
        highest = max(highest, scores[t])
    total = np.float32(0)
    for t in range(n):
        weight = _exp(max(scores[t] - highest, _LOWEST))
        scores[t] = weight
        total += weight
    return total


@_inline
def _dot(scores: NDArray[np.float32], row: NDArray[np.float32], n: int) -> np.float32:
    """The inner product of the first n `scores` and the first n of `row`."""
    total = np.float32(0)
    for t in range(n):
        total += scores[t] * row[t]
    return total


@jit
def attend(
    first: int,
    stop: int,
    query: NDArray[np.float32],
    keys: NDArray[np.float32],
    values: NDArray[np.float32],
    n: int,
    scale: np.float32,
    out: NDArray[np.float32],
) -> None:
    """Fill `out` for rows `first:stop` with the attention over the first `n` positions.

    query, out: [row, head, dimension]. keys, values: [row, group, dimension, position], with room for more than n positions.
    """
    n_groups, size = keys.shape[1], keys.shape[2]
    heads_per_group = query.shape[1] // n_groups
    scores = np.empty(n, np.float32)  # [position]; of one head at a time
    for row in range(first, stop):
        for group in range(n_groups):
            key, value = keys[row, group], values[row, group]  # [dimension, position] each
            for head in range(group * heads_per_group, (group + 1) * heads_per_group):
                scores[:] = 0
                for d in range(size):
                    query_value, key_row = query[row, head, d] * scale, key[d]
                    # Positions are the inner loop: it is long however narrow the head, and runs along memory.
                    for t in range(n):
                        scores[t] += query_value * key_row[t]
                total = _weigh(scores, n)
                for d in range(size):
                    out[row, head, d] = _dot(scores, value[d], n) / total
