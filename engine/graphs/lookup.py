"""What a table of tokens, or of pairs of tokens, predicts of a neuron: the baselines of its graph.

A table holds for each token, or each token after another, how often it occurs in the evidence and how often the neuron fires
there. Knows nothing about graphs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from actstore.kernels.suffix_trie.api import BOUNDARY

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.kernels.suffix_trie.api import Trie


class Entries(NamedTuple):
    """What the positions of a corpus are looked up by."""

    of_rank: NDArray[np.int64]
    """[rank] the entry of each position of text."""
    counts: NDArray[np.int64]
    """[entry] positions that have it."""


def find_entries(trie: Trie, length: int) -> Entries:
    """An entry for each run of `length` tokens that ends at a position; a window's beginning is a token like others."""
    different = np.zeros(len(trie.input_index), bool)
    different[:1] = True
    for depth in range(length):
        reaches = trie.reach >= depth
        token = np.where(reaches, trie.ids[np.maximum(trie.input_index - depth, 0)], BOUNDARY)
        different[1:] |= token[1:] != token[:-1]
    # Ranks follow contexts: positions with the same last tokens lie side by side.
    of_rank = np.cumsum(different) - 1
    return Entries(of_rank, np.bincount(of_rank))


class Table(NamedTuple):
    """What a neuron did at the entries of a lookup."""

    probability: NDArray[np.float64]
    """[entry] of firing: the share of its positions in the evidence that fire; 0 where it has none."""
    value: NDArray[np.float64]
    """[entry] their mean activation in shares of the maximum, 0 where the neuron does not fire."""


def make_table(
    entries: Entries, fires: NDArray[np.int32], values: NDArray[np.float32], counts: NDArray[np.int64]
) -> Table:
    """The table of a neuron.

    fires: [event] ranks in the evidence at which it fires, values: [event] how much; counts: [entry] positions in the evidence.
    """
    n = np.maximum(counts, 1)
    which = entries.of_rank[fires]
    return Table(
        np.bincount(which, minlength=len(n)) / n,
        np.bincount(which, values, minlength=len(n)) / n,
    )


def count_entries(entries: Entries, ranks: NDArray[np.int32]) -> NDArray[np.int64]:
    """How many of some positions have each entry; shape [entry]."""
    return np.bincount(entries.of_rank[ranks], minlength=len(entries.counts))
