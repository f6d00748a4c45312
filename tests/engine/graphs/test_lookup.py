"""Lookup tables against dictionaries filled position by position."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from actstore.engine.graphs.lookup import count_entries, find_entries, make_table
from actstore.kernels.suffix_trie.api import suffix_trie

if TYPE_CHECKING:
    from numpy.typing import NDArray


def runs(ids: NDArray[np.int64], lengths: list[int], size: int) -> list[tuple[int, ...]]:
    """The last `size` tokens of each position, -2 before its window."""
    result, begin = [], 0
    for length in lengths:
        padded = [-2] * size + ids[begin : begin + length].tolist()
        result += [tuple(padded[i + 1 : i + 1 + size]) for i in range(length)]
        begin += length
    return result


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    n_tokens=st.integers(1, 6),
    size=st.integers(1, 2),
    max_depth=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_a_table_counts_what_a_dictionary_counts(
    lengths: list[int], n_tokens: int, size: int, max_depth: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    ids, index = rng.integers(0, n_tokens, n), np.arange(n)
    reach = np.concatenate([np.arange(length) for length in lengths])
    trie = suffix_trie(ids, index, reach, max_depth)
    evidence, fires = rng.random(n) < 0.7, rng.random(n) < 0.3
    values = rng.random(n).astype(np.float32)
    rank = np.empty(n, np.int64)
    rank[trie.order] = np.arange(n)

    entries = find_entries(trie, size)
    seen = np.flatnonzero(fires & evidence)
    table = make_table(entries, rank[seen], values[seen], count_entries(entries, rank[evidence]))

    run = runs(ids, lengths, size)
    counts = Counter(r for r, e in zip(run, evidence, strict=True) if e)
    firing = Counter(run[i] for i in seen)
    sums: defaultdict[tuple[int, ...], float] = defaultdict(float)
    for i in seen:
        sums[run[i]] += float(values[i])
    entry = entries.of_rank[rank]
    expected = [firing[r] / counts[r] if counts[r] else 0.0 for r in run]
    np.testing.assert_allclose(table.probability[entry], expected, rtol=1e-12)
    np.testing.assert_allclose(table.value[entry], [sums[r] / counts[r] if counts[r] else 0.0 for r in run], rtol=1e-6)
    assert len(set(zip(entry.tolist(), run, strict=True))) == len(set(run)) == len(entries.counts)
    assert entries.counts.sum() == n


def test_entries_of_no_position_are_none() -> None:
    nothing = np.empty(0, np.int64)
    entries = find_entries(suffix_trie(nothing, nothing, nothing), 2)
    assert len(entries.of_rank) == len(entries.counts) == 0
