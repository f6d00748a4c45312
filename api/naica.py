"""`store.naica` and `store.knowledge`: neurons relevant to queries, from stored attributions."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from actstore.api.light import explained, explains
from actstore.api.method import Method
from actstore.api.models import open_model
from actstore.api.neurons import label_column
from actstore.api.results import Answer
from actstore.store.neurons import neuron_columns
from actstore.store.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actstore.api.models import ModelOptions
    from actstore.engine.capture.progress import CaptureProgress
    from actstore.engine.capture.run import RunOptions
    from actstore.engine.models.in_memory import ModelInput
    from actstore.engine.naica.evaluation import NaicaEvaluation
    from actstore.engine.naica.selection import SelectedNeurons
    from actstore.store.capture.captures import Captures
    from actstore.store.capture.questions.attributions import Attributions


logger: Final = logging.getLogger("actstore")


@explains
class NaicaMethod(Method):
    """NA-ICA, published as QRNCA (Chen, Dejl and Toni, arXiv 2406.10868): `store.naica(…)`, `store.naica.evaluate(…)`."""

    _reached_as = "store.naica"

    def __call__(
        self,
        *,
        by: str | None = None,
        method: str = "naica",
        attribution: str = "ig",
        t: float = 0.2,
        u: float = 0.3,
        v: int = 20,
        removal: str = "after",
        ica: bool = True,
        k: int = 10,
        seed: int = 0,
        output: str | Path | None = None,
        overlap_map: str | Path | None = None,
        capture: str | None = None,
        device: str = "auto",
        workers: int | None = None,
        on: str = "local",
    ) -> Answer[SelectedNeurons]:
        """The neurons relevant to each query, or with `by` to each value of a label; needs no model.

        A query's score for a neuron is its attribution, summed over the query's prompts and divided by the sum over all
        neurons, times `ica`, log(clusters / (clusters with the neuron + 1)).

        - `by`: pool the queries of each value of this label; the `k` neurons with the largest sums.
        - `method`: `naica`, or a baseline: `engine.naica.baselines.METHODS`.
        - `attribution`: the kind of stored attribution that is read.
        - `t`: a query's cluster is its neurons above this share of its largest attribution.
        - `u`: neurons in more than this share of the clusters are common, and removed; 1 keeps all.
        - `v`: maximum number of neurons per query.
        - `removal`: whether common neurons are removed `after` the v largest were taken, as published, or `before`.
        - `ica`: weigh attributions by ica.
        - `k`: number of neurons per label.
        - `seed`: random seed of the method `random`.
        - `output`: a picture of labels by layers, .svg or .html.
        - `overlap_map`: a picture of the neurons that labels share, .svg or .html.
        - `capture`: the capture of questions; the only one unless given.
        - `device`: what looks for large attributions: `auto`, `cpu`, `cuda` or `cuda:1`.
        - `workers`: number of processes that queries are divided among.
        - `on`: where they run: `local`, `ray` or `ray://HOST:PORT`.

        Columns: query (or the label), name, layer, neuron, score; best first.

        >>> store.naica(by="domain", k=5).table
        """
        from actstore.display.relevant_neurons import check_pictures, describe_selection, draw_selection
        from actstore.engine.devices.device import find_device
        from actstore.engine.naica.baselines import choose_neurons
        from actstore.engine.naica.naica import NaicaSettings
        from actstore.engine.naica.selection import label_of_queries
        from actstore.engine.workers.scan import executor_of
        from actstore.store.capture.questions.attributions import open_attributions

        settings, executor = NaicaSettings(attribution, t, u, v, ica, removal), executor_of(workers, on)
        target = find_device(device, on)
        attributions = open_attributions(self._store, capture)
        label_of_queries(attributions.queries, by)  # refuses a label that is not there before the work
        pictures = _paths(output, overlap_map)
        check_pictures(*pictures)
        selection = choose_neurons(attributions, method, settings, seed, executor, target)
        draw_selection(attributions, selection, by, describe_selection(attributions, method, settings), *pictures)
        return Answer(_selection_table(attributions, selection, by, k), selection, tuple(selection.warnings))

    def evaluate(
        self,
        model: ModelInput | None = None,
        *,
        by: str = "relation_name",
        method: Sequence[str] | None = None,
        protocol: Sequence[str] | None = None,
        seeds: int = 5,
        max_queries: int | None = None,
        pool: int = 20,
        attribution: str = "ig",
        t: float = 0.2,
        u: float = 0.3,
        v: int = 20,
        removal: str = "after",
        max_rows: int = 160,
        capture: str | None = None,
        options: ModelOptions | None = None,
    ) -> Answer[NaicaEvaluation]:
        """What suppressing and boosting the neurons of each query does to its answer, and to unrelated ones.

        - `model`: a name, a path or a loaded model; the store's own unless given.
        - `by`: the label whose other values are unrelated queries.
        - `method`: methods that are compared; all unless given.
        - `protocol`: `prompt` and `label` (both held out), `query` (the paper's); all unless given.
        - `seeds`: number of draws of unrelated queries and of what is left out.
        - `max_queries`: maximum number of queries that are tested.
        - `pool`: number of neurons per label in the protocol `label`.
        - `max_rows`: maximum number of rows per forward pass.
        - `options`: dtype, device and trust of the model's own code.

        Columns: protocol, method, operation, the measures and their standard deviations over seeds (`…_sd`).
        """
        from actstore.engine.naica.evaluation import EvaluationSettings, check_labels, evaluate_naica
        from actstore.engine.naica.naica import NaicaSettings
        from actstore.store.capture.questions.attributions import open_attributions

        defaults = EvaluationSettings()
        settings = EvaluationSettings(
            label=by,
            methods=defaults.methods if method is None else tuple(method),
            protocols=defaults.protocols if protocol is None else tuple(protocol),
            seeds=seeds,
            max_queries=max_queries,
            pool=pool,
            naica=NaicaSettings(attribution, t, u, v, removal=removal),
            max_rows=max_rows,
        )
        attributions = open_attributions(self._store, capture)
        check_labels(attributions, settings)  # before the model is loaded
        with open_model(self._store, model, options) as (loaded, _):
            evaluation = evaluate_naica(loaded, attributions, settings)
        return Answer(Table(pa.Table.from_pylist(evaluation.summary())), evaluation, tuple(evaluation.warnings))


@explained
def questions(
    model: ModelInput,
    path: str | Path,
    store: str | Path,
    *,
    preset: str,
    name: str = "questions",
    k: int = 10,
    steps: int | None = None,
    max_queries: int | None = None,
    output: str | Path | None = None,
    overlap_map: str | Path | None = None,
    options: RunOptions | None = None,
) -> Answer[SelectedNeurons]:
    """Lets a model answer the questions of the QRNCA paper; the neurons relevant to each domain or language.

    The same as `actstore.attribute` and `store.naica(by="relation_name")`. The questions are their authors', and not part of
    actstore.

    - `path`: the authors' file, or the folder that holds it, as their repository does.
    - `preset`: `qrnca-domain` or `qrnca-language`.
    - `name`: name of the capture.
    - `k`: number of neurons per label.
    - `steps`: steps of the integral from 0 to the activations.
    - `max_queries`: maximum number of queries to read.
    - `output`: a picture of labels by layers, .svg or .html.
    - `overlap_map`: a picture of the neurons that labels share, .svg or .html.

    Columns: relation_name, name, layer, neuron, score; best first.

    >>> actstore.questions("gpt2", "qrneuron/data", "gpt2.actstore", preset="qrnca-domain").table
    """
    attributions, selection = ask_preset(
        model, path, store, preset, name, steps, max_queries, output, overlap_map, options, None
    )
    return Answer(_selection_table(attributions, selection, "relation_name", k), selection, tuple(selection.warnings))


def ask_preset(
    model: ModelInput,
    path: str | Path,
    store: str | Path,
    preset: str,
    name: str,
    steps: int | None,
    max_queries: int | None,
    output: str | Path | None,
    overlap_map: str | Path | None,
    options: RunOptions | None,
    progress: CaptureProgress | None,
) -> tuple[Attributions, SelectedNeurons]:
    """As `questions`: the attributions, and the neurons of every query."""
    from actstore.display.relevant_neurons import check_pictures, describe_selection, draw_selection
    from actstore.engine.attribution.attribute import attribute
    from actstore.engine.naica.naica import NaicaSettings, find_naica
    from actstore.engine.naica.presets import LABEL, PRESETS, find_questions

    file = find_questions(preset, path)
    pictures = _paths(output, overlap_map)
    check_pictures(*pictures)
    attributions = attribute(
        model, file, store, name=name, steps=steps, max_queries=max_queries, label_columns=(LABEL,),
        templates=PRESETS[preset].n_prompts, options=options, progress=progress,
    )  # fmt: skip
    settings = NaicaSettings()
    selection = find_naica(attributions, settings)
    if n_cut := int(np.count_nonzero(attributions.prompts["n_cut"].to_numpy())):
        context = attributions.capture.record.plan.settings["context"]
        sentence = (
            f"{n_cut:,} of {attributions.prompts.num_rows:,} prompts are longer than the model's context of {context} tokens: "
            f"their "
            "beginning was cut off (column n_cut)."
        )
        selection = replace(selection, warnings=(sentence, *selection.warnings))
    subtitle = f"{preset}: {describe_selection(attributions, 'naica', settings)}"
    draw_selection(attributions, selection, LABEL, subtitle, *pictures)
    return attributions, selection


def _paths(output: str | Path | None, overlap_map: str | Path | None) -> tuple[Path | None, Path | None]:
    """The files of both pictures."""
    return None if output is None else Path(output), None if overlap_map is None else Path(overlap_map)


def knowledge_neurons(
    store: Captures, attribution: str, keep: float, share: float, at_least: int, at_most: int, capture: str | None
) -> Table:
    """As `Store.knowledge`."""
    from actstore.engine.naica.knowledge import Refinement
    from actstore.engine.naica.stored_knowledge import each_knowledge_neurons, size_warning
    from actstore.store.capture.questions.attributions import open_attributions

    refinement = Refinement(keep=keep, share=share, at_least=at_least, at_most=at_most)
    attributions = open_attributions(store, capture)
    queries = attributions.queries["query"].to_pylist()
    names, flat, n_prompts, shares, sizes = [], [], [], [], []
    for row, agreed in each_knowledge_neurons(attributions, refinement, attribution):
        names += [queries[row]] * len(agreed.neurons)
        flat += agreed.neurons.tolist()
        n_prompts += agreed.n_prompts.tolist()
        shares += [agreed.share] * len(agreed.neurons)
        sizes.append(len(agreed.neurons))
    if warning := size_warning(sizes, attributions, refinement):
        logger.warning(warning)
    neurons = np.array(flat, np.int64)
    columns = _columns("query", pa.array(names, pa.string()), attributions, neurons)
    return Table(
        pa.table(columns | {"n_prompts": pa.array(n_prompts, pa.int64()), "share": pa.array(shares, pa.float64())})
    )


def _columns(key: str, keys: pa.Array, attributions: Attributions, flat: np.ndarray) -> dict[str, pa.Array]:
    neurons = neuron_columns(*attributions.locate(flat))
    return {label_column(key, (*neurons, "score")): keys} | neurons


def _table(key: str, keys: pa.Array, attributions: Attributions, flat: np.ndarray, scores: np.ndarray) -> Table:
    return Table(pa.table(_columns(key, keys, attributions, flat) | {"score": scores}))


def _selection_table(attributions: Attributions, selection: SelectedNeurons, by: str | None, k: int) -> Table:
    from actstore.engine.naica.selection import pool_by_label

    if by is None:
        rows = np.repeat(np.arange(selection.queries.num_rows), selection.n_neurons)
        keys = selection.queries["query"].take(pa.array(rows))
        return _table("query", keys, attributions, selection.neurons, selection.scores)
    pooled = pool_by_label(selection, by, k)
    names = [name for name, neurons in pooled.items() for _ in neurons]
    pairs = [pair for neurons in pooled.values() for pair in neurons]
    flat = np.array([neuron for neuron, _ in pairs], np.int64)
    scores = np.array([score for _, score in pairs], np.float64)
    return _table(by, pa.array(names, pa.string()), attributions, flat, scores)
