"""The views of a graph that its methods open: drawings, similar neurons, and a text as tokens for a prediction."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from rich.console import Console

from actstore.display.graphs.branches import make_drawing
from actstore.display.graphs.draw import draw_dot, write_picture
from actstore.display.graphs.html import draw_html
from actstore.display.graphs.svg import draw_svg
from actstore.display.graphs.terminal import draw_tree
from actstore.engine.graphs.methods import METHODS
from actstore.engine.graphs.predict import encode_as
from actstore.engine.graphs.similar import MEASURES, compare, same_tokens
from actstore.store.errors import InvalidInputError
from actstore.store.graphs.reader import check_tokens
from actstore.store.neurons import neuron_columns

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.tree import Tree

    from actstore.display.graphs.branches import Drawing
    from actstore.store.graphs.graph import GraphSet, NeuronGraph


@dataclass(frozen=True, repr=False)
class DrawnGraph:
    """The drawing of a neuron's graph: as text, in a notebook, or written to a file."""

    drawing: Drawing

    def __str__(self) -> str:
        out = io.StringIO()
        # In a notebook rich would show the tree as an output of its own instead of writing it here.
        Console(file=out, width=1000, no_color=True, highlight=False, force_jupyter=False).print(
            draw_tree(self.drawing)
        )
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines())

    __repr__ = __str__

    def __rich__(self) -> Tree:
        return draw_tree(self.drawing)

    def _repr_svg_(self) -> str:
        return self.svg()

    def svg(self) -> str:
        """The picture as SVG."""
        return draw_svg(self.drawing)

    def html(self) -> str:
        """The tree as an HTML page whose branches fold."""
        return draw_html(self.drawing)

    def dot(self) -> str:
        """The graph in the language of Graphviz."""
        return draw_dot(self.drawing)

    def save(self, path: str | Path) -> None:
        """Write .svg, .html, .dot or, where Graphviz is installed, .png; `InvalidInputError` for another name."""
        write_picture(Path(path), self.drawing)


def draw(graph: NeuronGraph, *, paths: int = 40, with_ignore: bool | None = None) -> DrawnGraph:
    """The drawing of a graph: its `paths` paths of largest weight, or all for 0.

    with_ignore: show positions at which any token may stand; None takes the default of the graphs' method.
    """
    if paths < 0:
        raise InvalidInputError(f"`paths` must be 0 or more, where 0 draws all paths; found {paths}.")
    graphs = _checked_set(graph)
    if with_ignore is None:
        # Graphs of a method that this version does not know are drawn with all that they have.
        method = METHODS.get(graphs.record.method)
        with_ignore = method is None or method.draws_ignored
    drawing = make_drawing(graph, graph.store.token_bytes, paths=paths, with_ignore=with_ignore)
    return DrawnGraph(drawing.captioned(_caption(graphs, graph, drawing)))


def _caption(graphs: GraphSet, graph: NeuronGraph, drawing: Drawing) -> str:
    """One line of text about the neuron and its graph."""
    settings = graphs.record.settings
    share = f"fires from {settings['share']:g} of its maximum {graph.maximum:.3g}" if "share" in settings else ""
    parts = [share, f"fired at {graph.n_events:,} tokens", f"{drawing.n_nodes:,} nodes, {drawing.n_paths:,} paths",
             f"capture {graphs.record.capture}, method {graphs.record.method}"]  # fmt: skip
    return " · ".join(part for part in parts if part)


def similar(graph: NeuronGraph, k: int = 10, *, normalise: bool = True) -> pa.Table:
    """The k neurons that are most similar to a neuron; `engine.graphs.similar` defines the measures."""
    if k < 1:
        raise InvalidInputError(f"`k` must be 1 or more, found {k}.")
    graphs = _checked_set(graph)
    rows, pairs = compare(graphs, graph.layer, graph.neuron, same_tokens(graph.store) if normalise else None)
    layers, indices = (graphs.neurons[name].to_numpy()[rows[pairs.second[:k]]] for name in ("layer", "neuron"))
    return pa.table(neuron_columns(layers, indices) | {name: getattr(pairs, name)[:k] for name in MEASURES})


def encode(graph: NeuronGraph, text: str) -> NDArray[np.int32]:
    """The tokens of a text, tokenised as in the capture of the graph."""
    return encode_as(graph.store.capture(_checked_set(graph).record.capture), text)


def _checked_set(graph: NeuronGraph) -> GraphSet:
    """The set of a graph; `InvalidInputError` where it has none, or its tokenizer is not the store's."""
    if graph.graphs is None:
        raise InvalidInputError(
            f"The graph of {graph.name} does not come from a store. Open it with store.graph({graph.name!r})."
        )
    check_tokens(graph.store, graph.graphs)
    return graph.graphs
