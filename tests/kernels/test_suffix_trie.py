"""Tries of neurons against their specification; planted rules, found to the letter; what must not change a bit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_tries import A, B, C, Corpus, V, build_one, earlier, make_corpus, make_long_corpus

from actstore.kernels.suffix_trie import cpu, naive
from actstore.kernels.suffix_trie.api import (
    BOUNDARY,
    IGNORE,
    Nodes,
    Settings,
    Trie,
    build,
    predict,
    suffix_trie,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


def flatten(roots: list[naive.Node]) -> list[tuple[float, ...]]:
    rows: list[tuple[float, ...]] = []

    def add(node: naive.Node, depth: int, parent: int) -> None:
        at = len(rows)
        rows.append((parent, node.token, depth, node.ends, node.probability, node.value, node.count, node.fires))
        for child in node.children:
            add(child, depth + 1, at)

    for root in roots:
        add(root, 0, -1)
    return rows


def assert_same(found: Nodes, expected: Nodes) -> None:
    for name, a, b in zip(Nodes._fields, found, expected, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
        assert a.dtype == b.dtype


@given(seed=st.integers(0, 2**32), shape=st.tuples(st.integers(0, 12), st.integers(1, 6), st.integers(1, 40)))
@settings(max_examples=60, deadline=None)
def test_shared_trie_has_every_context_as_an_interval(seed: int, shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(seed)
    corpus, max_depth = make_corpus(rng, *shape, evidence=0.9), int(rng.integers(0, 6))
    trie = corpus.trie(max_depth)
    contexts = corpus.contexts(max_depth)
    ordered = [contexts[position] for position in trie.order]
    assert sorted(trie.order.tolist()) == list(range(len(contexts)))
    waiting: list[tuple[int, naive.Context]] = [(0, ())]
    while waiting:
        node, prefix = waiting.pop()
        inside = [c[: len(prefix)] == prefix for c in ordered]
        assert np.flatnonzero(inside).tolist() == list(range(trie.start[node], trie.stop[node]))
        children = range(trie.children[node], trie.children[node + 1])
        if prefix[-1:] == (BOUNDARY,) or len(prefix) == max_depth + 1 or (prefix and sum(inside) == 1):
            assert not children
        else:
            tokens = sorted({c[len(prefix)] for c, there in zip(ordered, inside, strict=True) if there})
            assert trie.token[children.start : children.stop].tolist() == tokens
        waiting += [(child, (*prefix, int(trie.token[child]))) for child in children]


@given(
    seed=st.integers(0, 2**32),
    shape=st.tuples(st.integers(0, 12), st.integers(1, 6), st.integers(1, 30)),
    rule=st.sampled_from(["random", "skip", "noisy", "never", "always"]),
    chosen=st.tuples(
        st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([-1.0, 0.0, 0.5, 2.0]), st.integers(0, 6), st.integers(0, 3),
        st.sampled_from([0.0, 1.0, 5.0]), st.sampled_from([0, 0, 1, 4, 9]),
    ),
    held=st.sampled_from([0.0, 0.3, 1.0]),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_tries_and_predictions_are_what_their_specification_says(
    seed: int, shape: tuple[int, int, int], rule: str, chosen: tuple[float, float, int, int, float, int], held: float
) -> None:
    rng = np.random.default_rng(seed)
    corpus, wanted = make_corpus(rng, *shape, evidence=0.95), Settings(*chosen)
    n, max_depth = len(corpus.place), wanted.max_depth
    before = np.where(corpus.reach >= 2, corpus.ids[np.maximum(np.arange(len(corpus.ids)) - 2, 0)], -2)
    fires = {
        "random": rng.random(n) < 0.3,
        "skip": (corpus.ids == 0)[corpus.place] & (before == 1)[corpus.place],
        "noisy": (corpus.ids == 0)[corpus.place] ^ (rng.random(n) < 0.1),
        "never": np.zeros(n, bool),
        "always": np.ones(n, bool),
    }[rule]
    values, out = rng.random(n).astype(np.float32), rng.random(n) < held
    trie = corpus.trie(max_depth)
    left_out = np.flatnonzero(out[trie.order]).astype(np.int32)
    found = build_one(
        trie, fires, values, rest=np.array([-0.1]), held_out=(np.array([0, len(left_out)]), left_out),
        settings=wanted, threads=1,
    )  # fmt: skip
    contexts = corpus.contexts(max_depth)
    events = [
        naive.Event(context, float(value) if fire else None)
        for context, fire, value, held_out in zip(contexts, fires, values, out, strict=True)
        if not held_out
    ]
    roots = naive.build(events, -0.1, wanted)
    expected = flatten(roots)
    assert len(found.token) == len(expected)
    assert wanted.nodes == 0 or len(expected) <= wanted.nodes
    for column, numbers in zip(found[1:], zip(*expected, strict=True), strict=False):
        np.testing.assert_allclose(column.astype(float), np.array(numbers, float), rtol=1e-5, atol=1e-6)
    predicted = predict(found, corpus.ids, corpus.begins if len(corpus.begins) else None, threads=1)
    for position, reach in enumerate(corpus.reach):
        context = tuple(int(corpus.ids[position - d]) if d <= reach else BOUNDARY for d in range(max_depth + 2))
        probability, value, line = (column[0, position] for column in predicted)
        np.testing.assert_allclose((probability, value), naive.predict(roots, context), rtol=1e-5, atol=1e-6)
        assert probability == (found.probability[line] if line >= 0 else 0)


def make_nodes(rng: np.random.Generator, n_neurons: int, n_tokens: int, deepest: int) -> tuple[Nodes, list[Any]]:
    """Tries in which exact, ignored and boundary tokens stand beside one another and lines end anywhere."""

    def grow(depth: int) -> list[naive.Node]:
        tokens = sorted({int(t) for t in rng.integers(-2 if depth else -1, n_tokens, rng.integers(0, 5))})
        return [
            naive.Node(
                token, 3, 1, bool(ends), float(rng.random()) if ends else math.nan, float(rng.random()),
                grow(depth + 1) if depth < deepest and token != BOUNDARY else [],
            )
            for token in tokens
            for ends in [rng.random() < 0.6]
        ]  # fmt: skip

    forests = [grow(0) for _ in range(n_neurons)]
    flat = [flatten(roots) for roots in forests]
    dtypes = (np.int32, np.int32, np.uint8, np.bool_, np.float32, np.float32, np.int32, np.int32)
    columns = [np.array([row[i] for rows in flat for row in rows], dtype) for i, dtype in enumerate(dtypes)]
    return Nodes(np.cumsum([0, *map(len, flat)]), *columns), forests


@given(seed=st.integers(0, 2**32), n_neurons=st.integers(0, 4), threads=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_predictions_follow_the_longest_line_that_ends(seed: int, n_neurons: int, threads: int) -> None:
    rng = np.random.default_rng(seed)
    nodes, forests = make_nodes(rng, n_neurons, 4, 4)
    corpus = make_corpus(rng, 5, 4, 12)
    found = predict(nodes, corpus.ids, corpus.begins, threads)
    assert found.probability.shape == found.value.shape == found.node.shape == (n_neurons, len(corpus.ids))
    for neuron, roots in enumerate(forests):
        for position, context in enumerate(corpus.contexts(8)):
            expected = np.float32(naive.predict(roots, context))
            assert (found.probability[neuron, position], found.value[neuron, position]) == tuple(expected)


@pytest.fixture(scope="module")
def long_corpus() -> Corpus:
    return make_long_corpus()


RULES: dict[str, tuple[Any, dict[tuple[int, ...], bool]]] = {
    "a token": (lambda c: c.ids == B, {(B,): True}),
    "either of two tokens": (lambda c: (c.ids == B) | (c.ids == C), {(C,): True, (B,): True}),
    "a token after another": (lambda c: (c.ids == B) & (earlier(c, 1) == A), {(B,): False, (B, A): True}),
    "after either of two": (
        lambda c: (c.ids == B) & np.isin(earlier(c, 1), (A, C)),
        {(B,): False, (B, A): True, (B, C): True},
    ),
    "unless another came before": (lambda c: (c.ids == B) & (earlier(c, 1) != A), {(B,): True, (B, A): False}),
    "at a window's beginning": (lambda c: (c.ids == B) & (c.reach == 0), {(B,): False, (B, BOUNDARY): True}),
    "one token ignored": (lambda c: (c.ids == B) & (earlier(c, 2) == A), {(B,): False, (B, IGNORE, A): True}),
    "two tokens ignored": (lambda c: (c.ids == B) & (earlier(c, 3) == A), {(B,): False, (B, IGNORE, IGNORE, A): True}),
    "unless, one token ignored": (
        lambda c: (c.ids == B) & (earlier(c, 2) != A),
        {(B,): True, (B, IGNORE, A): False},
    ),
    "ignored after a context": (
        lambda c: (c.ids == B) & (earlier(c, 1) == A) & (earlier(c, 3) == C),
        {(B,): False, (B, A): False, (B, A, IGNORE, C): True},
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_planted_rules_are_found_to_the_letter(long_corpus: Corpus, name: str) -> None:
    rule, expected = RULES[name]
    fires = rule(long_corpus)
    nodes = build_one(long_corpus.trie(12), fires, np.ones(len(fires), np.float32))
    lines, path = {}, list[int]()
    for node in range(len(nodes.token)):
        path = [*path[: nodes.depth[node]], int(nodes.token[node])]
        if nodes.ends[node]:
            lines[tuple(path)] = nodes.probability[node]
    assert {line: p >= 0.5 for line, p in lines.items()} == expected
    assert all(p > 0.65 or p < 0.15 for p in lines.values())
    unseen = make_corpus(np.random.default_rng(1), 50, V, 160)
    predicted = predict(nodes, unseen.ids, unseen.begins)
    np.testing.assert_array_equal(predicted.probability[0] >= 0.4, rule(unseen))


@pytest.fixture(scope="module")
def many() -> tuple[Corpus, list[NDArray[np.bool_]]]:
    """Neurons with all sorts of events over one corpus."""
    rng = np.random.default_rng(3)
    corpus = make_corpus(rng, 40, 6, 80)
    shares = (0.0, 0.001, 0.02, 0.3, 1.0)
    return corpus, [(corpus.ids == i % 6) & (rng.random(len(corpus.ids)) < shares[i % 5]) for i in range(23)]


def build_all(trie: Trie, fires: list[NDArray[np.bool_]], threads: int = 1) -> Nodes:
    ranks = [np.flatnonzero(f[trie.order]).astype(np.int32) for f in fires]
    offsets = np.cumsum([0, *map(len, ranks)])
    return build(trie, offsets, np.concatenate(ranks), np.ones(offsets[-1], np.float32), threads=threads)


def test_threads_and_neighbours_do_not_change_a_bit(many: tuple[Corpus, list[NDArray[np.bool_]]]) -> None:
    corpus, fires = many
    trie = corpus.trie(8)
    together = build_all(trie, fires)
    for threads in (2, 3, 50):
        assert_same(build_all(trie, fires, threads), together)
    for neuron, own in enumerate(fires):
        a, b = together.offsets[neuron : neuron + 2]
        assert_same(build_all(trie, [own]), Nodes(np.array([0, b - a]), *(column[a:b] for column in together[1:])))
    predicted = predict(together, corpus.ids, corpus.begins, threads=1)
    for a, b in zip(predict(together, corpus.ids, corpus.begins, threads=4), predicted, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_stack_that_is_too_small_grows(
    many: tuple[Corpus, list[NDArray[np.bool_]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    trie = many[0].trie(8)
    expected = build_all(trie, many[1])
    assert len(expected.token) > 100
    monkeypatch.setattr(cpu, "CAPACITY", 1)
    assert_same(build_all(trie, many[1]), expected)


def test_the_order_of_windows_makes_no_difference(many: tuple[Corpus, list[NDArray[np.bool_]]]) -> None:
    corpus, fires = many
    lengths = np.diff(np.append(corpus.begins, len(corpus.ids)))
    order = np.random.default_rng(0).permutation(len(lengths))
    at = np.concatenate([np.arange(corpus.begins[w], corpus.begins[w] + lengths[w]) for w in order])
    shuffled = Corpus(corpus.ids[at], np.cumsum(lengths[order]) - lengths[order], corpus.reach[at], corpus.place)
    assert_same(build_all(shuffled.trie(8), [f[at] for f in fires]), build_all(corpus.trie(8), fires))


def test_values_are_expected_activations() -> None:
    ids = np.array([1, 0] * 50 + [2, 0] * 50)
    corpus = Corpus(ids, np.array([0]), np.arange(200), np.arange(200))
    fires = (ids == 0) & (np.arange(200) < 100)
    values = np.where(fires, np.float32(0.75), np.float32(0))
    nodes = build_one(corpus.trie(4), fires, values, rest=np.array([-0.25]))
    found = predict(nodes, np.array([1, 0, 2, 0]))
    p = found.probability[0]
    assert p[1] > 0.95
    assert p[3] < 0.05
    np.testing.assert_allclose(found.value[0][[1, 3]], p[[1, 3]] * 0.75 - (1 - p[[1, 3]]) * 0.25, rtol=1e-5)
    assert found.value[0][0] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"events": np.array([3, 3], np.int32)}, "ascend within a neuron"),
        ({"events": np.array([3, 99], np.int32)}, "ranks from 0 to 9"),
        ({"offsets": np.array([0, 3])}, "ascend from 0 to their number, 2"),
        ({"values": np.array([1, np.nan], np.float32)}, "finite number for each of 2 events"),
        ({"rest": np.zeros(2)}, "a number for each of 1 neurons"),
        ({"held_out": (np.array([0, 0, 0]), np.empty(0, np.int32))}, "of 1 neurons, not of 2"),
        ({"settings": Settings(kappa=0)}, "kappa must be above 0"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    trie = suffix_trie(np.arange(10), np.arange(10), np.arange(10))
    given = {"offsets": np.array([0, 2]), "events": np.array([3, 5], np.int32), "values": np.ones(2, np.float32)}
    given |= change
    with pytest.raises(ValueError, match=message):
        build(trie, given.pop("offsets"), given.pop("events"), given.pop("values"), **given)


def test_bad_corpora_and_texts_are_named() -> None:
    with pytest.raises(ValueError, match="input_index must be from 0 to 2"):
        suffix_trie(np.arange(3), np.array([3]), np.array([0]))
    with pytest.raises(ValueError, match="max_depth must be from 0 to 255, not 256"):
        suffix_trie(np.arange(3), np.arange(3), np.arange(3), 256)
    nodes = build_all(suffix_trie(np.arange(3), np.arange(3), np.arange(3)), [np.ones(3, bool)])
    with pytest.raises(ValueError, match="begins must ascend from 0 to at most 3"):
        predict(nodes, np.arange(3), np.array([1]))
    with pytest.raises(ValueError, match="tokens, 0 or more"):
        predict(nodes, np.array([-1]))
