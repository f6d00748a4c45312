"""Which neurons fire on a token, or on it after another: a search through the paths of all graphs of a model.

Arrays over all nodes; nothing is read twice and nothing is kept beside the graphs. Knows nothing about how graphs are built.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from actstore.engine.graphs.token_sets import find_tokens
from actstore.store.errors import InvalidInputError
from actstore.store.graphs.forest import Forest, find_nodes
from actstore.store.graphs.nodes import column

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
    """Of the occurrences, those for which no longer path answers: those that `probability` speaks of."""
    own_fires: int


@dataclass(frozen=True)
class NeuronMatch:
    """A neuron whose paths match a search."""

    neuron: str
    score: float
    """The sum of its paths'."""
    paths: tuple[PathMatch, ...]
    """The best of them, best first."""
    n_paths: int


@dataclass(frozen=True)
class SearchResult:
    """What a search found."""

    neurons: tuple[NeuronMatch, ...]
    """The best of them, best first."""
    n_neurons: int
    n_paths: int
    activating: tuple[int, ...]
    """The tokens that were searched for."""
    context: tuple[int, ...]


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

    Texts or ids; texts match as `find_tokens` says. Paths that say that the neuron does not fire count with `silent` only.
    A path's score is its probability times the firings that it alone answers for (not a longer path): nearly the firings it
    explains. A neuron's is the sum over the paths that match. Ties go to the path with more probability, then to the
    smaller neuron and the earlier node. `InvalidInputError` where nothing is asked, or a text is no token.
    """
    if not activating and not context:
        raise InvalidInputError("Nothing to search for: name an --activating token, a --context token, or both.")
    if k < 1:
        raise InvalidInputError(f"At least one neuron must be asked for, found {k}. Mend -k.")
    wanted = find_tokens(store, activating, match), find_tokens(store, context, match)
    rows, forest, paths, scores = search_paths(graphs, *wanted, silent=silent)
    neuron = forest.neuron[paths]
    totals = np.bincount(neuron, scores, minlength=len(rows))
    likeliest = np.zeros(len(rows))
    np.maximum.at(likeliest, neuron, forest.nodes["probability"][paths])
    with_paths = np.unique(neuron)
    best = with_paths[np.lexsort((with_paths, -likeliest[with_paths], -totals[with_paths]))]
    order = np.lexsort((paths, -forest.nodes["probability"][paths], -scores, neuron))
    starts = np.searchsorted(neuron[order], np.arange(len(rows) + 1))
    layers, indices = column(graphs.neurons, "layer")[rows], column(graphs.neurons, "neuron")[rows]
    found = tuple(
        NeuronMatch(
            f"L{layers[n]}.N{indices[n]}",
            float(totals[n]),
            tuple(_match_path(forest, int(paths[i]), scores[i]) for i in order[starts[n] : starts[n + 1]][:n_paths]),
            int(starts[n + 1] - starts[n]),
        )
        for n in best[:k]
    )
    return SearchResult(found, len(best), len(paths), tuple(wanted[0].tolist()), tuple(wanted[1].tolist()))


def search_paths(
    graphs: Graphs, activating: NDArray[np.int64], context: NDArray[np.int64], *, silent: bool = False
) -> tuple[NDArray[np.int64], Forest, NDArray[np.int64], NDArray[np.float64]]:
    """Rows of the neurons looked at, their forest, the nodes in it where matching paths end, and the paths' scores."""
    hits = find_nodes(graphs, context if len(context) else activating, is_root=not len(context))
    first = column(graphs.neurons, "first_node")
    rows = np.searchsorted(first, hits, side="right") - 1
    if len(context) and len(activating):
        # Only neurons that have both: one look-up of far fewer nodes.
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
