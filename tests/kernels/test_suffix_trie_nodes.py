"""Which nodes a neuron's trie keeps, and with which probabilities: against the formulas, written out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from planted_tries import A, B, C, build_one, earlier, make_corpus, make_long_corpus

from actstore.kernels.suffix_trie.api import BOUNDARY, Settings, suffix_trie

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.kernels.suffix_trie import naive
    from actstore.kernels.suffix_trie.api import Nodes


def look_ahead(contexts: list[naive.Context], fires: NDArray[np.bool_]) -> list[tuple[naive.Context, int, float]]:
    """Further positions that are to be expected: context, number, probability of firing; with kappa 1.

    As many as were seen in each longest context, and in each shorter one, in no known longer one, as many as were seen once.
    """
    expected: list[tuple[naive.Context, int, float]] = []

    def grow(context: naive.Context, positions: NDArray[np.int64], prior: float) -> None:
        n, f = len(positions), int(fires[positions].sum())
        if not 0 < f < n or len(context) == len(contexts[0]) or context[-1] == BOUNDARY:
            expected.append((context, n, (f + prior) / (n + 1)))
            return
        tokens = np.array([contexts[position][len(context)] for position in positions])
        children = {int(token): positions[tokens == token] for token in np.unique(tokens)}
        weight = sum(len(child) / (len(child) + 1) for child in children.values())
        firing = sum(fires[child].sum() / (len(child) + 1) for child in children.values())
        p = (firing + prior) / (weight + 1)
        expected.append((context, sum(len(child) == 1 for child in children.values()), p))
        for token, child in children.items():
            grow((*context, token), child, p)

    activating = np.array([context[0] for context in contexts])
    for token in np.unique(activating[fires]).tolist():
        grow((token,), np.flatnonzero(activating == token), float(fires.mean()))
    return expected


def paths_of(nodes: Nodes) -> list[naive.Context]:
    """[node] the tokens from the activating one to that of the node."""
    paths: list[naive.Context] = []
    for parent, token in zip(nodes.parent.tolist(), nodes.token.tolist(), strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    return paths


@pytest.mark.parametrize("gain", [-1.0, 0.01, 0.5])
def test_probabilities_are_the_means_of_what_is_expected_of_further_positions(gain: float) -> None:
    rng = np.random.default_rng(5)
    corpus = make_corpus(rng, 6, 3, 14)
    contexts, fires = corpus.contexts(3), (corpus.ids == 1) & (rng.random(len(corpus.ids)) < 0.6)
    wanted = Settings(gain=gain, max_depth=3, max_skip=0)
    nodes = build_one(corpus.trie(3), fires, np.ones(len(fires), np.float32), settings=wanted)
    paths = paths_of(nodes)
    total, number = np.zeros(len(paths)), np.zeros(len(paths))
    for context, n, p in look_ahead(contexts, fires):
        # The longest path that such a position has.
        node = max((i for i, path in enumerate(paths) if context[: len(path)] == path), key=lambda i: len(paths[i]))
        total[node] += n * p
        number[node] += n
    stands_for_some = number > 0
    assert stands_for_some.sum() > 3
    np.testing.assert_allclose(
        nodes.probability[stands_for_some], (total / np.maximum(number, 1))[stands_for_some], rtol=1e-5
    )


def test_positions_in_the_same_longer_context_count_less_than_in_different_ones() -> None:
    # B fires after A and not after C: p after a token that neither is.
    p = {}
    for name, before in {"alike": [A] * 6, "different": [A, 10, 11, 12, 13, 14]}.items():
        ids = np.array([token for first in [*before, C, C] for token in (first, B)])
        fires = (ids == B) & (np.roll(ids, 1) != C)
        trie = suffix_trie(ids, np.arange(len(ids)), np.arange(len(ids)), 1)
        nodes = build_one(trie, fires, np.ones(len(fires), np.float32), settings=Settings(gain=-1.0, max_depth=1))
        assert nodes.token[0] == B
        assert (nodes.count[0], nodes.fires[0]) == (8, 6)
        p[name] = float(nodes.probability[0])
    prior = 6 / 16
    assert p["alike"] == pytest.approx((6 / 7 + prior) / (6 / 7 + 2 / 3 + 1))
    assert p["different"] == pytest.approx((6 / 2 + prior) / (6 / 2 + 2 / 3 + 1))
    assert p["alike"] < 0.5 < p["different"]


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
