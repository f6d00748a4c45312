"""NA-ICA against the formulas on dense scores, and one test for each defect of the published code that must be absent."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_attributions import PlantedAttributions

from actstore.engine.naica.baselines import choose_neurons, largest
from actstore.engine.naica.knowledge import knowledge_neurons
from actstore.engine.naica.methods import METHODS
from actstore.engine.naica.naica import Naica, NaicaSettings, find_naica
from actstore.engine.naica.selection import count_by_layer, pool_by_label
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def find(planted: PlantedAttributions, **chosen: Any) -> Naica:
    return find_naica(planted, NaicaSettings(**chosen))


def choose(planted: PlantedAttributions, method: str, seed: int = 0, **chosen: Any) -> Any:
    return choose_neurons(planted, method, NaicaSettings(**chosen), seed)


def names(found: Any) -> list[list[int]]:
    return [found.of(q)[0].tolist() for q in range(found.queries.num_rows)]


def reference(
    scores: NDArray[np.float32], t: float, u: float, v: int, ica: bool, removal: str
) -> tuple[list[list[tuple[int, float]]], set[int]]:
    """The formulas, one query after another, on dense scores [query, prompt, neuron]."""
    clusters = []
    for query in scores.sum(axis=1):
        cutoff = np.float32(t * float(query.max()))
        inside = np.flatnonzero(query > cutoff) if query.max() > 0 else []
        total = query.astype(np.float64).sum()
        if total <= 1e-6 * np.abs(query.astype(np.float64)).sum():
            total = np.abs(query.astype(np.float64)).sum()
        clusters.append({int(n): float(query[n]) / total for n in inside})
    df = {n: sum(n in c for c in clusters) for c in clusters for n in c}
    common = {n for n, count in df.items() if count / len(clusters) > u}
    weights = {n: math.log(len(clusters) / (count + 1)) if ica else 1.0 for n, count in df.items()}
    chosen = []
    for cluster in clusters:
        scored = sorted(
            ((n, na * weights[n]) for n, na in cluster.items()), key=lambda entry: (-np.float32(entry[1]), entry[0])
        )
        if removal == "before":
            chosen.append([entry for entry in scored if entry[0] not in common][:v])
        else:  # the paper: the v largest, of which the common ones go
            chosen.append([entry for entry in scored[:v] if entry[0] not in common])
    return chosen, common


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 13), st.integers(1, 3), st.sampled_from([1, 7, 33])),
    block=st.integers(1, 5),
    t=st.sampled_from([0.0, 0.2, 0.9]),
    u=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    v=st.sampled_from([1, 3, 20]),
    ica=st.booleans(),
    removal=st.sampled_from(["after", "before"]),
)
def test_it_is_what_the_formulas_say_whatever_the_blocks(
    seed: int, shape: tuple[int, int, int], block: int, t: float, u: float, v: int, ica: bool, removal: str
) -> None:
    # Some neurons stand out in every query, some in one, and sums of either sign occur.
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=shape).astype(np.float32) ** 3
    scores[:, :, generator.random(shape[2]) < 0.2] += 2
    found = find(PlantedAttributions(block, ig=scores), t=t, u=u, v=v, ica=ica, removal=removal)
    expected, common = reference(scores, t, u, v, ica, removal)
    assert found.common.tolist() == sorted(common)
    for query, pairs in enumerate(expected):
        neurons, values = found.of(query)
        # Neighbours that rounding makes equal, or swaps, are the same neurons.
        assert len(neurons) == len(pairs)
        assert not set(neurons.tolist()) & common
        assert sorted(neurons.tolist()) == sorted(n for n, _ in pairs) or len(pairs) == v
        np.testing.assert_allclose(values, [score for _, score in pairs], rtol=1e-5, atol=1e-9)
        assert (np.diff(values) <= 0).all()


def test_one_query_and_very_many_go_through() -> None:
    one = find(PlantedAttributions(ig=[[[1.0, 5.0, 3.0]]]), u=1.0, ica=False)
    assert names(one) == [[1, 2]]
    scores = np.zeros((20_000, 1, 11), np.float32)
    scores[np.arange(20_000), 0, np.arange(20_000) % 10] = 1
    scores[:, 0, 10] = 1
    many = find(PlantedAttributions(1_000, ig=scores))
    assert many.common.tolist() == [10]
    assert names(many)[:12] == [[n % 10] for n in range(12)]
    assert many.scores[0] == pytest.approx(0.5 * math.log(20_000 / 2_001))


def test_without_queries_there_is_an_empty_result_and_a_reason() -> None:
    found = find(PlantedAttributions(ig=np.empty((0, 3, 5))))
    assert found.offsets.tolist() == [0]
    assert found.warnings == (
        "No query has all its prompts stored. Finish `actstore.attribute(…)` with `resume=True`.",
    )
    assert pool_by_label(found, "domain", 3) == {}


# Normalisation


def test_a_sum_above_zero_scales_a_query_and_changes_nothing_else() -> None:
    scores = np.random.default_rng(3).gamma(0.5, size=(8, 2, 30)).astype(np.float32)
    scores[:, :, ::5] -= 0.1
    weights = np.float32([1e-6, 1, 7, 0.3, 1e6, 2, 5, 9])[:, None, None]
    plain, scaled = find(PlantedAttributions(ig=scores)), find(PlantedAttributions(ig=scores * weights))
    assert names(plain) == names(scaled)
    np.testing.assert_allclose(plain.scores, scaled.scores, rtol=1e-5)


def test_a_sum_below_zero_does_not_turn_the_order_round() -> None:
    """Divided by it, neurons 3 and 4, which suppress the answer, would be the query's."""
    scores = np.zeros((4, 1, 5), np.float32)
    scores[0, 0] = [3, 2, 0, -5, -10]
    scores[1:, 0, 2] = 1
    found = find(PlantedAttributions(ig=scores), ica=False, u=0.8)
    assert names(found)[0] == [0, 1]
    np.testing.assert_allclose(found.of(0)[1], [3 / 20, 2 / 20])
    assert found.totals[0] == -10
    assert any("In 1 query the attributions of all neurons add up to less than zero" in w for w in found.warnings)


