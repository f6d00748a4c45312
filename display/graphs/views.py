"""A neuron's graph as its user asks for it: drawn, beside the graphs of others, with the tokens of a text.

Reads the store. Knows nothing about the command line, nor about how graphs are drawn and compared.
"""

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
from actstore.engine.graphs.predict import encode_as
from actstore.engine.graphs.similar import compare, same_tokens
from actstore.store.errors import InvalidInputError
from actstore.store.graphs.reader import check_tokens

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.tree import Tree

    from actstore.display.graphs.branches import Drawing
    from actstore.store.graphs.graph import GraphSet, NeuronGraph


@dataclass(frozen=True, repr=False)
class DrawnGraph:
    """A neuron's graph, drawn."""

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
        """The tree as a page that folds."""
        return draw_html(self.drawing)

    def dot(self) -> str:
        """The graph in Graphviz's language."""
        return draw_dot(self.drawing)

    def save(self, path: str | Path) -> None:
        """Write .svg, .html, .dot or, where Graphviz is installed, .png; `InvalidInputError` for another name."""
        write_picture(Path(path), self.drawing)


def draw(graph: NeuronGraph, *, paths: int = 40, with_ignore: bool | None = None) -> DrawnGraph:
    """The graph drawn: its `paths` paths that matter most, 0 for all.

    Without `with_ignore` tokens that may be any are left out; None does what suits the graphs' method.
    """
    if paths < 0:
        raise InvalidInputError(f"`paths` must be 0 or more, where 0 draws all paths; found {paths}.")
    graphs = _checked(graph)
    if with_ignore is None:
        with_ignore = graphs.record.method != "published"
    drawing = make_drawing(graph, graph.store.token_bytes, paths=paths, with_ignore=with_ignore)
    return DrawnGraph(drawing.captioned(_caption(graphs, graph, drawing)))


def _caption(graphs: GraphSet, graph: NeuronGraph, drawing: Drawing) -> str:
    """What the neuron and its graph are, in a line."""
    settings = graphs.record.settings
    share = f"fires from {settings['share']:g} of its maximum {graph.maximum:.3g}" if "share" in settings else ""
    parts = [share, f"fired at {graph.n_events:,} tokens", f"{drawing.n_nodes:,} nodes, {drawing.n_paths:,} paths",
             f"capture {graphs.record.capture}, method {graphs.record.method}"]  # fmt: skip
    return " · ".join(part for part in parts if part)


def similar(graph: NeuronGraph, k: int = 10, *, normalise: bool = True) -> pa.Table:
    """The k neurons that share most with a neuron, likest first; see `engine.graph.similar` for the measures."""
    if k < 1:
        raise InvalidInputError(f"At least one neuron must be asked for, found {k}.")
    graphs = _checked(graph)
    rows, pairs = compare(graphs, graph.layer, graph.neuron, same_tokens(graph.store) if normalise else None)
    layers, indices = (graphs.neurons[name].to_numpy()[rows[pairs.second[:k]]] for name in ("layer", "neuron"))
    return pa.table(
        {
            "neuron": pa.array(
                [f"L{layer}.N{index}" for layer, index in zip(layers, indices, strict=True)], pa.string()
            ),
            "layer": layers,
            "index": indices,
            "overlap": pairs.overlap[:k],
            "subset": pairs.subset[:k],
            "prediction": pairs.prediction[:k],
        }
    )


def encode(graph: NeuronGraph, text: str) -> NDArray[np.int32]:
    """The tokens of a text, as the capture that the graph was made of has them."""
    return encode_as(graph.store.capture(_checked(graph).record.capture), text)


def _checked(graph: NeuronGraph) -> GraphSet:
    """The set a graph is of; refuses one of other tokens than the store's."""
    if graph.graphs is None:
        raise InvalidInputError(f"The graph of {graph.name} is of no store's. Ask for it: store.graph({graph.name!r}).")
    check_tokens(graph.store, graph.graphs)
    return graph.graphs
