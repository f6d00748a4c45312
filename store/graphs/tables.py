"""Neuron graphs as tables for SQL: one row per node, and one row per path.

The table of paths keeps the name `graph_lines`, from when paths were called lines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actstore.store.graphs.forest import Forest
from actstore.store.graphs.nodes import BOUNDARY, COLUMNS, IGNORE, column
from actstore.store.graphs.record import graph_names
from actstore.store.neurons import neuron_names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from actstore.store.capture.captures import Captures
    from actstore.store.graphs.reader import Graphs


def graph_tables(store: Captures, table: str) -> Iterator[pa.Table]:
    """`graph_nodes` or `graph_lines` of all sets of graphs, with the set's name in column `graphs`; nothing where none is."""
    from actstore.store.graphs.reader import open_graphs  # only here: it loads the compiler

    make = {"graph_nodes": node_table, "graph_lines": line_table}[table]
    tables = []
    for name in graph_names(store.folder):
        rows = make(store, open_graphs(store, name))
        names = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows.num_rows, np.int32)), pa.array([name]))
        tables.append(rows.add_column(0, "graphs", names.cast(pa.string())))
    if tables:
        yield pa.concat_tables(tables)


def node_table(store: Captures, graphs: Graphs) -> pa.Table:
    """One row per node of every neuron: whose, where in its graph, the token and its text, and what the evidence says."""
    forest = Forest.of(graphs)
    columns = {**_whose(graphs, forest.neuron), "node": np.arange(len(forest.neuron)) - forest.offsets[forest.neuron]}
    columns |= {name: forest.nodes[name] for name in COLUMNS} | {"ends": forest.ends}
    columns["text"] = _texts(store, forest.nodes["token"])
    return pa.table(columns)


def line_table(store: Captures, graphs: Graphs) -> pa.Table:
    """One row per line of every neuron.

    `tokens` and `texts` begin with the activating one and go backwards; `context` is the text before it as one reads it, `…`
    for any token. `own_count` and `own_fires` leave out occurrences for which a longer line answers.
    """
    forest = Forest.of(graphs)
    lines = np.flatnonzero(forest.ends)
    depth = forest.nodes["depth"][lines].astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(depth + 1)])
    tokens = np.empty(offsets[-1], np.int32)
    at, place = lines.copy(), offsets[1:] - 1
    while len(at):
        tokens[place] = forest.nodes["token"][at]
        more = forest.parent[at] >= 0
        at, place = forest.parent[at[more]], place[more] - 1
    texts = _texts(store, tokens)
    forwards = np.repeat(offsets[1:] - 1 + offsets[:-1], depth + 1) - np.arange(len(tokens))
    is_context = forwards != np.repeat(offsets[:-1], depth + 1)
    context_offsets = np.concatenate([[0], np.cumsum(depth)])
    contexts = pa.ListArray.from_arrays(pa.array(context_offsets, pa.int32()), texts.take(forwards[is_context]))
    chosen = {name: forest.nodes[name][lines] for name in ("probability", "value", "count", "fires")}
    return pa.table(
        {
            **_whose(graphs, forest.neuron[lines]),
            "node": lines - forest.offsets[forest.neuron[lines]],
            "activating": texts.take(offsets[:-1]),
            "context": pc.binary_join(contexts, ""),
            "tokens": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), tokens),
            "texts": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), texts),
            **chosen,
            "own_count": forest.own_count[lines],
            "own_fires": forest.own_fires[lines],
        }
    )


def _whose(graphs: Graphs, neuron: NDArray[np.int64]) -> dict[str, Any]:
    layers, indices = column(graphs.neurons, "layer"), column(graphs.neurons, "neuron")
    named = neuron_names(layers.tolist(), indices.tolist())
    names = pa.array(named, pa.string())
    return {"name": names.take(pa.array(neuron)), "layer": layers[neuron], "neuron": indices[neuron]}


def _texts(store: Captures, tokens: NDArray[np.int32]) -> pa.Array:
    """The text of each token, `…` for any, empty for a text's beginning."""
    known, where = np.unique(tokens, return_inverse=True)
    special = {IGNORE: "…", BOUNDARY: ""}
    texts = pa.array([special[t] if t < 0 else store.token_text(t) for t in known.tolist()], pa.string())
    return texts.take(where)