def test_a_sum_of_rounding_alone_does_not_blow_a_query_up() -> None:
    scores = np.zeros((4, 1, 3), np.float32)
    scores[0, 0] = [1, -1, 1e-8]
    scores[1:, 0, 2] = 1
    found = find(PlantedAttributions(ig=scores), ica=False, u=0.8)
    np.testing.assert_allclose(found.of(0)[1], [0.5])
    scores[0, 0, 2] = 1e-3  # small, and no rounding: the formula holds
    found = find(PlantedAttributions(ig=scores), ica=False, u=0.8)
    np.testing.assert_allclose(found.of(0)[1], [1e3], rtol=1e-4)


def test_pooled_a_query_whose_attributions_cancel_weighs_no_more_than_others() -> None:
    """Queries 0 and 2 are of one label; divided by its sum of 0.01, query 2's neurons would have ten thousand times as much."""
    scores = np.zeros((4, 1, 6), np.float32)
    scores[0, 0, :2] = [60, 40]
    scores[2, 0, 2:] = [50, 0, -49.99, 0]
    scores[1::2, 0, 5] = 1
    found = find(PlantedAttributions(ig=scores), u=1, ica=False)
    np.testing.assert_allclose(found.of(2)[1], [50 / 0.01], rtol=1e-3)
    pooled = dict(pool_by_label(found, "domain", 9)["physics"])
    assert pooled == pytest.approx({0: 0.6, 1: 0.4, 2: 50 / 99.99})
    agreed = dict(pool_by_label(choose(PlantedAttributions(ig=scores), "kn"), "domain", 9)["physics"])
    assert agreed == pytest.approx({0: 0.6, 1: 0.4, 2: 50 / 99.99})


def test_scores_that_are_not_finite_are_left_out_of_all() -> None:
    found = find(PlantedAttributions(ig=[[[1, np.nan, 3, np.inf, -np.inf]]]), u=1, ica=False)
    assert names(found) == [[2, 0]]
    np.testing.assert_allclose(found.scores, [0.75, 0.25])


# The defects of the published code


