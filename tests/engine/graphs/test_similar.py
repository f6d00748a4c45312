"""Comparing graphs: the published overlap, predictions over the corpus, and the same by loops over pairs and positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actstore.engine.graphs import sparse
from actstore.engine.graphs.similar import Similarity, compare, same_tokens
from actstore.engine.graphs.sparse import Products
from actstore.store.errors import NotFoundError
from actstore.store.graphs.forest import Forest
from actstore.store.graphs.nodes import IGNORE

if TYPE_CHECKING:
    from collections.abc import Callable

    from actstore.store.graphs.reader import Graphs
    from actstore.store.reader import Store

CAT, THE, BLACK, NOT = range(4)


def named(graphs: Graphs, layer: int, neuron: int, **options: Any) -> dict[int, tuple[float, float, float]]:
    """Row → (overlap, subset, prediction) of a neuron's pairs."""
    rows, pairs = compare(graphs, layer, neuron, **options)
    columns = (pairs.overlap, pairs.subset, pairs.prediction)
    return {int(rows[n]): tuple(float(c[i]) for c in columns) for i, n in enumerate(pairs.second)}


def test_overlap_and_subset_are_the_published_ones(planting: Callable[..., Graphs]) -> None:
    graphs = planting(
        {
            (0, 0): [((CAT, THE), 0.9, 10, 9), ((CAT, BLACK), 0.9, 10, 9)],
            (0, 1): [((CAT, THE), 0.9, 10, 9)],
            (0, 2): [((CAT, THE), 0.9, 10, 9), ((NOT, BLACK), 0.9, 10, 9), ((CAT, IGNORE, NOT), 0.1, 10, 1)],
            (0, 3): [((NOT, THE), 0.9, 10, 9)],
            (0, 4): [],
        }
    )
    result = named(graphs, 0, 0)
    assert result[1][:2] == (0.5, 1.0)  # the same activating token; one of two context tokens
    assert result[2][:2] == (0.5, 1.0)  # one of two activating tokens; a path that does not fire has none
    assert set(result) == {1, 2}
    assert [named(graphs, 0, 2)[n][:2] for n in (0, 1)] == [(0.5, 1.0), (0.5, 1.0)]


def test_case_and_spaces_are_ignored_unless_asked(store: Store, planting: Callable[..., Graphs]) -> None:
    graphs = planting({(0, 0): [((CAT,), 0.9, 10, 9)], (0, 1): [((17,), 0.9, 10, 9)], (0, 2): [((THE,), 0.9, 9, 9)]})
    assert named(graphs, 0, 0, classes=same_tokens(store)) == {1: (1.0, 1.0, 0.0)}
    assert named(graphs, 0, 0) == {}


def test_like_predictions_are_alike_however_they_are_written(planting: Callable[..., Graphs]) -> None:
    plain = [((CAT,), 0.8, 100, 80)]
    split = [((CAT,), 0.8, 100, 80), ((CAT, THE), 0.8, 40, 32)]
    other = [((CAT,), 0.0, 100, 48), ((CAT, THE), 0.8, 40, 32)]
    graphs = planting({(0, 0): plain, (0, 1): split, (0, 2): other, (0, 3): [((NOT,), 0.8, 9, 9)]})
    result = named(graphs, 0, 0)
    assert result[1][2] == pytest.approx(1.0)
    assert result[2][2] == pytest.approx(np.sqrt(0.4), abs=1e-6)  # 40 of 100 occurrences
    assert set(result) == {1, 2}


def test_a_neuron_that_is_not_there_is_named(planting: Callable[..., Graphs]) -> None:
    graphs = planting({(1, 2): [((CAT,), 0.8, 100, 80)], (1, 4): []})
    with pytest.raises(NotFoundError, match=r"no graph of L1\.N7: layer 1 has graphs of neurons 2 to 4"):
        compare(graphs, 1, 7)
    with pytest.raises(NotFoundError, match="there are graphs of layers 1"):
        compare(graphs, 0, 0)
    assert len(compare(graphs, 1, 4)[1].second) == 0


