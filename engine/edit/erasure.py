"""Erasing a relation: the knowledge neurons that most of its facts share write nothing, and what that does to other relations.

Dai et al. (ACL 2022, arXiv 2104.08696, section 6.2): of the knowledge neurons of all facts of a relation, the 20 that occur in
most of them get rows of zeros. The effect is the perplexity of the right answers, `exp(mean −log P(answer))`, and how often
they are the most probable token, over the prompts of the relation and over those of all others, before and after. As in their
section on what activates knowledge neurons: how active the erased neurons are at the relation's own prompts and at others.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from actstore.engine.edit.readings import Reading
from actstore.engine.edit.rows import make_edit, scaled_rows
from actstore.engine.edit.weights import edited
from actstore.engine.models.fingerprint import check_model, fingerprint_of
from actstore.engine.naica.selection import label_of_queries
from actstore.engine.naica.stored_knowledge import each_knowledge_neurons
from actstore.store.capture.questions.attributions import open_attributions
from actstore.store.errors import InvalidInputError
from actstore.store.model.weights import read_rows
from actstore.store.neurons import NeuronIndex, random_neurons

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from actstore.engine.edit.readings import Reader
    from actstore.store.capture.questions.attributions import Attributions
    from actstore.store.edits import Edit
    from actstore.store.reader import Store

FORM: Final = "erase"
DEFAULT_K: Final = 20
"""The paper's number of neurons per relation."""
_PROMPTS_AT_ONCE: Final = 256


def erase(store: Store, name: str, by: str, value: str, *, k: int = DEFAULT_K, questions: str | None = None) -> Edit:
    """The edit that erases the queries whose label `by` has a value: rows of zeros for the k neurons that most of them share.

    Of neurons in equally many queries, the first come first. `InvalidInputError` for a label or a value that is not there, and
    where no query has a knowledge neuron.
    """
    if k < 1:
        raise InvalidInputError(f"`k` is at least 1, found {k}.")
    attributions = open_attributions(store, questions)
    attributions.expect_neurons("The rows of MLP neurons are erased")
    counts: Counter[int] = Counter()
    related = set(np.flatnonzero(_is_related(attributions, by, value)).tolist())
    for query, found in each_knowledge_neurons(attributions):
        if query in related:
            counts.update(found.neurons.tolist())
    if not counts:
        raise InvalidInputError(
            f"The queries whose {by} is {value!r} have no knowledge neurons: no attribution is positive."
        )
    flat = np.sort(np.array(sorted(counts, key=lambda neuron: (-counts[neuron], neuron))[:k], np.int64))
    layers, indices = NeuronIndex(attributions.capture.record.layers("mlp.post")).locate(flat)
    neurons = {int(layer): indices[layers == layer].tolist() for layer in np.unique(layers)}
    before = {layer: read_rows(store.folder, f"layer-{layer}", "write_vectors", of) for layer, of in neurons.items()}
    settings = {
        "by": by, "value": value, "k": k, "questions": attributions.capture.record.name, "queries": len(related),
        "shared_by": [counts[neuron] for neuron in flat.tolist()],
    }  # fmt: skip
    return make_edit(name, FORM, store.model, scaled_rows(neurons, before, 0.0), settings=settings)


@dataclass(frozen=True)
class ErasureEvaluation:
    """What erasing does."""

    rows: list[dict[str, Any]]
    """One row per method ("edit", "random"), draw and value of the label: number of prompts, whether it is the erased one,
    share of right answers and perplexity, before and after."""
    activations: dict[str, float]
    """Mean stored activation of the erased neurons at the prompts of the erased value ("own") and of the others ("other")."""
    triggers: list[dict[str, Any]]
    """The prompts at which they are most active, and least, each with its label's value and mean activation."""

    def summary(self, method: str = "edit") -> list[dict[str, Any]]:
        """One entry per draw: `erased` and `others`, each with prompts, accuracy and perplexity before and after.

        Over all prompts of all other values, as the paper has it.
        """
        draws = []
        for seed in sorted({row["seed"] for row in self.rows if row["method"] == method}):
            of_draw = [row for row in self.rows if row["method"] == method and row["seed"] == seed]
            draws.append({name: _pooled([row for row in of_draw if row["erased"] == is_erased])
                          for name, is_erased in (("erased", True), ("others", False))})  # fmt: skip
        return draws


