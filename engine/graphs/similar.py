"""Which neurons have similar graphs: by their tokens in common, as published, and by their predictions.

All pairs of neurons at once are products of sparse matrices [neuron, column]. A column is a token, or a path in the union of
all graphs.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np

from actstore.engine.graphs.sparse import Products
from actstore.engine.graphs.token_sets import normal_classes
from actstore.store.errors import NotFoundError
from actstore.store.graphs.forest import Forest, find_nodes
from actstore.store.graphs.nodes import BOUNDARY, IGNORE, column
from actstore.store.neurons import neuron_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from actstore.store.graphs.graph import GraphSet
    from actstore.store.model.root import Root

SIMILAR: Final = 0.9
"""Minimum overlap of similar neurons, and minimum `subset` of a neuron in another (Foote et al. 2023)."""
MEASURES: Final = ("overlap", "subset", "prediction")
"""The measures of a pair: the columns of `Pairs` after its two neurons."""

_CELLS: Final = 1 << 22
"""Number of pairs whose measures are in memory at once: about 200 MB."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of neurons and their similarity; each column has shape [pair]."""

    first: NDArray[np.int64]
    """Index of a neuron among those that were compared."""
    second: NDArray[np.int64]
    overlap: NDArray[np.float64]
    """Tokens in common as a share of the larger neuron's: of activating or of context tokens, the smaller of both shares."""
    subset: NDArray[np.float64]
    """The same as a share of the smaller neuron's tokens."""
    prediction: NDArray[np.float64]
    """Cosine of the two neurons' predicted probabilities of firing over the corpus."""

    def take(self, rows: NDArray[np.int64]) -> Pairs:
        """The pairs in some rows, in their order."""
        return Pairs(self.first[rows], self.second[rows], self.overlap[rows], self.subset[rows], self.prediction[rows])


