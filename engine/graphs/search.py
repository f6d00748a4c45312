"""Which neurons fire on a token, or on it after another: a search through the lines of all graphs of a model.

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
from actstore.store.neurons import neuron_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from actstore.store.graphs.reader import Graphs
    from actstore.store.reader import Store


@dataclass(frozen=True)
class Line:
    """A line that a search found."""

    tokens: tuple[int, ...]
    """The activating token, then those before it, backwards."""
    probability: float
    value: float
    count: int
    fires: int
    score: float
    own_count: int
    """Of the occurrences, those for which no longer line answers: those that `probability` speaks of."""
    own_fires: int


@dataclass(frozen=True)
class Found:
    """A neuron that a search found."""

    neuron: str
    score: float
    """The sum of its lines'."""
    lines: tuple[Line, ...]
    """The best of them, best first."""
    n_lines: int


@dataclass(frozen=True)
class Result:
    """What a search found."""

    neurons: tuple[Found, ...]
    """The best of them, best first."""
    n_neurons: int
    n_lines: int
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
    n_lines: int = 5,
) -> Result:
    """The k neurons whose lines have one of the `activating` tokens and, before it, one of the `context` tokens.

    Texts or ids; texts match as `find_tokens` says. Lines that say that the neuron does not fire count with `silent` only.
    A line's score is its probability times the firings that it alone answers for (not a longer line): nearly the firings it
    explains. A neuron's is the sum over the lines that match. Ties go to the line with more probability, then to the
    smaller neuron and the earlier node. `InvalidInputError` where nothing is asked, or a text is no token.
    """
    if not activating and not context:
        raise InvalidInputError("Nothing to search for: name an --activating token, a --context token, or both.")
    if k < 1:
        raise InvalidInputError(f"At least one neuron must be asked for, found {k}. Mend -k.")
    wanted = find_tokens(store, activating, match), find_tokens(store, context, match)
    rows, forest, lines, scores = search_lines(graphs, *wanted, silent=silent)
    neuron = forest.neuron[lines]
    totals = np.bincount(neuron, scores, minlength=len(rows))
    likeliest = np.zeros(len(rows))
    np.maximum.at(likeliest, neuron, forest.nodes["probability"][lines])
    with_lines = np.unique(neuron)
    best = with_lines[np.lexsort((with_lines, -likeliest[with_lines], -totals[with_lines]))]
    order = np.lexsort((lines, -forest.nodes["probability"][lines], -scores, neuron))
    starts = np.searchsorted(neuron[order], np.arange(len(rows) + 1))
    layers, indices = column(graphs.neurons, "layer")[rows], column(graphs.neurons, "neuron")[rows]
    found = tuple(
        Found(
            neuron_name(layers[n], indices[n]),
            float(totals[n]),
            tuple(_line(forest, int(lines[i]), scores[i]) for i in order[starts[n] : starts[n + 1]][:n_lines]),
            int(starts[n + 1] - starts[n]),
        )
        for n in best[:k]
    )
    return Result(found, len(best), len(lines), tuple(wanted[0].tolist()), tuple(wanted[1].tolist()))


def search_lines(
    graphs: Graphs, activating: NDArray[np.int64], context: NDArray[np.int64], *, silent: bool = False
) -> tuple[NDArray[np.int64], Forest, NDArray[np.int64], NDArray[np.float64]]:
    """Rows of the neurons looked at, their forest, the nodes in it where matching lines end, and the lines' scores."""
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
    lines = np.flatnonzero(matching)
    scores = forest.nodes["probability"][lines].astype(np.float64) * forest.own_fires[lines]
    return rows, forest, lines, scores


def _line(forest: Forest, node: int, score: float) -> Line:
    nodes = forest.nodes
    return Line(
        tuple(forest.path(node)),
        float(nodes["probability"][node]),
        float(nodes["value"][node]),
        int(nodes["count"][node]),
        int(nodes["fires"][node]),
        float(score),
        int(forest.own_count[node]),
        int(forest.own_fires[node]),
    )
