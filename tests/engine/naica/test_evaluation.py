"""The evaluation of query-relevant neurons: its measures by hand, its groups, and one number end to end by whole passes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from elsewhere import Elsewhere

from actstore.engine.attribution.attribute import attribute
from actstore.engine.models.intervene import factors, intervened, scale
from actstore.engine.models.load import LoadedModel, load_model
from actstore.engine.naica import evaluation as naica_evaluation
from actstore.engine.naica.baselines import choose_neurons
from actstore.engine.naica.evaluation import EvaluationSettings, NaicaEvaluation, evaluate_naica
from actstore.engine.naica.prediction import predict_options
from actstore.engine.naica.prompt_subset import subset_of_prompts
from actstore.engine.naica.trials import Effect, Measurement, Trials, effect
from actstore.engine.workers.scan import HERE
from actstore.store.capture.questions.attributions import open_attributions
from actstore.store.errors import InvalidInputError
from actstore.store.reader import Store

if TYPE_CHECKING:
    from actstore.store.capture.questions.attributions import Attributions

DEMO = Path(__file__).resolve().parents[3] / "demo" / "models" / "fact-llama"
DOMAINS = ("biology", "chemistry", "units")


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(DEMO, device="cpu")


@pytest.fixture(scope="module")
def attributions(tmp_path_factory: pytest.TempPathFactory) -> Attributions:
    """Fifteen queries of three domains, three prompts each, in blocks that part a query's prompts."""
    folder = tmp_path_factory.mktemp("evaluation")
    questions = json.loads((DEMO / "questions.json").read_text(encoding="utf-8"))
    some: dict[str, Any] = {}
    for domain in DOMAINS:
        some |= dict([(k, v) for k, v in questions.items() if v["relation_name"] == domain][:20:4])
    (folder / "questions.json").write_text(json.dumps(some), encoding="utf-8")
    attribute(
        str(DEMO), folder / "questions.json", folder / "store", label_columns=("relation_name", "relation"), steps=4
    )
    return open_attributions(Store(folder / "store"))


@pytest.fixture(scope="module")
def found(model: LoadedModel, attributions: Attributions) -> NaicaEvaluation:
    return evaluate_naica(model, attributions, EvaluationSettings(seeds=2))


# --- measures


def test_effects_are_means_over_queries_of_means_over_prompts() -> None:
    groups = np.array([0, 0, 4, 4])
    before, after = np.array([0.5, 0.2, 0.8, 0.0]), np.array([0.25, 0.3, 0.8, 0.5])
    was, is_ = np.array([True, False, True, False]), np.array([False, False, True, True])
    made = effect(groups, (before, after), (was, is_))
    assert made.percent == pytest.approx((0 + 0) / 2)  # -50 % and +50 %; 0 %, and what was 0 is left out
    assert made.magnitude == pytest.approx((50 + 0) / 2)
    odds = [math.log(p / (1 - p)) for p in (0.5, 0.2, 0.8, 1e-6, 0.25, 0.3, 0.8, 0.5)]
    assert made.log_odds == pytest.approx(np.mean(np.subtract(odds[4:], odds[:4])))
    assert made.flips == pytest.approx((0.5 + 0.5) / 2)
    assert made.to_wrong == pytest.approx((1 + 0) / 2)
    assert made.to_right == pytest.approx((0 + 1) / 2)


def test_of_nothing_there_is_no_share() -> None:
    yes = np.array([True])
    made = effect(np.array([0]), (np.array([0.5]), np.array([0.5])), (yes, yes))
    assert made.to_wrong == 0
    assert math.isnan(made.to_right)


@pytest.mark.parametrize(("related", "unrelated", "ratio"), [(-6.0, 2.0, 3.0), (1.0, 0.0, math.inf), (0.0, -2.0, 0.0)])
def test_pcr_is_a_ratio_of_magnitudes_of_means(related: float, unrelated: float, ratio: float) -> None:
    one, other = (Effect(value, value, abs(value), 0, 0, 0) for value in (related, unrelated))
    made = Measurement("query", "naica", 0, "boost", 1, 1.0, one, other)
    assert made.pcr == made.log_odds_ratio == ratio
    assert math.isnan(replace(made, related=other, unrelated=other).pcr) == (unrelated == 0)


