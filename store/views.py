"""What users ask of the store's objects and layers above it answer, such as `graph.draw()`.

The store draws, compares and formats nothing; when the package is imported, it says who does. Knows nothing about them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from actstore.store.graphs.graph import NeuronGraph
    from actstore.store.neuron import Neuron
    from actstore.store.reader import Capture, Store


class Drawn(Protocol):
    """A drawing: `str()` is a tree of plain text, rich prints it in colours, a notebook shows the picture."""

    def svg(self) -> str:
        """The picture as SVG."""

    def html(self) -> str:
        """The tree as a page that folds."""

    def dot(self) -> str:
        """The graph in Graphviz's language."""

    def save(self, path: str | Path) -> None:
        """Write .svg, .html, .dot or, where Graphviz is installed, .png; `InvalidInputError` for another name."""


class GraphViews(Protocol):
    """Who answers what is asked of a `NeuronGraph`, whose methods say what is asked."""

    def draw(self, graph: NeuronGraph, *, lines: int, with_ignore: bool | None) -> Drawn:
        """The graph drawn."""

    def similar(self, graph: NeuronGraph, k: int, *, normalise: bool) -> pa.Table:
        """Neurons with like graphs."""

    def encode(self, graph: NeuronGraph, text: str) -> NDArray[np.int32]:
        """The tokens of a text."""


open_graph_views: Callable[[], GraphViews]
"""Gives who answers; the package sets it."""


class Shown(Protocol):
    """A neuron as people look at it: `str()` is plain text, rich prints it in colours, a notebook shows a table."""

    def html(self) -> str:
        """The same as a fragment of a page."""


class NotebookViews(Protocol):
    """Who says what notebooks show of the store's objects."""

    def store_html(self, store: Store) -> str:
        """A store: its model and captures."""

    def capture_html(self, capture: Capture) -> str:
        """A capture: what is in it."""

    def neuron_html(self, neuron: Neuron) -> str:
        """A neuron: statistics, histogram, a few exemplars."""

    def show_neuron(self, neuron: Neuron, k: int, capture: str | None, site: str, context: int) -> Shown:
        """The same as asked for."""


open_notebook_views: Callable[[], NotebookViews]
"""Gives who says it; the package sets it."""
