"""The nodes of neuron graphs as arrays over many neurons at once: subtrees, lines, and what each line answers for.

A node is a token, `depth` tokens before the one at which the neuron fires; a line is the path to a node that ends. Nodes of
a neuron lie depth first, so that a subtree is a run of nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from actstore.store.graphs.nodes import COLUMNS, column, gather, pieces

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from actstore.store.graphs.graph import GraphSet, NeuronGraph


@dataclass(frozen=True)
class Forest:
    """The graphs of some neurons, one after another."""

    offsets: NDArray[np.int64]
    """[neuron + 1] the nodes of each neuron."""
    nodes: Mapping[str, NDArray[Any]]
    """[node] the columns of `COLUMNS`; `parent` counts from the neuron's first node, -1 at depth 0. A node whose probability
    is NaN ends no line."""
    threshold: NDArray[np.float32]
    """[neuron] the probability from which a line says that the neuron fires."""

    @classmethod
    def of(cls, graphs: GraphSet, rows: NDArray[np.int64] | None = None) -> Forest:
        """The graphs of all neurons, or of those in `rows` of the table of neurons, in that order."""
        first, n_nodes = column(graphs.neurons, "first_node"), column(graphs.neurons, "n_nodes").astype(np.int64)
        threshold = column(graphs.neurons, "threshold")
        if rows is None:
            return cls(
                np.append(first, len(graphs.nodes)), {name: column(graphs.nodes, name) for name in COLUMNS}, threshold
            )
        offsets = np.concatenate([[0], np.cumsum(n_nodes[rows])])
        wanted = np.repeat(first[rows] - offsets[:-1], n_nodes[rows]) + np.arange(offsets[-1])
        return cls(offsets, {name: gather(graphs.nodes, name, wanted) for name in COLUMNS}, threshold[rows])

    @classmethod
    def of_one(cls, graph: NeuronGraph) -> Forest:
        """The graph of one neuron."""
        nodes = {name: getattr(graph.nodes, name) for name in COLUMNS if name != "importance"}
        nodes["importance"] = graph.importance
        return cls(np.array([0, len(graph)]), nodes, np.array([graph.threshold], np.float32))

    @cached_property
    def ends(self) -> NDArray[np.bool_]:
        """[node] whether a line ends there."""
        ends: NDArray[np.bool_] = ~np.isnan(self.nodes["probability"])
        return ends

    @cached_property
    def neuron(self) -> NDArray[np.int64]:
        """[node] the neuron it belongs to, counted in this forest."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    @cached_property
    def parent(self) -> NDArray[np.int64]:
        """[node] its parent, counted in this forest; -1 at depth 0."""
        parent = self.nodes["parent"].astype(np.int64)
        return np.where(parent >= 0, parent + self.offsets[:-1][self.neuron], -1)

    @cached_property
    def levels(self) -> list[NDArray[np.int64]]:
        """The nodes of each depth from 0 on, ascending."""
        depth = self.nodes["depth"]
        return [np.flatnonzero(depth == d) for d in range(int(depth.max()) + 1)] if len(depth) else []

    @cached_property
    def root(self) -> NDArray[np.int64]:
        """[node] the node of depth 0 that it hangs on."""
        root = np.arange(len(self.parent))
        for level in self.levels[1:]:
            root[level] = root[self.parent[level]]
        return root

    @cached_property
    def stop(self) -> NDArray[np.int64]:
        """[node] the node after the last of its subtree."""
        depth = self.nodes["depth"]
        stop = np.full(len(depth), len(depth))
        for d, level in enumerate(self.levels):
            limits = np.append(np.flatnonzero(depth <= d), len(depth))
            stop[level] = limits[np.searchsorted(limits, level) + 1]
        return stop

    @cached_property
    def end_above(self) -> NDArray[np.int64]:
        """[node] the nearest node above it that ends; -1 where none does."""
        above = np.full(len(self.parent), -1)
        for level in self.levels[1:]:
            parent = self.parent[level]
            above[level] = np.where(self.ends[parent], parent, above[parent])
        return above

    @cached_property
    def probability(self) -> NDArray[np.float32]:
        """[node] of firing where the path to the node is all that matches: its own, else the nearest end's above, else 0."""
        known = np.append(self.nodes["probability"], np.float32(0))
        return np.where(self.ends, self.nodes["probability"], known[self.end_above])

    @cached_property
    def own_count(self) -> NDArray[np.int64]:
        """[node] occurrences for which it is the longest line: without those of the lines that continue it."""
        return self._own("count")

    @cached_property
    def own_fires(self) -> NDArray[np.int64]:
        """[node] how often the neuron fired at these."""
        return self._own("fires")

    def _own(self, name: str) -> NDArray[np.int64]:
        ends = self.ends
        own = np.where(ends, self.nodes[name], 0).astype(np.int64)
        inner = np.flatnonzero(ends & (self.end_above >= 0))
        taken = np.bincount(self.end_above[inner], self.nodes[name][inner], minlength=len(own))
        return np.maximum(own - taken.astype(np.int64), 0)

    @cached_property
    def fires(self) -> NDArray[np.bool_]:
        """[node] whether a line ends there that says that the neuron fires."""
        likely = np.nan_to_num(self.nodes["probability"]) >= self.threshold[self.neuron]
        fires: NDArray[np.bool_] = self.ends & likely & (self.nodes["probability"] > 0)
        return fires

    def below(self, marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """[node] whether it or a node above it is marked."""
        result = marked.copy()
        for level in self.levels[1:]:
            result[level] |= result[self.parent[level]]
        return result

    def above(self, marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """[node] whether it or a node below it is marked."""
        result = marked.copy()
        for level in self.levels[:0:-1]:
            result[self.parent[level[result[level]]]] = True
        return result

    def path(self, node: int) -> list[int]:
        """The tokens of the path to a node, the activating one first."""
        tokens = []
        while node >= 0:
            tokens.append(int(self.nodes["token"][node]))
            node = int(self.parent[node])
        return tokens[::-1]


def find_nodes(graphs: GraphSet, wanted: NDArray[np.int64], *, is_root: bool) -> NDArray[np.int64]:
    """The nodes of some tokens, ascending: at depth 0, or deeper."""
    known = np.zeros(int(wanted.max()) + 2, bool)
    known[wanted] = True
    found = []
    depths = (values for _, values in pieces(graphs.nodes, "depth"))
    for (first, tokens), depth in zip(pieces(graphs.nodes, "token"), depths, strict=True):
        if len(wanted) == 1:
            hits = np.flatnonzero(tokens == np.int32(wanted[0]))
        else:
            # Tokens outside the table, which -1 and -2 become as unsigned numbers, fall on its last cell, which is false.
            hits = np.flatnonzero(known[np.minimum(tokens.view(np.uint32), np.uint32(len(known) - 1))])
        found.append(hits[(depth[hits] == 0) == is_root] + first)
    return np.concatenate(found) if found else np.empty(0, np.int64)
