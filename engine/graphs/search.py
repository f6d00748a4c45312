"""Which neurons fire on a token, or on a token after another: a search through the paths of all graphs of a model.

It works on the columns of all nodes at once; there is no index beside the graphs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from actstore.engine.graphs.token_sets import find_tokens
from actstore.store.errors import InvalidInputError
from actstore.store.graphs.forest import Forest, find_nodes
from actstore.store.graphs.nodes import column
from actstore.store.neurons import neuron_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from actstore.store.graphs.reader import Graphs
    from actstore.store.reader import Store


@dataclass(frozen=True)
class PathMatch:
    """A path that matches a search."""

    tokens: tuple[int, ...]
    """The activating token, then those before it, backwards."""
    probability: float
    value: float
    count: int
    fires: int
    score: float
    own_count: int
    """Number of occurrences at which no longer path matches: those to which `probability` applies."""
    own_fires: int
    """Number of these at which the neuron fires."""


@dataclass(frozen=True)
class NeuronMatch:
    """A neuron whose paths match a search."""

    neuron: str
    score: float
    """The sum of the scores of all its paths that match."""
    paths: tuple[PathMatch, ...]
    """The paths of highest score, highest first."""
    n_paths: int
    """Number of all its paths that match."""


@dataclass(frozen=True)
class SearchResult:
    """The result of a search."""

    neurons: tuple[NeuronMatch, ...]
    """The neurons of highest score, highest first."""
    n_neurons: int
    """Number of all neurons with a path that matches."""
    n_paths: int
    """Number of all paths that match."""
    activating: tuple[int, ...]
    """The ids of the activating tokens that were searched for."""
    context: tuple[int, ...]
    """The ids of the context tokens that were searched for."""


def search(
    store: Store,
    graphs: Graphs,
    *,
    activating: Sequence[str | int] = (),
    context: Sequence[str | int] = (),
    match: str = "normalised",
    silent: bool = False,
    k: int = 20,
    n_paths: int = 5,
) -> SearchResult:
    """The k neurons whose paths have one of the `activating` tokens and, before it, one of the `context` tokens.

    activating, context: texts, which match as `match` says (`find_tokens`), or token ids. silent: include paths that predict
    that the neuron does not fire. The score of a path is its probability times the number of firings at which no longer path
    matches: about the number of firings that it explains. The score of a neuron is the sum over its paths that match. Ties go
    to the higher probability, then to the smaller neuron and the earlier node. `InvalidInputError` where neither `activating`
    nor `context` is given, or a text matches no token.
    """
    if not activating and not context:
        raise InvalidInputError("Nothing to search for: pass `activating`, `context` or both.")
    if k < 1:
        raise InvalidInputError(f"`k` must be 1 or more, found {k}.")
    tokens = find_tokens(store, activating, match), find_tokens(store, context, match)
    rows, forest, paths, scores = search_paths(graphs, *tokens, silent=silent)
    neuron = forest.neuron[paths]
    totals = np.bincount(neuron, scores, minlength=len(rows))
    likeliest = np.zeros(len(rows))
    np.maximum.at(likeliest, neuron, forest.nodes["probability"][paths])
    with_paths = np.unique(neuron)
    ranking = with_paths[np.lexsort((with_paths, -likeliest[with_paths], -totals[with_paths]))]
    order = np.lexsort((paths, -forest.nodes["probability"][paths], -scores, neuron))
    starts = np.searchsorted(neuron[order], np.arange(len(rows) + 1))
    layers, indices = column(graphs.neurons, "layer")[rows], column(graphs.neurons, "neuron")[rows]
    neurons = tuple(
        NeuronMatch(
            neuron_name(layers[n], indices[n]),
            float(totals[n]),
            tuple(_match_path(forest, int(paths[i]), scores[i]) for i in order[starts[n] : starts[n + 1]][:n_paths]),
            int(starts[n + 1] - starts[n]),
        )
        for n in ranking[:k]
    )
    return SearchResult(neurons, len(ranking), len(paths), tuple(tokens[0].tolist()), tuple(tokens[1].tolist()))


def search_paths(
    graphs: Graphs, activating: NDArray[np.int64], context: NDArray[np.int64], *, silent: bool = False
) -> tuple[NDArray[np.int64], Forest, NDArray[np.int64], NDArray[np.float64]]:
    """Rows of the neurons that were searched, their forest, the nodes in it at which matching paths end, and their scores."""
    hits = find_nodes(graphs, context if len(context) else activating, is_root=not len(context))
    first = column(graphs.neurons, "first_node")
    rows = np.searchsorted(first, hits, side="right") - 1
    if len(context) and len(activating):
        # Only neurons that have both tokens: the forest, which is copied, becomes far smaller.
        with_root = np.searchsorted(first, find_nodes(graphs, activating, is_root=True), side="right") - 1
        rows = np.intersect1d(rows, with_root)
    rows = np.unique(rows)
    forest = Forest.of(graphs, rows)
    tokens = forest.nodes["token"]
    matching = forest.ends if silent else forest.fires
    if len(activating):
        matching = matching & np.isin(tokens, activating)[forest.root]
    if len(context):
        matching = matching & forest.below(np.isin(tokens, context) & (forest.nodes["depth"] > 0))
    paths = np.flatnonzero(matching)
    scores = forest.nodes["probability"][paths].astype(np.float64) * forest.own_fires[paths]
    return rows, forest, paths, scores


def _match_path(forest: Forest, node: int, score: float) -> PathMatch:
    nodes = forest.nodes
    return PathMatch(
        tuple(forest.path(node)),
        float(nodes["probability"][node]),
        float(nodes["value"][node]),
        int(nodes["count"][node]),
        int(nodes["fires"][node]),
        float(score),
        int(forest.own_count[node]),
        int(forest.own_fires[node]),
    )
