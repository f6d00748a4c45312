"""The page of one neuron: what `top --json` prints, and what else the store knows of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from actstore.display.terminal import merged_bins
from actstore.explorer.pages.numbers import short
from actstore.explorer.pages.places import token_places
from actstore.explorer.pages.sets import all_similarities, edits_of, explanations_of, graph_set, promoted_tokens
from actstore.store.errors import ActstoreError, InvalidInputError
from actstore.store.graphs.record import graph_names
from actstore.store.model.top_tokens import writes_to_residual
from actstore.store.neurons import neuron_name

if TYPE_CHECKING:
    from actstore.engine.graphs.similar import Similarity
    from actstore.store.capture.reader import Capture
    from actstore.store.graphs.reader import Graphs
    from actstore.store.neuron import Neuron
    from actstore.store.reader import Store

EXEMPLARS: Final = 20
CONTEXT: Final = 16
"""Tokens on either side, as of `actstore top`."""
OTHERS: Final = 5
"""Excerpts where a neuron is lowest, and as many at random."""
PATHS: Final = 20
"""Paths of a graph, those that matter most."""
_LABEL_COLUMNS: Final = ("positive_by_label", "gate_positive_by_label")


def neuron_page(store: Store, capture: str, site: str, name: str, /, *, exemplars: int = EXEMPLARS) -> dict[str, Any]:
    """A neuron: statistics, histogram, exemplars, shares by label, promoted and suppressed tokens, explanations, edits."""
    neuron, opened = store.neuron(name), store.peek(capture)
    statistics = neuron.statistics(capture, site)
    exemplars = min(max(1, exemplars), 200)
    return short(
        {
            "neuron": neuron.name,
            "module": store.model.layers[neuron.layer].module,
            "capture": capture,
            "site": site,
            "statistics": {key: value for key, value in statistics.items() if key not in _LABEL_COLUMNS},
            "exemplars": neuron.exemplars(exemplars, capture, site, CONTEXT).to_pylist(),
            "histogram": [
                {"count": count, "low": low, "high": high}
                for count, low, high in merged_bins(*neuron.histogram(capture, site))
            ],
            "labels": _shares_by_label(opened, statistics),
            "writes": _writes(store, opened, neuron, site),
            "edits": edits_of(store, neuron.layer, neuron.index),
            "explanations": explanations_of(store, neuron.name),
            "before": _neighbour(opened, neuron, site, -1),
            "after": _neighbour(opened, neuron, site, 1),
        }
    )


def others_page(store: Store, capture: str, site: str, name: str, /) -> dict[str, Any]:
    """Excerpts where a neuron is lowest, one per window, and at random tokens, the same ones every time."""
    neuron, opened = store.neuron(name), store.capture(capture)
    if not opened.record.encoding.keeps_values:
        raise InvalidInputError(
            f"Capture {capture!r} has precision none: it keeps statistics and exemplars, and no activations among which the "
            "lowest, or any at random, could be found."
        )
    values, places = neuron.activations(capture, site), token_places(store, opened)
    is_usable = np.isfinite(values) & places.is_counted
    usable = np.flatnonzero(is_usable)
    drawn = np.random.default_rng([neuron.layer, neuron.index]).permutation(len(usable))[:OTHERS]
    # Stored values of precision sparse are 0 where they were dropped: what was lowest is not known.
    chosen = {"random": usable[drawn]}
    if opened.record.encoding.keeps_every_value:
        chosen["lowest"] = places.lowest_of_windows(np.where(is_usable, values, np.inf), OTHERS)
    return short(
        {
            kind: neuron.excerpts(places.slots[chosen_places].tolist(), capture, site, CONTEXT).to_pylist()
            for kind, chosen_places in chosen.items()
        }
    )


def graph_page(store: Store, graphs: str, name: str, /, *, paths: int = PATHS, picture: int = 0) -> dict[str, Any]:
    """A neuron's graph as `graphs show --json` prints it; with `picture`, as SVG too."""
    from actstore.display.graphs.describe import describe_graph
    from actstore.display.graphs.views import draw

    neuron = store.neuron(name)
    found = graph_set(store, graphs)
    graph = found.graph(neuron.layer, neuron.index)
    document = short(describe_graph(found, graph, min(max(1, paths), 200)))
    return document | ({"svg": draw(graph, paths=min(max(1, paths), 200)).svg()} if picture else {})


