"""Erasing a relation: which neurons, what it does to its facts and to others, beside a plain computation."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from actstore.engine.attribution.attribute import attribute
from actstore.engine.edit.erasure import erase, evaluate_erasure
from actstore.engine.edit.rewrite import rewrite
from actstore.engine.edit.settings import KnowledgeSettings, RewriteSettings
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

    from actstore.engine.edit.readings import Reader
    from actstore.store.capture.questions.attributions import Attributions


@pytest.fixture(scope="module")
def attributions(fact_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Attributions:
    """Attributions of some of the fact model's questions, of two domains."""
    folder = tmp_path_factory.mktemp("erasure")
    every = json.loads((fact_model / "questions.json").read_text())
    selected = {
        name: row for domain in ("biology", "geography")
        for name, row in [pair for pair in every.items() if pair[1]["relation_name"] == domain][:4]
    }  # fmt: skip
    (folder / "questions.json").write_text(json.dumps(selected))
    return attribute(str(fact_model), folder / "questions.json", folder / "store", steps=4)


def test_the_neurons_that_most_facts_share_get_rows_of_zeros(attributions: Attributions) -> None:
    edit = erase(attributions.capture.store, "x", "relation_name", "geography", k=6)  # type: ignore[arg-type]
    counts: Counter[int] = Counter()
    for query, label in enumerate(attributions.queries["relation_name"].to_pylist()):
        if label != "geography":
            continue
        scores = attributions.scores_of(query, "ig")
        kept = (scores >= 0.2 * scores.max(1, keepdims=True)).sum(0)
        share = 0.7
        while (chosen := np.flatnonzero(kept >= max(1, np.ceil(len(scores) * share - 1e-9)))).size < 2:
            share = round(share - 0.05, 9)
        while chosen.size > 5 and share < 1 and share >= 0.7:
            fewer = np.flatnonzero(kept >= np.ceil(len(scores) * round(min(1, share + 0.05), 9) - 1e-9))
            if fewer.size < 2:
                break
            chosen, share = fewer, round(min(1, share + 0.05), 9)
        counts.update(chosen.tolist())
    expected = sorted(counts, key=lambda n: (-counts[n], n))[:6]
    assert sorted(edit.record.neuron_names()) == sorted(attributions.neuron_names(np.array(expected)))
    assert all(not pair.after.any() for pair in edit.rows.values())
    with pytest.raises(InvalidInputError, match=r"No query has 'law' as its relation_name\. Found: biology, geography"):
        erase(attributions.capture.store, "x", "relation_name", "law")  # type: ignore[arg-type]


def test_perplexity_and_accuracy_are_those_of_a_plain_pass(attributions: Attributions, fact_reader: Reader) -> None:
    store = attributions.capture.store
    edit = erase(store, "x", "relation_name", "geography", k=6)  # type: ignore[arg-type]
    evaluation = evaluate_erasure(fact_reader, store, edit, seeds=1)  # type: ignore[arg-type]
    model = fact_reader.model.model
    blocks = model.model.layers  # type: ignore[union-attr]
    saved = {rows.layer: blocks[rows.layer].mlp.down_proj.weight.detach().clone() for rows in edit.record.rows}
    prompts = attributions.prompts
    labels = np.array(attributions.queries["relation_name"].to_pylist())[prompts["query"].to_numpy()]

    def nats() -> np.ndarray:
        with torch.no_grad():
            return np.array([
                -float(model(torch.tensor(attributions.prompt_ids(row)[None].astype(np.int64))).logits[0, -1]
                       .double().log_softmax(-1)[target])
                for row, target in enumerate(prompts["target"].to_pylist())
            ])  # fmt: skip

    before = nats()
    with torch.no_grad():
        for rows in edit.record.rows:
            blocks[rows.layer].mlp.down_proj.weight[:, list(rows.neurons)] = 0
    after = nats()
    with torch.no_grad():
        for layer, weight in saved.items():
            blocks[layer].mlp.down_proj.weight.copy_(weight)
    summary = evaluation.summary()[0]
    for part, inside in (("erased", labels == "geography"), ("others", labels != "geography")):
        assert summary[part]["prompts"] == inside.sum()
        assert summary[part]["perplexity_before"] == pytest.approx(np.exp(before[inside].mean()), rel=1e-4)
        assert summary[part]["perplexity"] == pytest.approx(np.exp(after[inside].mean()), rel=1e-4)
    assert len(evaluation.summary("random")) == 1
    assert evaluation.triggers[0]["activation"] >= evaluation.triggers[-1]["activation"]


def test_stored_attributions_locate_the_neurons_of_an_edit(attributions: Attributions, fact_reader: Reader) -> None:
    from actstore.engine.edit.requests.request import Request
    from actstore.engine.naica.stored_knowledge import knowledge_neurons_of

    query = attributions.queries["query"].to_pylist()[5]
    prompt = attributions.prompts["text"].to_pylist()[0]
    settings = RewriteSettings(
        form="knowledge-corrected", requests=(Request((prompt,), " C"),), knowledge=KnowledgeSettings(queries=(query,))
    )
    edit = rewrite(attributions.capture, "x", settings, fact_reader)  # type: ignore[arg-type]
    expected = attributions.neuron_names(knowledge_neurons_of(attributions, 5).neurons)
    assert edit.record.neuron_names() == expected
    wrong = RewriteSettings(
        form="knowledge", requests=(Request((prompt,), " C"),), knowledge=KnowledgeSettings(queries=("none",))
    )
    with pytest.raises(InvalidInputError, match="has no query 'none'"):
        rewrite(attributions.capture, "x", wrong, fact_reader)  # type: ignore[arg-type]
