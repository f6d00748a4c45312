"""Searching graphs: what is found, in which order, and the same as a loop over all paths."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actstore.engine.graphs.search import search, search_paths
from actstore.engine.graphs.token_sets import find_tokens, normal_classes
from actstore.store.errors import InvalidInputError
from actstore.store.graphs.forest import Forest
from actstore.store.graphs.nodes import BOUNDARY, IGNORE
from actstore.store.reader import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from actstore.store.graphs.reader import Graphs

CAT, THE, BLACK, NOT = range(4)


@pytest.fixture
def graphs(planting: Callable[..., Graphs]) -> Graphs:
    return planting(
        {
            (0, 0): [((CAT,), 0.9, 100, 90)],
            (0, 1): [],
            (0, 2): [((CAT,), 0.1, 100, 60), ((CAT, THE), 0.95, 50, 50), ((CAT, IGNORE, BLACK), 0.8, 10, 9)],
            (1, 0): [((CAT, THE), 0.9, 20, 19), ((CAT, NOT), 0.0, 40, 0)],
            (1, 5): [((THE,), 0.9, 30, 28), ((THE, CAT), 0.05, 30, 1)],
        }
    )


def names(result: Any) -> list[str]:
    return [matches.neuron for matches in result.neurons]


def test_neurons_that_fire_on_a_token(store: Store, graphs: Graphs) -> None:
    result = search(store, graphs, activating=[CAT])
    assert names(result) == ["L0.N0", "L0.N2", "L1.N0"]
    assert result.neurons[0].score == pytest.approx(0.9 * 90)
    # The root's own path does not fire; each of the others answers for its own occurrences.
    assert [path.tokens for path in result.neurons[1].paths] == [(CAT, THE), (CAT, IGNORE, BLACK)]


def test_neurons_that_fire_on_a_token_after_another(store: Store, graphs: Graphs) -> None:
    result = search(store, graphs, activating=["cat"], context=["THE"])
    assert names(result) == ["L0.N2", "L1.N0"]
    assert names(search(store, graphs, context=[BLACK])) == ["L0.N2"]
    assert names(search(store, graphs, activating=[THE], context=[CAT])) == []


def test_lines_on_which_a_neuron_does_not_fire_are_asked_for(store: Store, graphs: Graphs) -> None:
    assert names(search(store, graphs, activating=[CAT], context=[NOT])) == []
    (matches,) = search(store, graphs, activating=[CAT], context=[NOT], silent=True).neurons
    assert (matches.neuron, matches.score, matches.paths[0].count) == ("L1.N0", 0.0, 40)


def test_a_token_is_not_its_own_context(store: Store, graphs: Graphs) -> None:
    assert names(search(store, graphs, context=[THE])) == ["L0.N2", "L1.N0"]


def test_only_so_many_are_named_and_all_are_counted(store: Store, graphs: Graphs) -> None:
    result = search(store, graphs, activating=[CAT], k=1, n_paths=1)
    assert (names(result), result.n_neurons, result.n_paths) == (["L0.N0"], 3, 4)


@pytest.mark.parametrize(
    ("text", "match", "matches"),
    [
        ("cat", "normalised", [0, 17, 18, 19]),
        (" cat", "exact", [0]),
        ("ca", "contains", [0, 9, 18]),
        ("(?i)^ ?cat$", "regex", [0, 17, 19]),
        ("  ", "normalised", [11]),
        ("東京", "exact", [8]),
        ("\\n \\N", "exact", [15]),
    ],
)
def test_texts_find_tokens(store: Store, text: str, match: str, matches: list[int]) -> None:
    assert find_tokens(store, [text], match).tolist() == matches


@pytest.mark.parametrize(
    ("text", "match", "message"),
    [
        ("dog", "normalised", "No token of planted matches 'dog' (`match=\"normalised\"`)"),
        ("cat", "exact", "No token of planted matches 'cat' (`match=\"exact\"`)"),
        ("(", "regex", "is no regular expression: missing"),
        ("cat", "fuzzy", "normalised, exact, contains or regex, found 'fuzzy'"),
        ("", "exact", "empty text"),
        (400, "exact", "go from 0 to 119, found 400"),
    ],
)
def test_what_is_no_token_is_refused(store: Store, text: str | int, match: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=re.escape(message)):
        find_tokens(store, [text], match)


def test_nothing_to_search_for_is_refused(store: Store, graphs: Graphs) -> None:
    with pytest.raises(InvalidInputError, match="pass `activating`, `context` or both"):
        search(store, graphs)
    with pytest.raises(InvalidInputError, match="`k` must be 1 or more"):
        search(store, graphs, activating=[CAT], k=0)


def test_case_and_spaces_make_one_class_bytes_of_characters_do_not(store: Store) -> None:
    classes = normal_classes(store, 120)
    assert classes[[0, 17, 18, 19]].tolist() == [0, 0, 0, 0]
    assert classes[[4, 11, 12]].tolist() == [4, 11, 12]


paths = st.lists(st.sampled_from([0, 1, 2, 3]), min_size=0, max_size=3).flatmap(
    lambda below: st.tuples(st.sampled_from([0, 1, 2]), st.just(below), st.booleans())
)
neuron = st.dictionaries(
    paths.map(lambda p: (p[0], *([IGNORE] * p[2] if p[1] else []), *p[1])),
    st.tuples(st.sampled_from([0.0, 0.2, 0.5, 0.9]), st.integers(0, 40)),
    max_size=6,
)


@settings(max_examples=25)
@given(
    st.lists(neuron, min_size=1, max_size=4),
    st.sets(st.integers(0, 3), max_size=2),
    st.sets(st.integers(0, 3), max_size=2),
)
def test_it_finds_what_a_loop_over_all_lines_finds(
    tmp_path_factory: pytest.TempPathFactory,
    planted_model: Callable[..., Any],
    neurons: list[dict[tuple[int, ...], tuple[float, int]]],
    activating: set[int],
    context: set[int],
) -> None:
    if not activating and not context:
        return
    graphs = planted_model(
        {(0, i): [(p, x, n, n // 2) for p, (x, n) in paths.items()] for i, paths in enumerate(neurons)}
    )
    rows, forest, nodes, _ = search_paths(
        graphs, np.array(sorted(activating), np.int64), np.array(sorted(context), np.int64)
    )
    matches = sorted((int(rows[forest.neuron[node]]), tuple(forest.path(int(node)))) for node in nodes)
    expected = sorted(
        (row, path.tokens)
        for row, graph in enumerate(graphs)
        for path in graph.paths()
        if path.probability >= 0.4
        and (not activating or path.tokens[0] in activating)
        and (not context or context & set(path.tokens[1:]))
    )
    assert matches == expected


def test_own_counts_are_of_no_longer_line(graphs: Graphs) -> None:
    forest = Forest.of(graphs)
    paths = {
        tuple(forest.path(n)): int(forest.own_count[n]) for n in np.flatnonzero(forest.neuron == 2) if forest.ends[n]
    }
    assert paths == {(CAT,): 40, (CAT, THE): 50, (CAT, IGNORE, BLACK): 10}


def test_sql_knows_nodes_and_lines(graphs: Graphs) -> None:
    store = Store(graphs.store.folder.location)
    rows = store.sql(
        "select name, layer, neuron, activating, context, tokens, own_count from graph_lines where context <> '' order by 1, 7"
    ).to_pylist()
    assert rows[0] == {
        "name": "L0.N2", "layer": 0, "neuron": 2, "activating": " cat", "context": " black…", "tokens": [CAT, IGNORE, BLACK],
        "own_count": 10,
    }  # fmt: skip
    assert len(rows) == 5
    (row,) = store.sql(
        "select count(*) as n, sum(ends::int) as ends, min(graphs) as graphs from graph_nodes"
    ).to_pylist()
    assert row == {"n": 10, "ends": 8, "graphs": "graphs"}


def test_sql_over_a_store_without_graphs_says_so(store: Store) -> None:
    with pytest.raises(InvalidInputError, match="graph_lines"):
        store.sql("select * from graph_lines")
    assert BOUNDARY == -2