def similar_page(store: Store, graphs: str, name: str, /, *, k: int = 10) -> dict[str, Any]:
    """The neurons whose graphs are most like a neuron's, as `graphs similar --json` ranks them."""
    from actstore.api.graph_queries import GraphQueries
    from actstore.engine.graphs.similar import find_row

    k = min(max(1, k), 100)
    neuron, similarity = store.neuron(name), all_similarities(store, graphs)
    if similarity is not None:
        found = graph_set(store, graphs)
        return similar_document(found, similarity, find_row(found, neuron.layer, neuron.index), k)
    answer = GraphQueries(store).similar(name, k=k, name=graphs)
    columns = ("other_name", "overlap", "subset", "prediction")
    rows = answer.table.select(list(columns)).to_pylist()
    return {"neurons": short([{"neuron": row.pop("other_name")} | row for row in rows])}


def similar_document(graphs: Graphs, similarity: Similarity, row: int, k: int) -> dict[str, Any]:
    """The same of the neuron in a row of the table of neurons, where all have been prepared for comparing."""
    pairs = similarity.of(row)
    layers, indices = (graphs.neurons[name].to_numpy() for name in ("layer", "neuron"))
    columns = (pairs.second[:k], pairs.overlap[:k], pairs.subset[:k], pairs.prediction[:k])
    neurons = [
        {"neuron": neuron_name(int(layers[other]), int(indices[other])), "overlap": o, "subset": s, "prediction": p}
        for other, o, s, p in zip(*(column.tolist() for column in columns), strict=True)
    ]
    return {"neurons": short(neurons)}


def coactive_page(store: Store, capture: str, site: str, name: str, /, *, k: int = 10) -> dict[str, Any]:
    """The neurons that fire with a neuron, as `coactivation --json` ranks them; every neuron of the capture is read."""
    from actstore.api.coactivation import answer_coactivation
    from actstore.engine.coactivation.settings import CoactivationSettings
    from actstore.engine.devices.device import find_device
    from actstore.engine.workers.scan import HERE

    settings = CoactivationSettings("correlation", min(max(1, k), 100), 0.0, None, False, site, "counted")
    answer = answer_coactivation(store.capture(capture), name, settings, None, HERE, find_device("cpu"))
    rows = answer.table.select(["name", "correlation", "jaccard", "both_fire"]).to_pylist()
    return {"neurons": short([{"neuron": row.pop("name")} | row for row in rows]), "warnings": list(answer.warnings)}


def graph_sets(store: Store) -> list[str]:
    """The names of the store's sets of graphs; `graphs`, which commands take unless told, comes first."""
    return sorted(graph_names(store.folder), key=lambda name: (name != "graphs", name))


def _shares_by_label(capture: Capture, statistics: dict[str, Any]) -> list[dict[str, Any]]:
    """Label columns, and of each value the share of its tokens at which the neuron is above zero."""
    # A map is read as pairs; a value may contain the sign that joins it to its column.
    shares = dict(statistics.get("positive_by_label") or ())
    plan = capture.record.plan
    return [
        {
            "label": column,
            "values": [
                {"value": value, "share": shares.get(f"{column}={value}")}
                for name, value in plan.labels
                if name == column
            ],
        }
        for column in plan.label_columns
    ]


def _writes(store: Store, capture: Capture, neuron: Neuron, site: str) -> dict[str, Any]:
    """The tokens that a neuron's write vector promotes and suppresses, or in `reason` why they are not known."""
    if site != "mlp.post" or capture.record.of_tower or not writes_to_residual(store.model, neuron.layer):
        return {"reason": "Only neurons at mlp.post that write to the residual stream of text promote tokens."}
    try:
        found = promoted_tokens(store, neuron.layer, neuron.index)
    except ActstoreError as error:
        return {"reason": str(error)}
    if found is None:
        return {
            "reason": "The store does not keep the tokens that neurons promote: it has no weights of the unembedding, or they "
            "were left out of the capture. `actstore contributions STORE --fill-top-tokens` adds them.",
        }
    return found


def _neighbour(capture: Capture, neuron: Neuron, site: str, step: int) -> str | None:
    """The name of the neuron before or after this one; over the layers that were captured."""
    widths = capture.record.layers(site)
    layers, index = sorted(widths), neuron.index + step
    at = layers.index(neuron.layer)
    if 0 <= index < widths[neuron.layer]:
        return neuron_name(neuron.layer, index)
    if not 0 <= at + step < len(layers):
        return None
    layer = layers[at + step]
    return neuron_name(layer, 0 if step > 0 else widths[layer] - 1)