ALPHABET, LENGTH = 3, 3


def predicted(paths: dict[tuple[int, ...], float]) -> np.ndarray[Any, Any]:
    contexts = np.stack(np.meshgrid(*[range(ALPHABET)] * LENGTH, indexing="ij"), -1).reshape(-1, LENGTH).tolist()
    return np.array([next((paths[tuple(c[:n])] for n in (3, 2, 1) if tuple(c[:n]) in paths), 0.0) for c in contexts])


path = st.lists(st.integers(0, ALPHABET - 1), min_size=1, max_size=LENGTH).map(tuple)
trie = st.dictionaries(path, st.sampled_from([0.0, 0.25, 0.5, 1.0]), max_size=8)


@settings(max_examples=40)
@given(tries=st.lists(trie, min_size=2, max_size=5))
def test_predictions_are_compared_as_over_all_positions(
    planted_model: Callable[..., Graphs], tries: list[dict[tuple[int, ...], float]]
) -> None:
    # A path that ends nowhere has the occurrences of its context all the same.
    whole = [{p: (0, 0) for path in t for p in [path[:n] for n in range(1, len(path) + 1)]} for t in tries]
    paths = [
        [(p, t.get(p), ALPHABET ** (LENGTH - len(p)), 1) for p in sorted(paths)]
        for t, paths in zip(tries, whole, strict=True)
    ]
    graphs = planted_model({(0, i): rows for i, rows in enumerate(paths)})
    _, _, prediction = Similarity(Forest.of(graphs)).rows(0, len(tries))
    values = np.stack([predicted(t) for t in tries])
    norms = np.linalg.norm(values, axis=1)
    scale = norms[:, None] * norms
    expected = np.divide(values @ values.T, scale, out=np.zeros_like(scale), where=scale > 0)
    np.testing.assert_allclose(prediction, expected, atol=2e-6)


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 9)),
    n_terms=st.integers(1, 3),
    seed=st.integers(0, 1000),
    dense=st.sampled_from([0.0, 0.3, 2.0]),
    pairs=st.sampled_from([1, 7, 1 << 20]),
)
def test_sparse_products_are_dense_ones(
    shape: tuple[int, int], n_terms: int, seed: int, dense: float, pairs: int
) -> None:
    rng = np.random.default_rng(seed)
    places = rng.random(shape) < 0.4
    left, right = rng.standard_normal((2, n_terms, *shape)) * places
    row, columns = np.nonzero(places)
    offsets = np.searchsorted(row, np.arange(shape[0] + 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse, "DENSE", dense)
        patch.setattr(sparse, "_PAIRS", pairs)
        products = Products(offsets, columns, left[:, row, columns], right[:, row, columns])
        first, stop = sorted(rng.integers(0, shape[0] + 1, 2).tolist())
        result = products.rows(first, stop)
    expected = sum(left[t] @ right[t].T for t in range(n_terms))[first:stop]
    np.testing.assert_allclose(result, expected, atol=1e-12)


def test_all_pairs_are_those_of_each_neuron(planting: Callable[..., Graphs], monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    paths = {
        (0, n): [(tuple(rng.integers(0, 4, rng.integers(1, 4)).tolist()), float(rng.random()), 20, 9) for _ in range(6)]
        for n in range(12)
    }
    graphs = planting({key: list({path[0]: path for path in rows}.values()) for key, rows in paths.items()})
    monkeypatch.setattr("actstore.engine.graphs.similar._CELLS", 30)  # blocks of two rows
    pairs = Similarity(Forest.of(graphs)).all(0.3)
    result = {(int(a), int(b)): p for a, b, p in zip(pairs.first, pairs.second, pairs.prediction, strict=True)}
    assert all(a < b for a, b in result)
    assert (np.diff(pairs.prediction) <= 0).all()
    for n in range(12):
        for other, (overlap, subset, prediction) in named(graphs, 0, n).items():
            key = (min(n, other), max(n, other))
            assert (key in result) == (max(overlap, subset, prediction) >= 0.3)
            assert result.get(key, prediction) == pytest.approx(prediction, abs=2e-6)
