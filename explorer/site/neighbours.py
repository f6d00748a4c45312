"""What a site says of each neuron beside all others: those that fire with it, and those with similar graphs.

All pairs are compared once: neuron by neuron, as a server does it, everything would be read as often as there are neurons.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from actstore.explorer.pages.neuron import graph_sets, similar_document
from actstore.explorer.pages.numbers import short
from actstore.explorer.pages.sets import all_similarities, graph_set
from actstore.store.neurons import NeuronIndex, neuron_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from actstore.engine.workers.executor import Executor
    from actstore.store.reader import Store

K: Final = 10
"""Neurons of a list, as on a server."""
TOKENS_OF_PAIRS: Final = 2_000_000_000_000
"""Tokens of all pairs together at which activations are compared at most: some two minutes on one core."""
TOKENS_OF_PAIRS_PER_S: Final = 2.0e10
"""Measured on one core, for the estimate."""
SAMPLES: Final = 16
"""Neurons whose graphs are compared to estimate all."""


@dataclass(frozen=True)
class Comparison:
    """One kind of list, of every neuron."""

    page: str
    place: tuple[str, ...]
    """What stands between page and neuron in the address: capture and site, or the set of graphs."""
    seconds: float
    """How long comparing takes in one process; an estimate."""
    documents: Callable[[Executor], Iterator[tuple[str, dict[str, Any]]]]
    """(name of a neuron, document of its page) of every neuron that has a list."""


def compare_activations(store: Store, capture: str, site: str) -> Comparison | str:
    """Neurons that fire together, or why a site has none."""
    opened = store.capture(capture)
    index = NeuronIndex(opened.record.layers(site))
    if not opened.record.encoding.keeps_values:
        return "Neurons that fire together are found among stored activations, and precision none keeps none."
    n_tokens = opened.tokens().num_rows
    if (work := len(index) ** 2 * n_tokens) > TOKENS_OF_PAIRS:
        return (
            f"To compare {len(index):,} neurons with each other would take hours; these files hold no lists of neurons that "
            "fire together. `actstore serve STORE` makes them one by one, `actstore coactivation STORE` all."
        )

    def documents(executor: Executor) -> Iterator[tuple[str, dict[str, Any]]]:
        from actstore.engine.coactivation.nearest import find_nearest
        from actstore.engine.coactivation.settings import CoactivationSettings
        from actstore.engine.coactivation.warnings import coactivation_warnings
        from actstore.engine.devices.device import find_device

        settings = CoactivationSettings("correlation", K, 0.0, None, False, site, "counted")
        warnings = list(coactivation_warnings(opened, settings))
        nearest = find_nearest(opened, settings, executor=executor, device=find_device("cpu"))
        found = nearest.neighbours
        layers, indices = nearest.index.locate(np.arange(len(nearest.index)))
        names = [neuron_name(int(layer), int(i)) for layer, i in zip(layers, indices, strict=True)]
        for row, name in enumerate(names):
            neurons = [
                {
                    "neuron": names[number],
                    "correlation": float(found.correlation[row, i]),
                    "jaccard": float(found.jaccard[row, i]),
                    "both_fire": int(found.both_fire[row, i]),
                }
                for i, number in enumerate(found.numbers[row].tolist())
                if number >= 0
            ]
            yield name, {"neurons": short(neurons), "warnings": warnings}

    return Comparison("coactive", (capture, site), work / TOKENS_OF_PAIRS_PER_S, documents)


def compare_graphs(store: Store, graphs: str | None) -> Comparison | str:
    """Neurons with similar graphs, or why a site has none."""
    if graphs is None:
        return "The capture has no neuron graphs."
    opened, similarity = graph_set(store, graphs), all_similarities(store, graphs)
    layers, indices = (opened.neurons[name].to_numpy() for name in ("layer", "neuron"))
    if similarity is None:
        return (
            f"To compare the graphs of {len(layers):,} neurons with each other would take hours; these files hold no lists of "
            "similar graphs. `actstore serve STORE` makes them one by one."
        )
    names = [neuron_name(int(layer), int(i)) for layer, i in zip(layers, indices, strict=True)]

    def document(row: int) -> dict[str, Any]:
        return similar_document(opened, similarity, row, K)

    def documents(executor: Executor) -> Iterator[tuple[str, dict[str, Any]]]:
        yield from ((name, document(row)) for row, name in enumerate(names))

    document(0)  # what all neurons share is made here
    began, sample = time.perf_counter(), range(0, len(names), max(1, len(names) // SAMPLES))
    for row in sample:
        document(row)
    seconds = (time.perf_counter() - began) / len(sample) * len(names)
    return Comparison("similar", (graphs,), seconds, documents)


def shown_graphs(store: Store, capture: str, site: str) -> str | None:
    """The set of graphs of a capture that a site shows: `graphs`, or else the first; None where none can be read."""
    from actstore.store.errors import ActstoreError
    from actstore.store.graphs.record import read_record

    for name in graph_sets(store):
        try:
            record = read_record(store.folder, name)
        except ActstoreError:
            continue
        if record is not None and (record.capture, record.site) == (capture, site):
            return name
    return None
