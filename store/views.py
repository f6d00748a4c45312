"""What users ask of the store's objects and layers above it answer, such as `graph.draw()`.

The store draws nothing and compares nothing; when the package is imported, it says who does. Knows nothing about them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from actstore.store.neuron_graph import NeuronGraph


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
