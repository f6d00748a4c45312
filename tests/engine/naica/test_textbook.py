"""From a model to the neurons of a query, and to what suppressing them does, against the formulas on the model's own tensors.

Over gated and plain feed-forwards, tied and untied embeddings, with biases and without; the textbook forms are in `textbook`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from textbook import blocks_of, textbook_attribution
from tiny_edits import CONFIGS, make_editable

from actstore.engine.attribution.attribute import attribute
from actstore.engine.edit.erasure import erase
from actstore.engine.models.load import load_model
from actstore.engine.naica.evaluation import EvaluationSettings, evaluate_naica
from actstore.engine.naica.knowledge import knowledge_neurons
from actstore.engine.naica.naica import NaicaSettings, find_naica

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.engine.models.load import LoadedModel
    from actstore.store.capture.questions.attributions import Attributions

STEPS, NEURONS, T, U, V = 4, 24, 0.2, 0.5, 5
"""Neurons of a layer; the settings of NA-ICA."""

Made = tuple["LoadedModel", "Attributions", "NDArray[np.float64]"]


@pytest.fixture(scope="module", params=CONFIGS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A model, stored attributions of four queries of two labels, two prompts each, and the textbook's [prompt, neuron]."""
    folder = tmp_path_factory.mktemp(request.param)
    make_editable(request.param, folder)
    rows = [
        {"id": f"q{i}", "prompts": [f"{'the fox ' * n}who {i}?\n A. 1\n B. {i}\nsay:" for n in (0, 1)],
         "answers": ["AB"[i % 2]] * 2, "of": "xy"[i // 2]}
        for i in range(4)
    ]  # fmt: skip
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    attributions = attribute(
        str(folder / "model"), folder / "q.jsonl", folder / "store", steps=STEPS, label_columns=("of",)
    )
    model = load_model(str(folder / "model"))
    expected = [
        np.concatenate(textbook_attribution(model.model, ids_of(attributions, row), target, STEPS))
        for row, target in enumerate(attributions.prompts["target"].to_pylist())
    ]
    return model, attributions, np.stack(expected)


def ids_of(attributions: Attributions, row: int) -> torch.Tensor:
    return torch.from_numpy(attributions.prompt_ids(row).astype(np.int64))


def test_what_attribute_stores_is_equation_2_of_dai_et_al(made: Made) -> None:
    _, attributions, expected = made
    scores = np.concatenate([scores for _, scores in attributions.prompt_scores("ig")])
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_naica_is_that_of_chen_et_al_from_the_model_on(made: Made) -> None:
    """na = Σ over prompts / Z, clusters above t · max, ica = log(|C| / (df + 1)), the v largest, of which common ones go."""
    _, attributions, expected = made
    na = expected.reshape(4, 2, -1).sum(1)
    clusters = [set(np.flatnonzero(query > T * query.max()).tolist()) for query in na]
    df = Counter(neuron for cluster in clusters for neuron in cluster)
    found = find_naica(attributions, NaicaSettings(t=T, u=U, v=V))
    assert set(found.common.tolist()) == {neuron for neuron, count in df.items() if count / 4 > U}
    for query, cluster in enumerate(clusters):
        total = na[query].sum()
        total = total if total > 0 else np.abs(na[query]).sum()
        scores = {neuron: na[query, neuron] / total * math.log(4 / (df[neuron] + 1)) for neuron in cluster}
        best = sorted(scores, key=lambda neuron: -scores[neuron])[:V]
        kept = [neuron for neuron in best if df[neuron] / 4 <= U]
        neurons, values = found.of(query)
        assert neurons.tolist() == kept
        np.testing.assert_allclose(values, [scores[neuron] for neuron in kept], rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize(("operation", "factor"), [("suppress", 0.0), ("boost", 2.0)])
def test_suppressing_and_boosting_is_scaling_at_the_last_position(made: Made, operation: str, factor: float) -> None:
    model, attributions, _ = made
    settings = EvaluationSettings(
        label="of", methods=("naica",), protocols=("query",), seeds=1, naica=NaicaSettings(u=1.0, ica=False)
    )
    evaluation = evaluate_naica(model, attributions, settings)
    (measured,) = [one for one in evaluation.measurements if one.operation == operation]
    chosen = find_naica(attributions, settings.naica)
    percents = []
    for row, target in enumerate(attributions.prompts["target"].to_pylist()):
        neurons = chosen.of(row // 2)[0]

        def probability(scaled: NDArray[np.int64], row: int = row, target: int = target) -> float:
            handles = []
            for layer, block in enumerate(blocks_of(model.model)):
                own = torch.from_numpy(scaled[scaled // NEURONS == layer] % NEURONS)

                def scale(_module: Any, args: Any, own: torch.Tensor = own) -> Any:
                    values = args[0].clone()
                    values[0, -1, own] *= factor
                    return (values,)

                handles.append(block.register_forward_pre_hook(scale))
            with torch.no_grad():
                p = float(model.model(ids_of(attributions, row)[None]).logits[0, -1].double().softmax(-1)[target])
            for handle in handles:
                handle.remove()
            return p

        before = probability(np.empty(0, np.int64))
        percents.append(100 * (probability(neurons) - before) / before)
    assert measured.related.percent == pytest.approx(np.mean(percents), rel=1e-3)


def test_erasing_zeroes_the_rows_that_most_facts_of_a_relation_share(made: Made) -> None:
    """Dai et al., section 6.2: of the knowledge neurons of all facts, those of the most facts."""
    model, attributions, expected = made
    counts: Counter[int] = Counter()
    for query in (0, 1):  # those of "x"
        counts.update(knowledge_neurons(expected.reshape(4, 2, -1)[query]).neurons.tolist())
    shared = sorted(counts, key=lambda neuron: (-counts[neuron], neuron))[:4]
    edit = erase(attributions.capture.store, "x", "of", "x", k=4)  # type: ignore[arg-type]
    assert sorted(edit.record.neuron_names()) == sorted(f"L{n // NEURONS}.N{n % NEURONS}" for n in shared)
    for pair in edit.rows.values():
        assert not pair.after.any()
    for rows in edit.record.rows:
        before = model.write_vectors(rows.layer)[list(rows.neurons)]
        torch.testing.assert_close(edit.rows[rows.layer].before.float(), before)
