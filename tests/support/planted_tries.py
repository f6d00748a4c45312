"""Random corpora, and the trie of a neuron that fires at some of their positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from actstore.kernels.suffix_trie.api import BOUNDARY, Nodes, Trie, build, suffix_trie

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.kernels.suffix_trie import naive

V, A, B, C = 14, 3, 7, 5


class Corpus(NamedTuple):
    """Windows of tokens; `place` are those that are evidence."""

    ids: NDArray[np.int64]
    begins: NDArray[np.int64]
    reach: NDArray[np.int64]
    place: NDArray[np.int64]

    def trie(self, max_depth: int) -> Trie:
        return suffix_trie(self.ids, self.place, self.reach[self.place], max_depth)

    def contexts(self, max_depth: int) -> list[naive.Context]:
        return [
            tuple(int(self.ids[p - d]) if d <= self.reach[p] else BOUNDARY for d in range(max_depth + 1))
            for p in self.place
        ]


def make_corpus(rng: np.random.Generator, n_windows: int, n_tokens: int, longest: int, evidence: float = 1.0) -> Corpus:
    lengths = rng.integers(1, longest + 1, n_windows)
    ids = rng.integers(0, n_tokens, lengths.sum())
    begins = np.cumsum(lengths) - lengths
    reach = np.arange(len(ids)) - np.repeat(begins, lengths)
    return Corpus(ids, begins, reach, np.flatnonzero(rng.random(len(ids)) < evidence))


def build_one(trie: Trie, fires: NDArray[np.bool_], values: NDArray[np.float32], **asked: Any) -> Nodes:
    """The trie of one neuron that fires at some positions."""
    fires, values = fires[trie.order], values[trie.order]
    return build(trie, np.array([0, fires.sum()]), np.flatnonzero(fires).astype(np.int32), values[fires], **asked)


def make_long_corpus() -> Corpus:
    """600 windows of `V` tokens."""
    return make_corpus(np.random.default_rng(0), 600, V, 160)


def earlier(corpus: Corpus, distance: int) -> NDArray[np.int64]:
    """[position] the token so far before each."""
    at = np.arange(len(corpus.ids))
    return np.where(corpus.reach >= distance, corpus.ids[np.maximum(at - distance, 0)], BOUNDARY)