def common_and_own(n_queries: int = 10) -> PlantedAttributions:
    """Neuron 0 is the largest of every query; neuron 1 + q is query q's own."""
    scores = np.zeros((n_queries, 2, n_queries + 1), np.float32)
    scores[:, :, 0] = 4
    scores[np.arange(n_queries), :, 1 + np.arange(n_queries)] = 1
    return PlantedAttributions(ig=scores)


def test_common_neurons_do_go() -> None:
    found = find(common_and_own())
    assert found.common.tolist() == [0]
    assert names(found) == [[1 + q] for q in range(10)]
    assert all(0 in found.clusters.neurons[a:b] for a, b in pairwise(found.clusters.offsets))


def test_common_neurons_are_not_the_key_neurons_and_stay_what_they_are() -> None:
    planted = common_and_own()
    first = find(planted)
    choose(planted, "with-common")
    assert first.common.tolist() == find(planted).common.tolist() == [0]
    assert not set(first.common) & set(first.neurons)


def test_common_neurons_go_after_the_largest_were_taken_and_nothing_takes_their_places() -> None:
    """Neuron 0 has half as many nats of ica as the others, and four times their na: it is the first of every query."""
    scores = np.zeros((10, 1, 21), np.float32)
    scores[:4, :, 0] = 4
    scores[np.arange(10), :, 1 + np.arange(10)] = 1
    scores[np.arange(10), :, 11 + np.arange(10)] = 0.9
    published = find(PlantedAttributions(ig=scores), v=2)
    assert published.common.tolist() == [0]
    assert names(published) == [[1 + q] if q < 4 else [1 + q, 11 + q] for q in range(10)]
    refilled = find(PlantedAttributions(ig=scores), v=2, removal="before")
    assert names(refilled) == [[1 + q, 11 + q] for q in range(10)]


def test_the_threshold_is_on_the_sum_over_prompts() -> None:
    """Neuron 1 is above it in no prompt, and of the sum it is; neuron 2 in one prompt, and of the sum it is not."""
    scores = np.float32([[[10, 1.9, 0, 0], [0, 1.9, 2.5, 10], [10, 1.9, 0, 0]]])
    assert all(1 not in np.flatnonzero(prompt > 0.2 * prompt.max()) for prompt in scores[0])
    assert 2 in np.flatnonzero(scores[0, 1] > 0.2 * scores[0, 1].max())
    assert names(find(PlantedAttributions(ig=scores), u=1, ica=False)) == [[0, 3, 1]]


def test_the_grid_is_k_over_m_and_has_no_zero() -> None:
    """On P = softmax of a quadratic of one layer's activations, the two grids give different sums."""
    from actstore.engine.attribution.integrated_gradients import PathSettings, integrated_gradients

    model, ids, target = _tiny_llama(), [5, 17, 3, 40], 7
    found = integrated_gradients(model, ids, target, settings=PathSettings(steps=2))
    layer = max(found.attributions)
    ours, theirs = (_by_hand(model, ids, target, layer, grid) for grid in ((0.5, 1.0), (0.0, 1.0)))
    np.testing.assert_allclose(found.attributions[layer], ours, rtol=1e-4, atol=1e-4 * np.abs(ours).max())
    assert np.abs(ours - theirs).max() > 1e-2 * np.abs(ours).max()


def _tiny_llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    from actstore.engine.models.load import LoadedModel

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.8,
    )
    return LoadedModel(LlamaForCausalLM(config).eval(), name="tiny")


def _by_hand(model: Any, ids: list[int], target: int, layer: int, grid: tuple[float, ...]) -> NDArray[np.float32]:
    """The mean gradient over a grid of scales of the last position's activations, times these."""
    module = model.model.get_submodule(model.spec.layers[layer].module)
    given: dict[str, Any] = {"values": None}

    def replace(_module: Any, inputs: Any) -> Any:
        values = inputs[0].clone()
        if given["values"] is None:
            given["own"] = values[0, -1].detach()
            return None
        values[0, -1] = given["values"]
        return (values,)

    handle = module.register_forward_pre_hook(replace)
    try:
        with torch.no_grad():
            model.model(torch.tensor([ids]))
        total = torch.zeros_like(given["own"])
        for scale in grid:
            given["values"] = (scale * given["own"]).requires_grad_()
            probability = model.model(torch.tensor([ids])).logits[0, -1].softmax(-1)[target]
            total += torch.autograd.grad(probability, given["values"])[0]
    finally:
        handle.remove()
    return (given["own"] * total / len(grid)).numpy()


