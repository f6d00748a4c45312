"""The tokens of a corpus block in the order of their targets."""

from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray


class Entries(NamedTuple):
    """Every (token, group) of a block, ascending by target, then by group, then by token.

    Indices that compiled code follows are unsigned: numba tests a signed one for being negative.
    """

    rows: NDArray[np.int64]
    """[target] the row of each distinct target, ascending: one product for each, however many tokens have it."""
    firsts: NDArray[np.int64]
    """[target + 1] entries `firsts[i]:firsts[i + 1]` have target i."""
    targets: NDArray[np.uint32]
    """[entry] index into `rows`."""
    groups: NDArray[np.uint32]
    """[entry] the group to whose sums it is added."""
    tokens: NDArray[np.uint32]
    """[entry] column of the block's activations."""

    @classmethod
    def of(cls, rows: NDArray[np.int64], groups: NDArray[np.int64]) -> Self:
        """The entries of tokens with target `rows` [token] and `groups` [token, column], -1 for none."""
        tokens, columns = np.nonzero(groups >= 0)
        of_entry = groups[tokens, columns]
        order = np.lexsort((tokens, of_entry, rows[tokens]))
        distinct, targets = np.unique(rows[tokens[order]], return_inverse=True)
        firsts = np.searchsorted(targets, np.arange(len(distinct) + 1))
        return cls(distinct, firsts, *(a.astype(np.uint32) for a in (targets, of_entry[order], tokens[order])))