class Similarity:
    """The similarity of all neurons of a forest.

    *Tokens*: activating tokens are those of paths that predict firing, context tokens the others on such paths. `classes`
    [token] gives tokens that differ in case and outer spaces only the same number.

    *Prediction*: the cosine, over all positions of the corpus, of the probabilities p₁ and p₂ that two graphs predict. The
    positions need not be visited, because the prediction of a graph changes only at its nodes. Let D be the change of the
    probability at a node from that at its parent, n the number of occurrences of the node's path, and S the sum of n·D over
    the node and its descendants. At a position, p is the sum of D along the path that matches, so that

        Σ_positions p₁·p₂ = Σ_nodes D₁·S₂ + S₁·D₂ − n·D₁·D₂

    over the nodes that both graphs have: a node of one graph and a node of the other on one path are counted at the shallower
    of the two, and the last term removes the second count of a node with itself. It is exact but for ignored tokens, which
    count as a token of their own. A neuron without paths has similarity 0.
    """

    def __init__(self, forest: Forest, classes: NDArray[np.int64] | None = None) -> None:
        self.forest, self._classes = forest, classes
        self.n_neurons = len(forest.offsets) - 1

    @cached_property
    def _tokens(self) -> tuple[Products, Products]:
        """The activating and the context tokens of each neuron, as sparse matrices of ones [neuron, token]."""
        forest = self.forest
        used = forest.above(forest.fires)
        is_root = forest.nodes["depth"] == 0
        return self._token_sets(used & is_root), self._token_sets(used & ~is_root & (forest.nodes["token"] != IGNORE))

    def _token_sets(self, selected: NDArray[np.bool_]) -> Products:
        """The different tokens of the selected nodes of each neuron."""
        tokens = self.forest.nodes["token"][selected].astype(np.int64)
        if self._classes is not None:
            known = (tokens >= 0) & (tokens < len(self._classes))
            tokens = np.where(known, self._classes[np.where(known, tokens, 0)], tokens)
        tokens -= BOUNDARY  # the smallest token becomes column 0
        width = int(tokens.max(initial=0)) + 1
        keys = np.unique(self.forest.neuron[selected] * width + tokens)
        ones = np.ones((1, len(keys)))
        return Products(np.searchsorted(keys // width, np.arange(self.n_neurons + 1)), keys % width, ones, ones)

    @cached_property
    def _predictions(self) -> tuple[Products, NDArray[np.float64]]:
        """The sums over positions of p₁·p₂, and the norm of p for each neuron; the class says how."""
        forest = self.forest
        # The parent of a root is -1, which reads the 0 at the end.
        above = np.append(forest.probability, np.float32(0))[forest.parent]
        change = (forest.probability - above).astype(np.float64)
        count = forest.nodes["count"].astype(np.float64)
        # Nodes are stored depth first, so that a sum over a subtree is a difference of running totals.
        totals = np.concatenate([[0.0], np.cumsum(count * change)])
        below = totals[forest.stop] - totals[:-1]
        # n·D₁·D₂ as a product of two factors; n is the same in both graphs, which are of one corpus.
        root = np.sqrt(count) * change
        # The norm: the same sum of a graph with itself.
        sums = np.concatenate([[0.0], np.cumsum(2 * change * below - root * root)])
        squares = sums[forest.offsets[1:]] - sums[forest.offsets[:-1]]
        products = Products(
            forest.offsets, common_nodes(forest), np.stack([change, below, -root]), np.stack([below, change, root])
        )
        return products, np.sqrt(np.maximum(squares, 0.0))

    def rows(self, first: int, stop: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """The measures of neurons first…stop with all neurons, in the order of `MEASURES`; each [stop - first, neuron]."""
        shape = (stop - first, self.n_neurons)
        overlap, subset = np.ones(shape), np.ones(shape)
        for tokens in self._tokens:
            shared = tokens.rows(first, stop)
            sizes = tokens.sizes.astype(np.float64)
            larger = np.maximum(sizes[first:stop, None], sizes)
            smaller = np.minimum(sizes[first:stop, None], sizes)
            # Two empty sets are equal, and an empty set is a subset of any: the shares stay 1 where a size is 0.
            np.minimum(overlap, np.divide(shared, larger, out=np.ones(shape), where=larger > 0), out=overlap)
            np.minimum(subset, np.divide(shared, smaller, out=np.ones(shape), where=smaller > 0), out=subset)
        without_paths = self._tokens[0].sizes == 0
        for share in (overlap, subset):
            share[without_paths[first:stop]] = 0.0
            share[:, without_paths] = 0.0
        products, norms = self._predictions
        scale = norms[first:stop, None] * norms
        prediction = np.divide(products.rows(first, stop), scale, out=np.zeros(shape), where=scale > 0)
        # The order of the sums, and with it their rounding, depends on the number of threads: six digits do not.
        return overlap, subset, np.clip(prediction, 0.0, 1.0).round(6)

    def of(self, neuron: int) -> Pairs:
        """One neuron with every other of a similarity above 0: by descending prediction, then overlap, then subset."""
        overlap, subset, prediction = (values[0] for values in self.rows(neuron, neuron + 1))
        others = np.flatnonzero((overlap > 0) | (subset > 0) | (prediction > 0))
        others = others[others != neuron]
        pairs = Pairs(np.full(len(others), neuron), others, overlap[others], subset[others], prediction[others])
        return pairs.take(np.lexsort((others, -pairs.subset, -pairs.overlap, -pairs.prediction)))

    def all(self, least: float = SIMILAR) -> Pairs:
        """Every pair of neurons, each once, with a measure of at least `least`; the most similar first, as in `of`."""
        height = max(1, _CELLS // max(self.n_neurons, 1))
        blocks = list(self._blocks(height, least))
        columns = {item.name: np.concatenate([getattr(block, item.name) for block in blocks]) for item in fields(Pairs)}
        pairs = Pairs(**columns)
        return pairs.take(np.lexsort((pairs.second, pairs.first, -pairs.subset, -pairs.overlap, -pairs.prediction)))

    def _blocks(self, height: int, least: float) -> Iterator[Pairs]:
        """The pairs of `height` neurons at a time with those after them; first of all an empty block."""
        empty = np.empty(0, np.int64)
        yield Pairs(empty, empty, np.empty(0), np.empty(0), np.empty(0))
        for first in range(0, self.n_neurons, height):
            stop = min(first + height, self.n_neurons)
            overlap, subset, prediction = self.rows(first, stop)
            is_similar = np.maximum(np.maximum(overlap, subset), prediction) >= least
            one, other = np.nonzero(is_similar & (np.arange(first, stop)[:, None] < np.arange(self.n_neurons)))
            yield Pairs(one + first, other, overlap[one, other], subset[one, other], prediction[one, other])


def common_nodes(forest: Forest) -> NDArray[np.int64]:
    """[node] the number of its path of tokens, which is the same in all graphs that have the path.

    Depth by depth: a path is the number of its parent's path and its last token.
    """
    common = np.zeros(len(forest.parent), np.int64)
    token = forest.nodes["token"].astype(np.int64) - BOUNDARY
    width, n_known = int(token.max(initial=0)) + 1, 0
    for level in forest.levels:
        parent = np.where(forest.parent[level] >= 0, common[forest.parent[level]], 0)
        paths, path = np.unique(parent * width + token[level], return_inverse=True)
        common[level] = path + n_known
        n_known += len(paths)
    return common


def compare(
    graphs: GraphSet, layer: int, neuron: int, classes: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], Pairs]:
    """The pairs of a neuron with others, the most similar first, and the rows in the table of neurons that they index.

    Only neurons with an activating token in common are compared: all others have 0 in every measure. `NotFoundError` where
    there is no graph of the neuron.
    """
    row = find_row(graphs, layer, neuron)
    candidates = _candidates(graphs, row, classes)
    similarity = Similarity(Forest.of(graphs, candidates), classes)
    return candidates, similarity.of(int(np.searchsorted(candidates, row)))


def find_row(graphs: GraphSet, layer: int, neuron: int) -> int:
    """The row of a neuron in the table of neurons."""
    layers, indices = column(graphs.neurons, "layer"), column(graphs.neurons, "neuron")
    rows = np.flatnonzero((layers == layer) & (indices == neuron))
    if not len(rows):
        raise NotFoundError(
            f"There is no graph of {neuron_name(layer, neuron)}: {_describe_range(layers, indices, layer)}."
        )
    return int(rows[0])


def _describe_range(layers: NDArray[np.int32], indices: NDArray[np.int32], layer: int) -> str:
    of_layer = indices[layers == layer]
    if len(of_layer):
        return f"layer {layer} has graphs of neurons {of_layer.min()} to {of_layer.max()}"
    return f"there are graphs of layers {', '.join(map(str, np.unique(layers).tolist())) or 'none'}"


def _candidates(graphs: GraphSet, row: int, classes: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Rows of the neurons with an activating token in common with that of `row`, itself included; ascending."""
    forest = Forest.of(graphs, np.array([row]))
    tokens = np.unique(forest.nodes["token"][forest.nodes["depth"] == 0]).astype(np.int64)
    if not len(tokens):
        return np.array([row])
    if classes is not None:
        tokens = np.flatnonzero(np.isin(classes, classes[tokens]))
    nodes = find_nodes(graphs, tokens, is_root=True)
    rows = np.searchsorted(column(graphs.neurons, "first_node"), nodes, side="right") - 1
    return np.union1d(rows, [row])


def same_tokens(store: Root) -> NDArray[np.int64] | None:
    """[token] the smallest token that differs in case and outer spaces only; None where the store has no vocabulary."""
    return normal_classes(store, store.vocabulary.num_rows) if store.vocabulary is not None else None