# Few queries, wrong answers, bad input


def test_too_few_queries_are_a_warning_that_says_what_to_do() -> None:
    planted = common_and_own(3)
    found = find(planted)
    assert names(found) == [[], [], []]
    assert found.warnings == (
        "With 3 queries, a neuron of a single cluster is already in 33 % of them, more than u = 0.3 allows: all neurons are "
        "common and none is left. Ask at least 4 queries, or take u = 1 without ica (`u=1`, `ica=False`) to see the "
        "attributions as they are.",
    )
    assert find(planted, u=1, ica=False).warnings == ()
    assert find(common_and_own(4)).warnings == ()
    assert names(find(common_and_own(4)))[0] == [1]
    assert "no ica is above zero" in find(common_and_own(2), u=1).warnings[0]
    assert "u = 0 makes every neuron common" in find(planted, u=0).warnings[0]


def test_queries_of_one_prompt_are_a_warning() -> None:
    scores = common_and_own().scores["ig"][:, :1]
    (warning,) = find(PlantedAttributions(ig=scores)).warnings
    assert warning.startswith("10 of 10 queries were asked in one prompt only")
    assert warning.endswith("Ask each query in 3 prompts or more.")


def test_queries_answered_wrongly_are_kept_and_a_guessing_model_is_named() -> None:
    planted = common_and_own()
    mixed = PlantedAttributions(correct=[True, False] * 5, **planted.scores)
    assert names(find(mixed)) == names(find(planted))
    assert find(mixed).queries["correct"].to_pylist() == [True, False] * 5
    assert find(mixed).warnings == ()
    guessing = PlantedAttributions(correct=[True] * 2 + [False] * 8, **planted.scores)
    assert "answers 20 % of the prompts right, about what guessing gives (25 %)" in find(guessing).warnings[0]


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"t": 1.0}, "Expected `t`, a share of a query's largest attribution, from 0 to below 1, found 1.0."),
        ({"t": math.nan}, "found nan"),
        ({"u": -0.1}, "Expected `u`, a share of the queries, from 0 to 1, found -0.1."),
        ({"removal": "never"}, "Expected `removal` to be one of after, before, found 'never'."),
        ({"v": 0}, "Expected `v`, the number of neurons per query, to be 1 or more, found 0."),
        (
            {"attribution": "lime"},
            "Expected `attribution` to be one of ig, gradient, activation, contribution, found 'lime'.",
        ),
    ],
)
def test_settings_out_of_range_are_refused(given_: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        NaicaSettings(**given_)
    assert message in str(caught.value)


def test_methods_and_labels_that_are_not_there() -> None:
    with pytest.raises(InvalidInputError, match=r"Expected a method of random, activation.* found 'best'"):
        choose(common_and_own(), "best")
    with pytest.raises(InvalidInputError, match=r"no label 'colour'\. Their labels are: domain"):
        pool_by_label(find(common_and_own()), "colour", 3)


# Labels and layers


def test_a_label_pools_the_sums_of_its_queries() -> None:
    scores = np.zeros((4, 1, 6), np.float32)
    scores[0, 0] = [3, 1, 0, 0, 0, 0]  # physics
    scores[1, 0] = [0, 0, 1, 0, 0, 0]  # biology
    scores[2, 0] = [1, 3, 0, 0, 0, 0]  # physics
    scores[3, 0] = [0, 0, 0, 1, 1, 0]  # biology
    found = find(PlantedAttributions(ig=scores), u=1, ica=False)
    assert pool_by_label(found, "domain", 2) == {"physics": [(0, 1.0), (1, 1.0)], "biology": [(2, 1.0), (3, 0.5)]}
    assert pool_by_label(found, None, 1) == {"all queries": [(0, 1.0)]}


def test_layers_are_counted_by_label_once_for_each_query() -> None:
    scores = np.zeros((4, 1, 25), np.float32)
    scores[[0, 2], 0, 9] = 1
    scores[2, 0, 24] = 1
    scores[[1, 3], 0, 10] = 1
    found = find(PlantedAttributions(ig=scores), u=1, ica=False)
    counts = count_by_layer(found, {3: 10, 4: 10, 7: 5}, "domain")
    assert (counts.labels, counts.layers) == (("physics", "biology"), (3, 4, 7))
    assert counts.counts.tolist() == [[2, 0, 1], [0, 2, 0]]
    assert counts.n_queries.tolist() == [2, 2]
    np.testing.assert_allclose(counts.shares, [[2 / 3, 0, 1 / 3], [0, 1, 0]])


# Baselines


def random_attributions(block: int = 3) -> PlantedAttributions:
    generator = np.random.default_rng(11)
    scores = generator.gamma(0.3, size=(9, 3, 40)).astype(np.float32)
    return PlantedAttributions(block, ig=scores, activation=generator.normal(size=scores.shape))


def test_the_names_of_methods() -> None:
    planted = random_attributions()
    plain = find(planted)
    for method, expected in {
        "naica": plain, "qrnca": plain, "without-ica": find(planted, ica=False), "with-common": find(planted, u=1.0),
    }.items():  # fmt: skip
        found = choose(planted, method)
        assert names(found) == names(expected)
        assert found.scores.tolist() == expected.scores.tolist()
    assert names(choose(planted, "without-ica")) != names(plain) != names(choose(planted, "with-common"))
    assert len(METHODS) == 6


@pytest.mark.parametrize("block", [1, 2, 4, 100])
def test_knowledge_neurons_of_queries_whose_prompts_lie_in_two_blocks(block: int) -> None:
    planted = random_attributions(block)
    found = choose(planted, "kn")
    for query, prompts in enumerate(planted.scores["ig"]):
        summed = prompts.sum(axis=0)
        neurons, scores = found.of(query)
        assert sorted(neurons.tolist()) == knowledge_neurons(prompts).neurons.tolist()
        np.testing.assert_allclose(scores, np.sort(summed[neurons] / summed.sum())[::-1], rtol=1e-5)
    assert found.n_neurons.max() > 0


def test_the_largest_activations_as_many_as_naica_finds() -> None:
    planted = random_attributions()
    found = choose(planted, "activation")
    assert found.n_neurons.tolist() == find(planted).n_neurons.tolist()
    for query, activations in enumerate(planted.scores["activation"].sum(axis=1)):
        n = int(found.n_neurons[query])
        assert found.of(query)[0].tolist() == np.argsort(-activations, kind="stable")[:n].tolist()
        assert found.of(query)[1].tolist() == np.sort(activations)[::-1][:n].tolist()


def test_the_largest_with_ties_and_nan() -> None:
    values = np.float32([1, np.nan, 2, 1, 2, -np.inf])
    assert [largest(values, n).tolist() for n in (0, 1, 3, 4, 9)] == [
        [],
        [2],
        [2, 4, 0],
        [2, 4, 0, 3],
        [2, 4, 0, 3, 1, 5],
    ]


def test_random_neurons_are_as_many_different_for_each_seed_and_favour_no_layer() -> None:
    planted = random_attributions()
    first, again, other = (choose(planted, "random", seed) for seed in (1, 1, 2))
    assert first.n_neurons.tolist() == find(planted).n_neurons.tolist()
    assert names(first) == names(again) != names(other)
    assert all(len(set(neurons)) == len(neurons) for neurons in names(first))
    assert (first.scores > 0).all()
    assert all((np.diff(first.of(q)[1]) <= 0).all() for q in range(9))
    wide = PlantedAttributions(ig=np.ones((100, 1, 40)))
    drawn = choose(wide, "random", u=1, ica=False, v=10)
    assert abs(float(drawn.neurons.mean()) - 19.5) < 2  # 1,000 of them, of 0 … 39: standard error 0.37
    pooled = pool_by_label(drawn, None, 10)["all queries"]
    assert sorted(n for n, _ in pooled) != [*range(10)]
