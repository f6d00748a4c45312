"""Which neurons have like graphs: by the tokens they share, as published, and by what they predict.

All neurons at once are products of sparse matrices [neuron, column]; a column is a token, or a node of the trie in which all
graphs lie. Knows nothing about activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np

from actstore.engine.graphs.sparse import Products
from actstore.engine.graphs.token_sets import normal_classes
from actstore.store.errors import NotFoundError
from actstore.store.graphs.forest import Forest, find_nodes
from actstore.store.graphs.nodes import BOUNDARY, IGNORE, column

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from actstore.store.graphs.graph import GraphSet
    from actstore.store.model.root import Root

SIMILAR: Final = 0.9
"""From this overlap on, two neurons are similar, or one is a subset of the other (Foote et al. 2023)."""

_CELLS: Final = 1 << 22
"""Pairs of neurons whose measures are held at once: some 200 MB."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of neurons, by their rows in the table of neurons."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    overlap: NDArray[np.float64]
    """The smaller of two shares, of activating and of context tokens: those in common among the larger set's."""
    subset: NDArray[np.float64]
    """The same among the smaller set's."""
    prediction: NDArray[np.float64]
    """Cosine of the two neurons' predicted probabilities of firing over the corpus."""

    def take(self, which: NDArray[np.int64]) -> Pairs:
        """Some of the pairs, in the order asked for."""
        return Pairs(
            self.first[which], self.second[which], self.overlap[which], self.subset[which], self.prediction[which]
        )