def evaluate_erasure(
    reader: Reader,
    store: Store,
    edit: Edit,
    *,
    seeds: int = 3,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> ErasureEvaluation:
    """The effect of an edit that `erase` made, beside erasing as many random neurons of the same layers.

    `reader` holds the model that the edit is for, unedited; errors as of `evaluate_edit`.
    """
    check_model(store.folder, edit.record.model_fingerprint, fingerprint_of(reader.model), reader.model.spec.name)
    recorded = edit.record.settings
    attributions = open_attributions(store, recorded["questions"])
    values, of_query = label_of_queries(attributions.queries, recorded["by"])
    value_of_prompt = of_query[attributions.prompts["query"].to_numpy()]
    erased = values.index(recorded["value"])
    on_step(0, 2 + seeds)
    before = _answers(reader, attributions)
    on_step(1, 2 + seeds)
    rows: list[dict[str, Any]] = []

    def measure(method: str, seed: int, tried: Edit) -> None:
        with edited(reader.model, tried):
            after = _answers(reader, attributions)
        for number, value in enumerate(values):
            inside = value_of_prompt == number
            row: dict[str, Any] = {"method": method, "seed": seed, "value": value, "erased": number == erased}
            rows.append(row | {"prompts": int(inside.sum())} | _effect(before, after, inside))

    measure("edit", 0, edit)
    for seed in range(seeds):
        on_step(2 + seed, 2 + seeds)
        measure("random", seed, _random(store, edit, seed))
    on_step(2 + seeds, 2 + seeds)
    mean = _mean_activations(attributions, edit)
    own = value_of_prompt == erased
    activations = {"own": float(mean[own].mean()), "other": float(mean[~own].mean()) if (~own).any() else float("nan")}
    return ErasureEvaluation(rows, activations, _triggers(attributions, mean, [values[n] for n in value_of_prompt]))


def _is_related(attributions: Attributions, by: str, value: str) -> NDArray[np.bool_]:
    values, of_query = label_of_queries(attributions.queries, by)
    if value not in values:
        raise InvalidInputError(f"No query has {value!r} as its {by}. Found: {', '.join(values)}. Check `value`.")
    related: NDArray[np.bool_] = of_query == values.index(value)
    return related


def _answers(reader: Reader, attributions: Attributions) -> NDArray[np.float64]:
    """[prompt, 2]: log P of each prompt's right answer, and whether it is the most probable token."""
    targets = attributions.prompts["target"].to_numpy()
    answers = np.empty((len(targets), 2))
    for first in range(0, len(targets), _PROMPTS_AT_ONCE):
        rows = range(first, min(first + _PROMPTS_AT_ONCE, len(targets)))
        ids = [attributions.prompt_ids(row) for row in rows]
        logits_of = reader.logits([Reading(one, len(one)) for one in ids], [np.array([len(one) - 1]) for one in ids])
        for row, logits in zip(rows, logits_of, strict=True):
            target = int(targets[row])
            answers[row] = float(logits[0].double().log_softmax(-1)[target]), float(logits[0].argmax() == target)
    return answers


def _effect(before: NDArray[np.float64], after: NDArray[np.float64], inside: NDArray[np.bool_]) -> dict[str, float]:
    return {
        "accuracy_before": float(before[inside, 1].mean()),
        "accuracy": float(after[inside, 1].mean()),
        "perplexity_before": float(np.exp(-before[inside, 0].mean())),
        "perplexity": float(np.exp(-after[inside, 0].mean())),
    }


def _pooled(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Rows of several values as one: means over their prompts, of logarithms where it is perplexity."""
    n = np.array([row["prompts"] for row in rows], float)
    if not n.sum():
        return {"prompts": 0}
    pooled: dict[str, float] = {"prompts": int(n.sum())}
    for name in ("accuracy_before", "accuracy"):
        pooled[name] = float(np.average([row[name] for row in rows], weights=n))
    for name in ("perplexity_before", "perplexity"):
        pooled[name] = float(np.exp(np.average(np.log([row[name] for row in rows]), weights=n)))
    return pooled


def _random(store: Store, edit: Edit, seed: int) -> Edit:
    """The edit with as many random neurons in its place, none of them its own."""
    own = {rows.layer: np.array(rows.neurons) for rows in edit.record.rows}
    widths = {layer: store.model.layers[layer].neurons for layer in own}
    drawn = random_neurons(own, widths, np.random.default_rng([seed, 11]))
    neurons = {layer: indices.tolist() for layer, indices in drawn.items()}
    before = {layer: read_rows(store.folder, f"layer-{layer}", "write_vectors", of) for layer, of in neurons.items()}
    return make_edit(f"{edit.name}.random", FORM, store.model, scaled_rows(neurons, before, 0.0))


def _mean_activations(attributions: Attributions, edit: Edit) -> NDArray[np.float64]:
    """The mean activation of the erased neurons at the last position of each prompt; [prompt]."""
    index = NeuronIndex(attributions.capture.record.layers("mlp.post"))
    flat = np.array([index.number(rows.layer, n) for rows in edit.record.rows for n in rows.neurons], np.int64)
    mean = np.empty(attributions.prompts.num_rows)
    for rows, scores in attributions.prompt_scores("activation"):
        mean[rows] = scores[:, flat].mean(1)
    return mean


def _triggers(
    attributions: Attributions, mean: NDArray[np.float64], values: list[str], number: int = 2
) -> list[dict[str, Any]]:  # fmt: skip
    """The prompts with the largest and the smallest mean activation, `number` of each, the most active first."""
    order = np.argsort(-mean, kind="stable")
    shown = [*order[:number], *order[number:][-number:]]
    texts = attributions.prompts["text"].to_pylist()
    return [{"text": texts[row], "value": values[row], "activation": float(mean[row])} for row in map(int, shown)]
