"""`cluster_inverse` and its parts against their specification; the formula's edges; parts that add up to the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actstore.kernels.cluster_inverse import naive
from actstore.kernels.cluster_inverse.api import (
    ClusterInverse,
    Clusters,
    Frequency,
    Pooled,
    cluster_frequency,
    cluster_inverse,
    pool,
    threshold,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


def make_scores(rng: np.random.Generator, n_clusters: int, n_neurons: int, tied: bool) -> NDArray[np.float32]:
    """A few large scores a query, some shared by many; rows without a score above zero, without any, with infinities."""
    scores = rng.standard_normal((n_clusters, n_neurons)).astype(np.float32) ** 3
    scores[:, : n_neurons // 10] += 5 * rng.random(n_neurons // 10, np.float32)
    if tied:
        scores = np.round(scores) / 2
    for number in (np.nan, np.inf, -np.inf, -0.0):
        scores[rng.random(scores.shape) < 0.03] = number
    scores[1:2] = -np.abs(scores[1:2])
    scores[2:3] = np.nan
    return scores


def make_clusters(rng: np.random.Generator, n_clusters: int, n_neurons: int, size: int, tied: bool = False) -> Clusters:
    rows = [np.sort(rng.permutation(n_neurons)[: rng.integers(0, size + 1)]) for _ in range(n_clusters)]
    scores = rng.random(sum(map(len, rows)), np.float32) + np.float32(0.1)
    scores = np.ceil(scores * 4) / 4 if tied else scores
    return Clusters(np.cumsum([0, *map(len, rows)]), np.concatenate([[], *rows]).astype(np.int64), scores)


def assert_same(found: Clusters | ClusterInverse | Pooled, expected: Clusters | ClusterInverse | Pooled) -> None:
    for name, array in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), array, err_msg=name)
        assert getattr(found, name).dtype == array.dtype


def assert_chosen(found: ClusterInverse, clusters: Clusters, u: float, v: int, ica: bool) -> None:
    chosen, common = naive.cluster_inverse(naive.as_rows(clusters), u, v, ica)
    assert found.common.tolist() == common
    assert found.neurons.shape == found.na.shape == found.ica.shape == found.naica.shape == (clusters.n_clusters, v)
    for cluster, row in enumerate(chosen):
        n = len(row)
        for place, name in enumerate(("neurons", "na", "ica", "naica")):
            array = getattr(found, name)[cluster]
            assert array[:n].tolist() == [entry[place] for entry in row]
            assert (array[n:] == -1).all() if name == "neurons" else np.isnan(array[n:]).all()


@given(
    seed=st.integers(0, 2**32),
    n_clusters=st.integers(0, 6),
    n_neurons=st.sampled_from([0, 1, 63, 255, 256, 257, 1000]),
    t=st.sampled_from([0.0, 0.2, 0.5, 0.99]),
    flags=st.tuples(st.booleans(), st.booleans()),
    threads=st.integers(1, 3),
)
@settings(max_examples=100, deadline=None)
def test_threshold_is_what_its_specification_says(
    seed: int, n_clusters: int, n_neurons: int, t: float, flags: tuple[bool, bool], threads: int
) -> None:
    tied, strided = flags
    scores = make_scores(np.random.default_rng(seed), n_clusters, n_neurons, tied)
    given = np.asfortranarray(np.repeat(scores, 2, axis=0))[::2] if strided else scores
    found = threshold(given, t, threads)
    assert naive.as_rows(found) == naive.threshold(naive.dense_rows(scores), t)
    everything = threshold(Clusters.concatenate([found, found]), 0.7, threads)
    assert naive.as_rows(everything) == 2 * naive.threshold(naive.as_rows(found), 0.7)


def test_threshold_of_clusters_leaves_out_what_is_not_finite() -> None:
    clusters = Clusters([0, 4, 6, 6, 8], [3, 5, 7, 9, 0, 1, 2, 4], [1, np.nan, 0.1, np.inf, np.nan, -np.inf, -3, 0])
    kept = threshold(clusters)
    assert (kept.offsets.tolist(), kept.neurons.tolist(), kept.scores.tolist()) == ([0, 1, 1, 1, 1], [3], [1])


def test_the_cutoff_is_rounded_as_the_scores_are() -> None:
    """A score of 0.2 is not larger than 0.2 · 1, though the float32 next to 0.2 is larger than the number 0.2."""
    scores = np.array([[1, 0.2, np.nextafter(np.float32(0.2), np.float32(1))]], np.float32)
    assert threshold(scores).neurons.tolist() == [0, 2]


def test_scores_of_torch_are_read_where_they_lie() -> None:
    scores = torch.tensor([[0.0, 3.0, 1.0]], requires_grad=True)
    assert threshold(scores).neurons.tolist() == [1, 2]


@given(
    seed=st.integers(0, 2**32),
    shape=st.tuples(st.integers(0, 12), st.sampled_from([1, 7, 40]), st.sampled_from([0, 3, 20])),
    u=st.sampled_from([0.0, 0.25, 0.3, 0.5, 1.0]),
    v=st.sampled_from([0, 1, 3, 20]),
    flags=st.tuples(st.booleans(), st.booleans()),
    threads=st.integers(1, 3),
)
@settings(max_examples=150, deadline=None)
def test_cluster_inverse_is_what_its_specification_says(
    seed: int, shape: tuple[int, int, int], u: float, v: int, flags: tuple[bool, bool], threads: int
) -> None:
    tied, ica = flags
    clusters = make_clusters(np.random.default_rng(seed), *shape, tied)
    assert_chosen(cluster_inverse(clusters, u=u, v=v, ica=ica, threads=threads), clusters, u, v, ica)


@pytest.mark.parametrize("v", [1, 20, 200, 400])
@pytest.mark.parametrize("tied", [False, True])
def test_clusters_far_larger_than_v(v: int, tied: bool) -> None:
    rng = np.random.default_rng(v)
    clusters = make_clusters(rng, 6, 2000, 2000, tied)
    assert_chosen(cluster_inverse(clusters, u=0.9, v=v), clusters, 0.9, v, ica=True)


def test_ties_go_to_the_smaller_neuron_and_nan_is_never_chosen() -> None:
    clusters = Clusters([0, 5], [2, 4, 6, 8, 9], [1, 3, 3, np.nan, 3])
    assert cluster_inverse(clusters, u=1, v=2, ica=False).neurons.tolist() == [[4, 6]]
    assert cluster_inverse(clusters, u=1, v=5, ica=False).neurons.tolist() == [[4, 6, 9, 2, -1]]


def test_the_formula_by_hand() -> None:
    """Four queries; neuron 7 is in all of them, 1 in two, 3 in one."""
    clusters = Clusters([0, 3, 5, 6, 7], [1, 3, 7, 1, 7, 7, 7], [4, 1, 9, 2, 9, 9, 9])
    found = cluster_inverse(clusters, u=0.5, v=2)
    assert found.common.tolist() == [7]
    assert found.neurons.tolist() == [[1, 3], [1, -1], [-1, -1], [-1, -1]]
    np.testing.assert_allclose(found.naica[0], [4 * np.log(4 / 3), np.log(2)], rtol=1e-6)
    kept = cluster_inverse(clusters, u=1, v=3)
    assert kept.common.size == 0
    assert kept.neurons[0].tolist() == [1, 3, 7]
    np.testing.assert_allclose(kept.ica[0], np.log([4 / 3, 4 / 2, 4 / 5]), rtol=1e-6)
    assert kept.naica[0, 2] < 0
    assert cluster_inverse(clusters, u=1, v=3, ica=False).neurons[0].tolist() == [7, 1, 3]


def test_a_share_of_exactly_u_is_not_common() -> None:
    """29 of 100 is 29 %, though 0.29 * 100 is less than 29."""
    counts = np.array([29, 30, 28])
    assert Frequency(counts, 100).common(0.29).tolist() == [1]


@pytest.mark.parametrize("n_clusters", [1, 2, 3])
def test_too_few_queries_leave_nothing(n_clusters: int) -> None:
    clusters = Clusters(np.arange(n_clusters + 1), np.arange(n_clusters), np.ones(n_clusters))
    found = cluster_inverse(clusters)
    assert found.common.tolist() == [*range(n_clusters)]
    assert (found.neurons == -1).all()


def test_no_query_at_all() -> None:
    nothing = Clusters.concatenate([])
    assert nothing.n_clusters == 0
    assert cluster_inverse(nothing).neurons.shape == (0, 20)
    assert cluster_inverse(nothing, cluster_frequency(nothing, 3)).common.size == 0
    assert pool(nothing, [], 2).offsets.tolist() == [0, 0, 0]


def test_parts_of_the_queries_give_what_all_together_give() -> None:
    rng = np.random.default_rng(0)
    scores = make_scores(rng, 30, 500, tied=False)
    labels = rng.integers(-1, 4, 30)
    parts = [threshold(scores[a : a + 10]) for a in (0, 10, 20)]
    whole = threshold(scores)
    assert_same(Clusters.concatenate(parts), whole)
    frequencies = [cluster_frequency(part, 500) for part in parts]
    total = frequencies[0] + frequencies[1] + frequencies[2]
    np.testing.assert_array_equal(total.counts, cluster_frequency(whole, 500).counts)
    expected = cluster_inverse(whole)
    found = [cluster_inverse(part, total) for part in parts]
    for name in ("neurons", "na", "ica", "naica"):
        np.testing.assert_array_equal(np.concatenate([getattr(part, name) for part in found]), getattr(expected, name))
    assert all(part.common.tolist() == expected.common.tolist() for part in found)
    pools = [pool(part, labels[10 * i : 10 * i + 10], 4) for i, part in enumerate(found)]
    merged, together = pools[0].merge(pools[1]).merge(pools[2]), pool(expected, labels, 4)
    np.testing.assert_allclose(merged.totals, together.totals, rtol=1e-12)
    for name in ("offsets", "neurons", "counts", "n_clusters"):
        np.testing.assert_array_equal(getattr(merged, name), getattr(together, name))


@pytest.mark.parametrize("chosen", [True, False])
def test_pool_adds_up_by_label(chosen: bool) -> None:
    rng = np.random.default_rng(0)
    clusters = make_clusters(rng, 40, 30, 10)
    labels = rng.integers(-1, 5, 40)
    labels[labels == 2] = -1
    result = cluster_inverse(clusters, u=1, v=6)
    found = pool(result if chosen else clusters, labels, 5)
    for label in range(5):
        sums: dict[int, list[float]] = {}
        for cluster in np.flatnonzero(labels == label):
            row = naive.as_rows(clusters)[cluster]
            if chosen:
                row = {
                    n: x for n, x in zip(result.neurons[cluster].tolist(), result.naica[cluster], strict=True) if n >= 0
                }
            for neuron, value in row.items():
                sums.setdefault(neuron, []).append(float(value))
        entries = slice(found.offsets[label], found.offsets[label + 1])
        assert found.neurons[entries].tolist() == sorted(sums)
        assert found.counts[entries].tolist() == [len(sums[n]) for n in sorted(sums)]
        assert found.totals[entries].tolist() == [sum(sums[n]) for n in sorted(sums)]
        assert found.n_clusters[label] == (labels == label).sum()


def test_threads_change_nothing() -> None:
    rng = np.random.default_rng(0)
    scores = make_scores(rng, 17, 3000, tied=True)
    whole = threshold(scores, threads=1)
    for threads in (2, 3, 8):
        assert_same(threshold(scores, threads=threads), whole)
        assert_same(threshold(whole, 0.5, threads), threshold(whole, 0.5, 1))
        assert_same(cluster_inverse(whole, threads=threads), cluster_inverse(whole, threads=1))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (([0, 2], [1], [1.0]), r"offsets must ascend from 0 to the number of entries, 1"),
        (([0, 2, 1, 3], [1, 2, 3], [1.0, 1, 1]), "offsets must ascend"),
        (([0, 2], [2, 1], [1.0, 1]), "neurons must ascend within a cluster, each once"),
        (([0, 2], [2, 2], [1.0, 1]), "neurons must ascend within a cluster, each once"),
        (([0, 1], [-1], [1.0]), r"ids from 0 to 2\^31 - 1, not -1 to 0"),
        (([0, 1], [2**31], [1.0]), r"not 0 to 2147483648"),
        (([0, 1], [0.5], [1.0]), "neurons must be integers, not float64"),
        (([0, 1], [1], [1.0, 2.0]), r"lists of one length, not \(1,\) and \(2,\)"),
    ],
)
def test_clusters_that_contradict_themselves(arrays: tuple[list[int], list[float], list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Clusters(*arrays)  # type: ignore[arg-type]


def test_neurons_may_descend_where_a_cluster_ends() -> None:
    assert Clusters([0, 0, 2, 2, 3, 3], [4, 9, 1], [1, 1, 1]).n_clusters == 5  # type: ignore[arg-type]


def test_bad_input_is_named() -> None:
    clusters = Clusters([0, 1], [5], [1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="t must be 0 or more and below 1, not 1"):
        threshold(clusters, 1)
    with pytest.raises(ValueError, match=r"scores must be \[cluster, neuron\], not \[3\]"):
        threshold(np.zeros(3, np.float32))
    with pytest.raises(TypeError, match="scores must be float32, not float16"):
        threshold(np.zeros((3, 3), np.float16))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="neurons below 5, the number of neurons, not 5"):
        cluster_frequency(clusters, 5)
    with pytest.raises(ValueError, match="u must be a share between 0 and 1, not 30"):
        cluster_inverse(clusters, u=30)
    with pytest.raises(ValueError, match="v must be 0 or more, not -1"):
        cluster_inverse(clusters, v=-1)
    with pytest.raises(ValueError, match="every neuron up to 5, but counts 3"):
        cluster_inverse(clusters, Frequency(np.zeros(3, np.int64), 1))
    with pytest.raises(ValueError, match="frequency of 0 clusters and 1 clusters: add those of all parts"):
        cluster_inverse(clusters, Frequency(np.zeros(6, np.int64), 0))
    with pytest.raises(ValueError, match="frequencies of 3 and of 6 neurons"):
        Frequency(np.zeros(3, np.int64), 1) + Frequency(np.zeros(6, np.int64), 1)
    with pytest.raises(ValueError, match=r"one integer for each of 1 clusters, not int64 \[2\]"):
        pool(clusters, [0, 1], 2)
    with pytest.raises(ValueError, match="from 0 to 1, or -1 for none, not 2 to 2"):
        pool(clusters, [2], 2)
    with pytest.raises(ValueError, match="pools of 1 and of 2 labels"):
        pool(clusters, [0], 1).merge(pool(clusters, [0], 2))