class Similarity:
    """All neurons' graphs, ready to be compared.

    *Tokens*: activating tokens are those of paths that say that the neuron fires, context tokens the others on such paths;
    `classes` [token] makes one of tokens that differ in case and spaces only. *Prediction*: the cosine, over all positions
    of the corpus, of the probabilities that the two graphs predict. Positions need not be looked at: a graph's prediction
    changes only at its nodes, so that with D its change there, n the occurrences, and S the sum of n·D over a node and all
    below it, the sum over positions of both predictions is Σ D₁·S₂ + S₁·D₂ − n·D₁·D₂ over the nodes that both have. It is exact
    but for ignored tokens, which count as tokens of their own. 0 for a neuron without paths.
    """

    def __init__(self, forest: Forest, classes: NDArray[np.int64] | None = None) -> None:
        self.forest, self._classes = forest, classes
        self.n_neurons = len(forest.offsets) - 1

    @cached_property
    def _tokens(self) -> tuple[Products, Products]:
        """Activating and context tokens of each neuron's paths, as ones."""
        forest = self.forest
        used = forest.above(forest.fires)
        is_root = forest.nodes["depth"] == 0
        return self._token_sets(used & is_root), self._token_sets(used & ~is_root & (forest.nodes["token"] != IGNORE))

    def _token_sets(self, chosen: NDArray[np.bool_]) -> Products:
        tokens = self.forest.nodes["token"][chosen].astype(np.int64)
        if self._classes is not None:
            known = (tokens >= 0) & (tokens < len(self._classes))
            tokens = np.where(known, self._classes[np.where(known, tokens, 0)], tokens)
        tokens -= BOUNDARY
        width = int(tokens.max(initial=0)) + 1
        keys = np.unique(self.forest.neuron[chosen] * width + tokens)
        ones = np.ones((1, len(keys)))
        return Products(np.searchsorted(keys // width, np.arange(self.n_neurons + 1)), keys % width, ones, ones)

    @cached_property
    def _predictions(self) -> tuple[Products, NDArray[np.float64]]:
        """The sums over positions of two predictions, and the neurons' norms."""
        forest = self.forest
        above = np.append(forest.probability, np.float32(0))[forest.parent]
        change = (forest.probability - above).astype(np.float64)
        count = forest.nodes["count"].astype(np.float64)
        totals = np.concatenate([[0.0], np.cumsum(count * change)])
        below = totals[forest.stop] - totals[:-1]
        root = np.sqrt(count) * change
        sums = np.concatenate([[0.0], np.cumsum(2 * change * below - root * root)])
        squares = sums[forest.offsets[1:]] - sums[forest.offsets[:-1]]
        products = Products(
            forest.offsets, common_nodes(forest), np.stack([change, below, -root]), np.stack([below, change, root])
        )
        return products, np.sqrt(np.maximum(squares, 0.0))

    def rows(self, first: int, stop: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Overlap, subset and prediction of neurons first…stop with all neurons; each [stop - first, neuron]."""
        shape = (stop - first, self.n_neurons)
        overlap, subset = np.ones(shape), np.ones(shape)
        for tokens in self._tokens:
            shared = tokens.rows(first, stop)
            sizes = tokens.sizes.astype(np.float64)
            larger = np.maximum(sizes[first:stop, None], sizes)
            smaller = np.minimum(sizes[first:stop, None], sizes)
            # Of two empty sets each is all of the other; an empty one is a part of any.
            np.minimum(overlap, np.divide(shared, larger, out=np.ones(shape), where=larger > 0), out=overlap)
            np.minimum(subset, np.divide(shared, smaller, out=np.ones(shape), where=smaller > 0), out=subset)
        without_paths = self._tokens[0].sizes == 0
        for measure in (overlap, subset):
            measure[without_paths[first:stop]] = 0.0
            measure[:, without_paths] = 0.0
        products, norms = self._predictions
        scale = norms[first:stop, None] * norms
        prediction = np.divide(products.rows(first, stop), scale, out=np.zeros(shape), where=scale > 0)
        # Sums are rounded in an order that depends on the number of threads.
        return overlap, subset, np.clip(prediction, 0.0, 1.0).round(6)

    def of(self, neuron: int) -> Pairs:
        """One neuron with every other that shares anything with it, likest first: by prediction, then overlap, then subset."""
        overlap, subset, prediction = (values[0] for values in self.rows(neuron, neuron + 1))
        others = np.flatnonzero((overlap > 0) | (subset > 0) | (prediction > 0))
        others = others[others != neuron]
        pairs = Pairs(np.full(len(others), neuron), others, overlap[others], subset[others], prediction[others])
        return pairs.take(np.lexsort((others, -pairs.subset, -pairs.overlap, -pairs.prediction)))

    def all(self, least: float = SIMILAR) -> Pairs:
        """Every pair of neurons, each once, of which a measure is at least `least`; likest first."""
        height = max(1, _CELLS // max(self.n_neurons, 1))
        parts = list(self._blocks(height, least))
        pairs = Pairs(
            np.concatenate([part.first for part in parts]),
            np.concatenate([part.second for part in parts]),
            np.concatenate([part.overlap for part in parts]),
            np.concatenate([part.subset for part in parts]),
            np.concatenate([part.prediction for part in parts]),
        )
        return pairs.take(np.lexsort((pairs.second, pairs.first, -pairs.subset, -pairs.overlap, -pairs.prediction)))

    def _blocks(self, height: int, least: float) -> Iterator[Pairs]:
        none = np.empty(0, np.int64)
        yield Pairs(none, none, np.empty(0), np.empty(0), np.empty(0))
        for first in range(0, self.n_neurons, height):
            stop = min(first + height, self.n_neurons)
            overlap, subset, prediction = self.rows(first, stop)
            hits = np.maximum(np.maximum(overlap, subset), prediction) >= least
            one, other = np.nonzero(hits & (np.arange(first, stop)[:, None] < np.arange(self.n_neurons)))
            yield Pairs(one + first, other, overlap[one, other], subset[one, other], prediction[one, other])


def common_nodes(forest: Forest) -> NDArray[np.int64]:
    """[node] the number of its path of tokens: the same for the same path, in whichever graph it lies."""
    common = np.zeros(len(forest.parent), np.int64)
    token = forest.nodes["token"].astype(np.int64) - BOUNDARY
    width, n_known = int(token.max(initial=0)) + 1, 0
    for level in forest.levels:
        parent = np.where(forest.parent[level] >= 0, common[forest.parent[level]], 0)
        known, which = np.unique(parent * width + token[level], return_inverse=True)
        common[level] = which + n_known
        n_known += len(known)
    return common


def compare(
    graphs: GraphSet, layer: int, neuron: int, classes: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], Pairs]:
    """Rows of neurons in the table of neurons, and how a neuron compares with each, likest first.

    Only neurons that share an activating token with it are looked at; all others have 0 in every measure.
    `NotFoundError` where the graphs have no such neuron.
    """
    row = find_row(graphs, layer, neuron)
    candidates = _candidates(graphs, row, classes)
    similarity = Similarity(Forest.of(graphs, candidates), classes)
    return candidates, similarity.of(int(np.searchsorted(candidates, row)))


def find_row(graphs: GraphSet, layer: int, neuron: int) -> int:
    """The row of a neuron in the table of neurons."""
    layers, indices = column(graphs.neurons, "layer"), column(graphs.neurons, "neuron")
    found = np.flatnonzero((layers == layer) & (indices == neuron))
    if not len(found):
        raise NotFoundError(f"There is no graph of L{layer}.N{neuron}: {_range(layers, indices, layer)}.")
    return int(found[0])


def _range(layers: NDArray[np.int32], indices: NDArray[np.int32], layer: int) -> str:
    here = indices[layers == layer]
    if len(here):
        return f"layer {layer} has graphs of neurons {here.min()} to {here.max()}"
    return f"there are graphs of layers {', '.join(map(str, np.unique(layers).tolist())) or 'none'}"


def _candidates(graphs: GraphSet, row: int, classes: NDArray[np.int64] | None) -> NDArray[np.int64]:
    forest = Forest.of(graphs, np.array([row]))
    wanted = np.unique(forest.nodes["token"][forest.nodes["depth"] == 0]).astype(np.int64)
    if not len(wanted):
        return np.array([row])
    if classes is not None:
        wanted = np.flatnonzero(np.isin(classes, classes[wanted]))
    sharing = find_nodes(graphs, wanted, is_root=True)
    rows = np.searchsorted(column(graphs.neurons, "first_node"), sharing, side="right") - 1
    return np.union1d(rows, [row])


def same_tokens(store: Root) -> NDArray[np.int64] | None:
    """For each token of the vocabulary the first that differs from it in case and outer spaces only; None without one."""
    return normal_classes(store, store.vocabulary.num_rows) if store.vocabulary is not None else None
