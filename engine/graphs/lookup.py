"""Predictions by a lookup table of tokens, or of pairs of tokens: the baselines of graphs.

For each token, or each pair of consecutive tokens, a table has the number of its occurrences in the evidence and the number of
those at which the neuron fires.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from actstore.kernels.suffix_trie.api import BOUNDARY

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.kernels.suffix_trie.api import Trie


class Entries(NamedTuple):
    """The entry of a lookup table that belongs to each position of a corpus."""

    of_rank: NDArray[np.int64]
    """[rank] the entry of each position of text."""
    counts: NDArray[np.int64]
    """[entry] number of its positions."""


def find_entries(trie: Trie, length: int) -> Entries:
    """One entry per sequence of `length` tokens that ends at a position; the beginning of a window counts as a token."""
    is_new = np.zeros(len(trie.input_index), bool)
    is_new[:1] = True
    for depth in range(length):
        reaches = trie.reach >= depth
        token = np.where(reaches, trie.ids[np.maximum(trie.input_index - depth, 0)], BOUNDARY)
        is_new[1:] |= token[1:] != token[:-1]
    # Ranks are in the order of contexts: positions with the same last tokens are neighbours.
    of_rank = np.cumsum(is_new) - 1
    return Entries(of_rank, np.bincount(of_rank))


class Table(NamedTuple):
    """The predictions of one neuron at the entries of a lookup table."""

    probability: NDArray[np.float64]
    """[entry] the share of its positions in the evidence that fire; 0 where it has none."""
    value: NDArray[np.float64]
    """[entry] their mean activation as a share of the maximum, where positions that do not fire count as 0."""


def make_table(
    entries: Entries, fires: NDArray[np.int32], values: NDArray[np.float32], counts: NDArray[np.int64]
) -> Table:
    """The table of a neuron.

    fires: [event] ranks in the evidence at which it fires. values: [event] its activation there. counts: [entry] number of
    positions in the evidence.
    """
    n = np.maximum(counts, 1)
    entry = entries.of_rank[fires]
    return Table(
        np.bincount(entry, minlength=len(n)) / n,
        np.bincount(entry, values, minlength=len(n)) / n,
    )


def count_entries(entries: Entries, ranks: NDArray[np.int32]) -> NDArray[np.int64]:
    """[entry] the number of its positions among `ranks`."""
    return np.bincount(entries.of_rank[ranks], minlength=len(entries.counts))
