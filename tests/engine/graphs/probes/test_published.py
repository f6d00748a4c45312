"""The published method from planted probes: which paths there are, how they end, and that their order does not matter."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actstore.engine.graphs.probes.evidence import ProbedExemplar
from actstore.engine.graphs.probes.importance import Variant
from actstore.engine.graphs.probes.plan import ProbeSettings
from actstore.engine.graphs.probes.published import (
    NOT_SHORTENED,
    PublishedPath,
    PublishedSettings,
    build_published,
    join_nodes,
    paths_of,
    trie_of,
)
from actstore.engine.graphs.probes.rounds import probe
from actstore.kernels.suffix_trie.api import IGNORE, predict
from actstore.store.errors import InvalidInputError
from actstore.store.graphs.record import fault_of
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engine.conftest import Captured  # type: ignore[import-not-found]

SETTINGS = PublishedSettings()


def probed(
    ids: list[int], values: list[float], important: dict[tuple[int, int], float], n_special: int = 1
) -> ProbedExemplar:
    n = len(ids)
    importance = np.zeros((n, n), np.float32)
    for place, weight in important.items():
        importance[place] = weight
    pivot = int(np.argmax(values[n_special:])) + n_special
    held = np.array(values, np.float32)
    return ProbedExemplar(0, np.array(ids, np.int32), n_special, pivot, values[pivot], held, True, importance)


def path_values(*given: ProbedExemplar) -> list[tuple[tuple[int, ...], float]]:
    return [(path.tokens, pytest.approx(path.value)) for path in paths_of(given, 0.5, SETTINGS)]


def test_a_line_goes_back_to_the_last_important_token() -> None:
    one = probed([0, 11, 12, 13, 14], [0, 0, 0, 0, 0.9], {(4, 4): 1, (2, 4): 0.8, (3, 4): 0.75, (1, 4): 0.2})
    assert path_values(one) == [((14, IGNORE, 12), 0.9)]


def test_every_token_above_half_of_the_maximum_has_a_line() -> None:
    one = probed([0, 11, 12, 13], [0.99, 0.6, 0.5, 0.8], {(1, 3): 0.9})
    # The beginning of the text is no token to fire at, whatever its activation; half is not above half.
    assert path_values(one) == [((11,), 0.6), ((13, IGNORE, 11), 0.8)]


def test_variants_that_keep_half_of_the_activation_have_lines_too() -> None:
    one = probed([0, 11, 12], [0, 0, 0.9], {(1, 2): 0.9, (2, 2): 1})
    keeps = Variant(np.array([0, 21, 12], np.int32), 1, np.array([0, 0, 0.7], np.float32))
    loses = Variant(np.array([0, 22, 12], np.int32), 1, np.array([0, 0.9, 0.44], np.float32))
    weak = Variant(np.array([0, 23, 12], np.int32), 1, np.array([0, 0, 0.46], np.float32))
    one.variants = [keeps, loses, weak]
    assert path_values(one) == [((12, 11), 0.9), ((12, 21), 0.7)]


def test_a_token_that_was_never_masked_for_stands_alone() -> None:
    one = probed([0, 11, 12], [0, 0, 0.9], {})
    one.importance[:] = np.nan
    assert path_values(one) == [((12,), 0.9)]


def test_an_exemplar_that_was_not_masked_has_no_line() -> None:
    one = probed([0, 11, 12], [0, 0, 0.9], {})
    one.importance = np.empty((0, 0), np.float32)
    assert path_values(one) == []


def path(tokens: tuple[int, ...], value: float) -> PublishedPath:
    return PublishedPath(tokens, value, tuple(1.0 for _ in tokens))


def test_a_line_met_twice_ends_with_the_mean() -> None:
    for paths in ([path((5, 6), 0.6), path((5, 6), 0.9)], [path((5, 6), 0.9), path((5, 6), 0.6)]):
        nodes, _ = trie_of(paths, SETTINGS)
        assert nodes.value[1] == pytest.approx(0.75)
        assert (nodes.count[1], nodes.probability[1], np.isnan(nodes.probability[0])) == (2, 1, True)


@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from([IGNORE, 3, 4, 5]), max_size=4),
            st.sampled_from([3, 4]),
            st.floats(0.5, 1, width=32),
        ),
        max_size=12,
    ),
    st.randoms(use_true_random=False),
)
def test_tries_are_canonical_whatever_the_order(drawn: list[tuple[list[int], int, float]], random: object) -> None:
    paths = [path((root, *context), value) for context, root, value in drawn]
    nodes, importance = trie_of(paths, SETTINGS)
    assert fault_of(nodes) is None
    shuffled = paths[:]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    again, weights = trie_of(shuffled, SETTINGS)
    for a, b in zip((*nodes, importance), (*again, weights), strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(nodes.ends.sum()) == len({one.tokens for one in paths})


def test_prediction_tries_other_branches_where_the_exact_one_does_not_end() -> None:
    # A greedy walk takes 6 exactly, finds neither 7 nor 8 behind it, and predicts nothing.
    nodes, _ = trie_of([path((5, 6, 7), 0.9), path((5, IGNORE, 8), 0.8)], SETTINGS)
    message = predict(nodes, np.array([8, 6, 5], np.int32))
    assert message.value[0].tolist() == pytest.approx([0, 0, 0.8])


def test_tries_of_several_neurons_lie_one_after_another() -> None:
    first, _ = trie_of([path((5, 6), 0.9)], SETTINGS)
    nothing, _ = trie_of([], SETTINGS)
    second, _ = trie_of([path((7,), 0.7)], SETTINGS)
    joined = join_nodes([first, nothing, second])
    assert joined.offsets.tolist() == [0, 2, 2, 3]
    assert joined.token.tolist() == [5, 6, 7]
    assert fault_of(joined) is None


def test_graphs_of_a_store(tiny_model: Path, captured: Captured, tmp_path: Path) -> None:
    shutil.copytree(captured().folder.location, tmp_path / "store")
    neurons = [(0, 3), (1, 0), (1, 7)]
    settings = ProbeSettings(n_exemplars=6, longest=10, n_substitutes=1)
    probes = probe(str(tiny_model), tmp_path / "store", neurons=neurons, settings=settings)
    folder = Folder(tmp_path / "store", read_only=False)
    graphs = build_published(probes, folder)
    assert [(g.layer, g.neuron) for g in graphs] == neurons
    assert graphs.record.method == "published"
    for graph in graphs:
        paths = list(paths_of(probes.of(graph.layer, graph.neuron), 0.5, SETTINGS))
        assert {path_values.tokens for path_values in graph.paths()} == {path_values.tokens for path_values in paths}
        assert graph.n_events == len(paths)
        assert graph.status == ("" if paths else NOT_SHORTENED)
    again = build_published(probes, folder, name="again")
    assert again.nodes.equals(graphs.nodes) or _same(again.nodes, graphs.nodes)
    with pytest.raises(InvalidInputError, match="already has graphs"):
        build_published(probes, folder)


def _same(a: object, b: object) -> bool:
    """Whether two tables are equal, NaN to NaN."""
    return all(
        np.array_equal(a[c].to_numpy(), b[c].to_numpy(), equal_nan=a[c].to_numpy().dtype.kind == "f")  # type: ignore[index]
        for c in a.column_names  # type: ignore[attr-defined]
    )


@pytest.mark.parametrize(
    ("wrong", "message"), [({"threshold": 0.0}, "`threshold`"), ({"importance": 1.0}, "`importance`")]
)
def test_constants_that_cannot_be_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        PublishedSettings(**wrong)
