"""A neuron's graph, and what a search found, as JSON documents: those of `graphs show --json` and `graphs search --json`.

The keys are an interface.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from actstore.display.graphs.branches import path_weights
from actstore.display.graphs.labels import token_label
from actstore.store.graphs.forest import Forest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actstore.engine.graphs.search import PathMatch, SearchResult
    from actstore.store.graphs.reader import Graphs, NeuronGraph
    from actstore.store.model.root import Root


def describe_graph(graphs: Graphs, graph: NeuronGraph, n_paths: int) -> dict[str, Any]:
    """The JSON document of a graph: its `n_paths` paths that matter most, or all for 0."""
    forest = Forest.of_one(graph)
    ends, weights = np.flatnonzero(forest.ends), path_weights(forest)
    order = ends[np.lexsort((ends, -weights[ends]))]
    nodes = forest.nodes
    described = [
        {
            **describe_tokens(graphs.store, forest.path(node)),
            "probability": float(nodes["probability"][node]),
            "value": float(nodes["value"][node]),
            "count": int(nodes["count"][node]),
            "fires": int(nodes["fires"][node]),
            "own_count": int(forest.own_count[node]),
            "own_fires": int(forest.own_fires[node]),
            "importance": float(nodes["importance"][node]),
        }
        for node in order[: n_paths or None].tolist()
    ]
    record = graphs.record
    return {
        "neuron": graph.name,
        "graphs": graphs.name,
        "method": record.method,
        "capture": record.capture,
        "site": record.site,
        "maximum": graph.maximum,
        "threshold": graph.threshold,
        "status": graph.status,
        "events": graph.n_events,
        "nodes": len(graph),
        "lines": described,  # JSON keys stay what they were when paths were called lines
        "hidden": len(ends) - len(described),
    }


def describe_search(store: Root, result: SearchResult) -> dict[str, Any]:
    """The JSON document of a search: neurons with their paths, best first."""

    def describe(item: PathMatch) -> dict[str, Any]:
        numbers = {"probability": item.probability, "value": item.value, "count": item.count, "fires": item.fires}
        own = {"own_count": item.own_count, "own_fires": item.own_fires}
        return describe_tokens(store, item.tokens) | numbers | own | {"score": item.score}

    return {
        "activating": list(result.activating),
        "context": list(result.context),
        "matching": result.n_neurons,
        "neurons": [
            {"neuron": n.neuron, "score": n.score, "n_lines": n.n_paths, "lines": [describe(item) for item in n.paths]}
            for n in result.neurons
        ],
    }


def describe_tokens(store: Root, tokens: Sequence[int]) -> dict[str, Any]:
    """A path's tokens, the activating one first, as ids and labels."""
    return {"tokens": list(tokens), "texts": token_labels(store, tokens)}


def token_labels(store: Root, tokens: Sequence[int]) -> list[str]:
    """How pictures and tables write tokens."""
    return [token_label(t, store.token_bytes(t) if t >= 0 else b"") for t in tokens]