# --- end to end


def test_workers_find_what_one_process_does(attributions: Attributions) -> None:
    workers = Elsewhere()
    for method in ("naica", "activation"):
        alone, shared = (choose_neurons(attributions, method, executor=one) for one in (HERE, workers))
        assert shared.neurons.tolist() == alone.neurons.tolist()
        assert shared.scores.tobytes() == alone.scores.tobytes()
        assert shared.weights.tobytes() == alone.weights.tobytes()
    assert str(workers.items[0][1]).startswith("queries ")


def test_one_measurement_is_what_whole_passes_give(
    model: LoadedModel, attributions: Attributions, found: NaicaEvaluation
) -> None:
    """Suppression in the paper's protocol, from the chosen neurons on."""
    chosen = choose_neurons(attributions, "naica")
    percents = []
    for query in range(attributions.queries.num_rows):
        neurons = chosen.of(query)[0]
        changes = {
            layer: scale(factors(512, (neurons[neurons // 512 == layer] % 512).tolist(), 0.0), last_only=True)
            for layer in range(5)
        }
        for row in np.flatnonzero(attributions.prompts["query"].to_numpy() == query).tolist():
            ids = torch.as_tensor(attributions.prompt_ids(row)[None].astype(np.int64))
            target = attributions.prompts["target"][row].as_py()
            with torch.inference_mode():
                before = model.model(ids).logits[0, -1].softmax(-1)[target].item()
                with intervened(model, changes):
                    after = model.model(ids).logits[0, -1].softmax(-1)[target].item()
            percents.append(100 * (after - before) / before)
    assert np.abs(percents).max() > 0.01
    for made in found.measurements:
        if (made.protocol, made.method, made.operation) == ("query", "naica", "suppress"):
            assert made.related.percent == pytest.approx(np.mean(percents), rel=1e-3)
            assert made.queries == 15
            assert made.neurons == chosen.n_neurons.mean()


def test_all_that_was_asked_is_measured_and_repeats(
    model: LoadedModel, attributions: Attributions, found: NaicaEvaluation
) -> None:
    assert len(found.measurements) == 3 * 6 * 2 * 2
    assert len(found.summary()) == 3 * 6 * 2
    assert [row["label"] for row in found.accuracy_summary()] == list(DOMAINS)
    assert all(0 <= one.neuron <= 1 and one.guess == 0.25 for one in found.accuracies)
    assert found.fallback is None
    again = evaluate_naica(
        model, attributions, EvaluationSettings(seeds=2, methods=("naica",), protocols=("prompt",), max_rows=7)
    )
    before = [one for one in found.measurements if (one.protocol, one.method) == ("prompt", "naica")]
    for one, other in zip(before, again.measurements, strict=True):
        assert one.related.percent == pytest.approx(other.related.percent, rel=1e-2, abs=1e-3)
        assert (one.method, one.seed, one.neurons) == (other.method, other.seed, other.neurons)
    random = [one for one in found.measurements if one.method == "random" and one.protocol == "query"]
    assert random[0].related != random[2].related  # another seed, other neurons


def test_no_neuron_is_tested_on_what_it_was_found_with_but_in_the_papers_protocol(
    model: LoadedModel, attributions: Attributions, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[set[str]] = []
    asked: list[tuple[str, list[int], list[int], set[str]]] = []
    domain = attributions.queries["relation_name"].to_pylist()
    query_of = attributions.prompts["query"].to_pylist()
    texts = attributions.prompts["text"].to_pylist()

    def choose(part: Any, *arguments: Any) -> Any:
        read.append(set(part.prompts["text"].to_pylist()))
        return choose_neurons(part, *arguments)

    class Recorded(Trials):
        def plan(self, protocol: str, method: str, seed: int, groups: Any) -> Any:
            asked.extend((protocol, related, unrelated, read[-1]) for _, related, unrelated in groups)
            return super().plan(protocol, method, seed, groups)

    monkeypatch.setattr(naica_evaluation, "choose_neurons", choose)
    monkeypatch.setattr(naica_evaluation, "Trials", Recorded)
    evaluate_naica(model, attributions, EvaluationSettings(seeds=2, methods=("naica",)))
    assert {protocol for protocol, *_ in asked} == {"query", "prompt", "label"}
    for protocol, related, unrelated, seen in asked:
        assert {domain[query_of[row]] for row in related}.isdisjoint({domain[query_of[row]] for row in unrelated})
        assert len(related) == len(unrelated) == (1 if protocol == "prompt" else 3)
        assert {texts[row] in seen for row in related} == {protocol == "query"}


@pytest.mark.parametrize("kind", ["ig", "activation"])
def test_a_part_has_the_sums_of_its_prompts_alone(attributions: Attributions, kind: str) -> None:
    kept = np.random.default_rng(1).random(attributions.prompts.num_rows) < 0.5
    kept[3:6] = False  # a whole query
    part = subset_of_prompts(attributions, kept)
    whole = np.concatenate([scores for _, scores in attributions.prompt_scores(kind)])
    queries = attributions.prompts["query"].to_numpy()
    names = np.array(attributions.queries["query"].to_pylist())
    assert part.queries["query"].to_pylist() == names[np.unique(queries[kept])].tolist()
    rows, scores = (np.concatenate(x) for x in zip(*part.query_scores(kind), strict=True))
    assert rows.tolist() == list(range(part.queries.num_rows))
    expected = np.stack([whole[kept & (queries == query)].sum(axis=0) for query in np.unique(queries[kept])])
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-9)
    assert part.prompts["text"].to_pylist() == [
        t for t, k in zip(attributions.prompts["text"].to_pylist(), kept, strict=True) if k
    ]
    assert (np.diff(part.prompts["query"].to_numpy()) <= 1).all()


# --- prediction by neurons


def test_the_nearest_centroid_decides_and_what_says_nothing_does_not() -> None:
    rng = np.random.default_rng(0)
    answers = ["A", "B", "C"] * 20
    known = rng.normal(size=(60, 4)).astype(np.float32)
    known[:, 0] = [{"A": 0.0, "B": 1000.0, "C": 2000.0}[a] for a in answers]
    known[:, 1] = 3.0  # does not vary
    asked = np.array([[990, 1e9, 0, 0], [2100, 3, 0, np.nan], [-5, 3, 0, 0]], np.float32)
    assert predict_options(known, answers, asked, [["A", "B", "C"]] * 3) == ["B", "C", "A"]
    assert predict_options(known, answers, asked, [["A", "C"], ["D", "A"], ["D"]]) == ["A", "A", "D"]


def test_no_neurons_predict_the_first_option() -> None:
    assert predict_options(np.empty((2, 0), np.float32), ["B", "A"], np.empty((1, 0), np.float32), [["B", "A"]]) == [
        "B"
    ]


# --- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "language"}, "no label 'language'"),
        ({"methods": ("naica", "best")}, "`methods` among .* found best"),
        ({"methods": ()}, "found none"),
        ({"protocols": ("paper",)}, "`protocols` among"),
        ({"seeds": 0}, "`seeds` of 1 or more"),
        ({"max_queries": 1}, "`max_queries` of 2 or more"),
    ],
)
def test_settings_that_cannot_be_are_said(
    model: LoadedModel, attributions: Attributions, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        evaluate_naica(model, attributions, EvaluationSettings(**changes))


def test_one_value_of_a_label_and_queries_too_few_to_halve_are_said(
    model: LoadedModel, attributions: Attributions
) -> None:
    domains = np.repeat(attributions.queries["relation_name"].to_numpy(zero_copy_only=False), 3)
    with pytest.raises(InvalidInputError, match="at least two values of 'relation_name'"):
        evaluate_naica(model, subset_of_prompts(attributions, domains == "units"))
    kept = domains == "units"
    kept[:3] = True
    with pytest.raises(InvalidInputError, match=r"at least two queries of every 'relation_name'.*'biology'"):
        evaluate_naica(model, subset_of_prompts(attributions, kept))


def test_a_store_of_another_model_is_refused(attributions: Attributions, tiny_model: Path) -> None:
    with pytest.raises(InvalidInputError, match="holds another model"):
        evaluate_naica(load_model(tiny_model, device="cpu"), attributions)
