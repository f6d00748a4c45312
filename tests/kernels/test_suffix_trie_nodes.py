"""Which nodes a neuron's trie keeps, and with which probabilities: against the formulas, written out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from planted_tries import A, B, C, build_one, earlier, make_corpus, make_long_corpus

from actstore.kernels.suffix_trie.api import BOUNDARY, Settings, predict

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.kernels.suffix_trie import naive


def longest_contexts(contexts: list[naive.Context], fires: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[position] the probability of firing in its longest context, with kappa 1."""
    p = np.full(len(fires), fires.mean())
    # A context goes on as long as some of its positions fire and others do not.
    goes_on = np.ones(len(fires), bool)
    for depth in range(len(contexts[0])):
        keys = [context[: depth + 1] for context in contexts]
        same = np.array([[int(a == b) for b in keys] for a in keys])
        longer = (same @ fires + p) / (same.sum(axis=1) + 1)
        p = np.where(goes_on, longer, p)
        mixed = (same @ fires > 0) & (same @ ~fires > 0)
        goes_on &= mixed & np.array([key[-1] != BOUNDARY for key in keys])
    return p


def test_probabilities_are_the_means_of_those_of_the_longest_contexts() -> None:
    rng = np.random.default_rng(5)
    corpus = make_corpus(rng, 6, 3, 14)
    contexts, fires = corpus.contexts(3), (corpus.ids == 1) & (rng.random(len(corpus.ids)) < 0.6)
    expected = longest_contexts(contexts, fires)
    wanted = Settings(gain=0.01, max_depth=3, max_skip=0)
    nodes = build_one(corpus.trie(3), fires, np.ones(len(fires), np.float32), settings=wanted)
    path_node = predict(nodes, corpus.ids, corpus.begins).node[0]
    ends = np.flatnonzero(nodes.ends)
    assert len(np.unique(path_node[path_node >= 0])) > 3
    for node in np.intersect1d(ends, path_node):
        # The mean over the positions whose path ends there.
        assert nodes.probability[node] == pytest.approx(expected[path_node == node].mean())


def test_a_number_of_nodes_keeps_those_that_tell_most() -> None:
    c = make_long_corpus()
    after_a, after_c = (c.ids == B) & (earlier(c, 1) == A), (c.ids == B) & (earlier(c, 1) == C) & (earlier(c, 2) == C)
    fires, trie = after_a | after_c, c.trie(12)
    assert after_a.sum() > 10 * after_c.sum() > 0
    found = {}
    for limit in (0, 4, 2, 1):
        nodes = build_one(trie, fires, np.ones(len(fires), np.float32), settings=Settings(nodes=limit, gain=0.1))
        found[limit] = nodes
        paths, path = set(), list[int]()
        for node in range(len(nodes.token)):
            path = [*path[: nodes.depth[node]], int(nodes.token[node])]
            paths.add(tuple(path))
        if limit:
            expected = [(B,), (B, A), (B, C), (B, C, C)][:limit]
            assert paths == set(expected)
    whole, root = found[4], found[1]
    assert len(found[0].token) >= 4
    # What is cut off counts among what the path above stands for.
    assert root.probability[0] == pytest.approx(fires.sum() / (c.ids == B).sum(), abs=0.01)
    assert (root.count[0], root.fires[0]) == (whole.count[0], whole.fires[0])
