"""The neurons that a method chose for each query; the same pooled by label and counted by layer.

Plain numpy. Knows nothing about how they were chosen, nor about models.
"""

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
"""Columns of a table of queries that say something else than what the questions file says of a query."""


@dataclass(frozen=True)
class Chosen:
    """A query's neurons in the order of their scores, the largest first; neurons are flat ids over all layers."""

    queries: pa.Table
    """A row per query, as `Attributions.queries` gives them."""
    offsets: NDArray[np.int64]
    """[query + 1] entries `offsets[q]:offsets[q + 1]` are query q's."""
    neurons: NDArray[np.int64]
    """[entry]"""
    scores: NDArray[np.float32]
    """[entry] what they are ordered by; of which kind, the method says."""
    weights: NDArray[np.float64]
    """[query] what a query's scores are multiplied by where they are added to other queries'."""
    warnings: tuple[str, ...]
    """What whoever reads the result should know, a sentence or two each."""

    def of(self, query: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The neurons of one query, by its row, and their scores."""
        where = slice(self.offsets[query], self.offsets[query + 1])
        return self.neurons[where], self.scores[where]

    @property
    def n_neurons(self) -> NDArray[np.int64]:
        """How many neurons each query has; shape [query]."""
        return np.diff(self.offsets)


def join(
    queries: pa.Table,
    parts: Sequence[tuple[NDArray[np.int64], NDArray[np.float32]]],
    weights: NDArray[np.float64] | None = None,
    warnings: tuple[str, ...] = (),
) -> Chosen:
    """The neurons and scores of each query, one query behind the other; all weigh the same, unless `weights` are given."""
    return Chosen(
        queries=queries,
        offsets=np.cumsum([0, *(len(neurons) for neurons, _ in parts)]),
        neurons=np.concatenate([np.empty(0, np.int64), *(neurons for neurons, _ in parts)]),
        scores=np.concatenate([np.empty(0, np.float32), *(scores for _, scores in parts)]),
        weights=np.ones(queries.num_rows) if weights is None else weights,
        warnings=warnings,
    )


def label_columns(queries: pa.Table) -> list[str]:
    """The columns of a table of queries that are labels."""
    return [name for name in queries.column_names if name not in NOT_LABELS]


def label_of_queries(queries: pa.Table, label: str | None) -> tuple[list[str], NDArray[np.int64]]:
    """The values of a label in the order in which they first come, and which of them each query has, -1 for none.

    An empty text is no value. Without a label all queries have one value: "all queries".
    """
    if label is None:
        return ["all queries"], np.zeros(queries.num_rows, np.int64)
    known = label_columns(queries)
    if label not in known:
        raise InvalidInputError(f"The queries have no label {label!r}. Their labels are: {', '.join(known) or 'none'}.")
    numbers: dict[str, int] = {}
    of_queries = [
        -1 if value in (None, "") else numbers.setdefault(str(value), len(numbers))
        for value in queries[label].to_pylist()
    ]
    return [*numbers], np.array(of_queries, np.int64)


def pool_by_label(chosen: Chosen, label: str | None, k: int) -> dict[str, list[tuple[int, float]]]:
    """For every value of a label, the k neurons with the largest sum of weighted scores over its queries, and these sums.

    Sums are in float64, in the order of the queries. Ties go to the smaller neuron. A value whose queries have no neuron
    has an empty list.
    """
    names, of_queries = label_of_queries(chosen.queries, label)
    rows = np.repeat(np.arange(chosen.queries.num_rows), chosen.n_neurons)
    scores = (chosen.scores * chosen.weights[rows]).astype(np.float32)
    order = np.lexsort((chosen.neurons, rows))
    pooled = pool(
        Clusters(chosen.offsets, chosen.neurons[order].astype(np.int32), scores[order]), of_queries, len(names)
    )
    result = {}
    for i, name in enumerate(names):
        where = slice(pooled.offsets[i], pooled.offsets[i + 1])
        neurons, totals = pooled.neurons[where], pooled.totals[where]
        first = np.argsort(-totals, kind="stable")[:k]
        result[name] = [*zip(neurons[first].tolist(), totals[first].tolist(), strict=True)]
    return result


@dataclass(frozen=True)
class LayerCounts:
    """In which layers the neurons of each label's queries lie."""

    label: str
    """What the labels are of; nothing where there is one row of all queries."""
    labels: tuple[str, ...]
    layers: tuple[int, ...]
    counts: NDArray[np.int64]
    """[label, layer] a neuron counts once for each query that has it."""
    n_queries: NDArray[np.int64]
    """[label]"""

    @property
    def shares(self) -> NDArray[np.float64]:
        """Of each label's neurons, the share in each layer; a row adds up to 1, or is 0 throughout; shape [label, layer]."""
        shares: NDArray[np.float64] = self.counts / np.maximum(self.counts.sum(axis=1, keepdims=True), 1)
        return shares


def count_by_layer(chosen: Chosen, widths: Mapping[int, int], label: str | None = None) -> LayerCounts:
    """For every value of a label, how many of its queries' neurons each layer holds (the paper's figure of the layers).

    widths: neurons of each layer, in the order of the flat ids.
    """
    names, of_queries = label_of_queries(chosen.queries, label)
    layers = NeuronIndex(widths).layer_rows(chosen.neurons)
    of_entries = np.repeat(of_queries, chosen.n_neurons)
    counts = np.zeros((len(names), len(widths)), np.int64)
    kept = of_entries >= 0
    np.add.at(counts, (of_entries[kept], layers[kept]), 1)
    n_queries = np.bincount(of_queries[of_queries >= 0], minlength=len(names))
    return LayerCounts(label or "", tuple(names), tuple(widths), counts, n_queries)
