"""The neurons that a method selected for each query; the same pooled by label and counted by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from actstore.kernels.cluster_inverse.api import Clusters, pool
from actstore.store.errors import InvalidInputError
from actstore.store.neurons import NeuronIndex

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

NOT_LABELS = frozenset({"query", "n_prompts", "n_correct", "correct", "probability", "first_prompt"})
"""Columns of a table of queries that do not come from the questions file."""


@dataclass(frozen=True)
class SelectedNeurons:
    """The neurons of every query, ordered by score, the largest first; neurons are flat ids over all layers."""

    queries: pa.Table
    """One row per query, as `Attributions.queries` gives them."""
    offsets: NDArray[np.int64]
    """[query + 1]; entries `offsets[q]:offsets[q + 1]` belong to query q."""
    neurons: NDArray[np.int64]
    """[entry]"""
    scores: NDArray[np.float32]
    """[entry] What the neurons are ordered by; the method says which score it is."""
    weights: NDArray[np.float64]
    """[query] The factor of a query's scores where scores of several queries are added."""
    warnings: tuple[str, ...]
    """Reasons to doubt the result, one or two sentences each."""

    def of(self, query: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The neurons of one query, by its row, and their scores."""
        entries = slice(self.offsets[query], self.offsets[query + 1])
        return self.neurons[entries], self.scores[entries]

    @property
    def n_neurons(self) -> NDArray[np.int64]:
        """Number of neurons of each query; shape [query]."""
        return np.diff(self.offsets)


def join_queries(
    queries: pa.Table,
    neuron_scores: Sequence[tuple[NDArray[np.int64], NDArray[np.float32]]],
    weights: NDArray[np.float64] | None = None,
    warnings: tuple[str, ...] = (),
) -> SelectedNeurons:
    """The neurons and scores of every query, concatenated; all queries weigh the same, unless `weights` are given."""
    return SelectedNeurons(
        queries=queries,
        offsets=np.cumsum([0, *(len(neurons) for neurons, _ in neuron_scores)]),
        neurons=np.concatenate([np.empty(0, np.int64), *(neurons for neurons, _ in neuron_scores)]),
        scores=np.concatenate([np.empty(0, np.float32), *(scores for _, scores in neuron_scores)]),
        weights=np.ones(queries.num_rows) if weights is None else weights,
        warnings=warnings,
    )


def label_columns(queries: pa.Table) -> list[str]:
    """The columns of a table of queries that are labels."""
    return [name for name in queries.column_names if name not in NOT_LABELS]


def label_of_queries(queries: pa.Table, label: str | None) -> tuple[list[str], NDArray[np.int64]]:
    """The values of a label in order of first occurrence, and the index of each query's value, -1 for none.

    An empty text is not a value. Without a label all queries have one value: "all queries".
    """
    if label is None:
        return ["all queries"], np.zeros(queries.num_rows, np.int64)
    columns = label_columns(queries)
    if label not in columns:
        raise InvalidInputError(
            f"The queries have no label {label!r}. Their labels are: {', '.join(columns) or 'none'}."
        )
    numbers: dict[str, int] = {}
    of_queries = [
        -1 if value in (None, "") else numbers.setdefault(str(value), len(numbers))
        for value in queries[label].to_pylist()
    ]
    return [*numbers], np.array(of_queries, np.int64)


@dataclass(frozen=True)
class QueryLabels:
    """The values of one label and which of them each query has."""

    label: str
    values: tuple[str, ...]
    """In order of first occurrence."""
    of_query: NDArray[np.int64]
    """[query] Index into `values`, -1 for none."""


def pool_by_label(selected: SelectedNeurons, label: str | None, k: int) -> dict[str, list[tuple[int, float]]]:
    """For every value of a label, the k neurons with the largest sum of weighted scores over its queries, and these sums.

    Sums are in float64, in the order of the queries. Ties go to the smaller neuron. A value whose queries have no neuron
    has an empty list.
    """
    names, of_queries = label_of_queries(selected.queries, label)
    rows = np.repeat(np.arange(selected.queries.num_rows), selected.n_neurons)
    scores = (selected.scores * selected.weights[rows]).astype(np.float32)
    order = np.lexsort((selected.neurons, rows))  # the kernel takes the neurons of a query in ascending order
    pooled = pool(
        Clusters(selected.offsets, selected.neurons[order].astype(np.int32), scores[order]), of_queries, len(names)
    )
    result = {}
    for i, name in enumerate(names):
        entries = slice(pooled.offsets[i], pooled.offsets[i + 1])
        neurons, totals = pooled.neurons[entries], pooled.totals[entries]
        first = np.argsort(-totals, kind="stable")[:k]
        result[name] = [*zip(neurons[first].tolist(), totals[first].tolist(), strict=True)]
    return result


def neurons_of_labels(selected: SelectedNeurons, label: str | None) -> dict[str, NDArray[np.int64]]:
    """For every value of a label the neurons of its queries, each once, ascending; without a label, for every query."""
    if label is None:
        names = [str(name) for name in selected.queries["query"].to_pylist()]
        return {name: np.sort(selected.of(row)[0]) for row, name in enumerate(names)}
    names, of_queries = label_of_queries(selected.queries, label)
    of_entries = np.repeat(of_queries, selected.n_neurons)
    return {name: np.unique(selected.neurons[of_entries == i]) for i, name in enumerate(names)}


@dataclass(frozen=True)
class LayerCounts:
    """Number of neurons in each layer, for the queries of each value of a label."""

    label: str
    """The label column; empty where there is one row for all queries."""
    labels: tuple[str, ...]
    layers: tuple[int, ...]
    counts: NDArray[np.int64]
    """[label, layer] A neuron counts once for each query that has it."""
    n_queries: NDArray[np.int64]
    """[label]"""

    @property
    def shares(self) -> NDArray[np.float64]:
        """The share of each label's neurons in each layer; rows sum to 1, or are all 0; shape [label, layer]."""
        shares: NDArray[np.float64] = self.counts / np.maximum(self.counts.sum(axis=1, keepdims=True), 1)
        return shares


def count_by_layer(selected: SelectedNeurons, widths: Mapping[int, int], label: str | None = None) -> LayerCounts:
    """For every value of a label, the number of its queries' neurons in each layer (the paper's figure of the layers).

    widths: neurons of each layer, in the order of the flat ids.
    """
    names, of_queries = label_of_queries(selected.queries, label)
    layers = NeuronIndex(widths).layer_rows(selected.neurons)
    of_entries = np.repeat(of_queries, selected.n_neurons)
    counts = np.zeros((len(names), len(widths)), np.int64)
    labelled = of_entries >= 0
    np.add.at(counts, (of_entries[labelled], layers[labelled]), 1)
    n_queries = np.bincount(of_queries[of_queries >= 0], minlength=len(names))
    return LayerCounts(label or "", tuple(names), tuple(widths), counts, n_queries)
