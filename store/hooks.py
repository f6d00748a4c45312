"""What users ask of the store's objects and layers above it answer, such as `graph.draw()`.

The store may not import the engine, which computes, nor the display, which draws; the package sets these hooks when it is
imported. Subjects are `Any` here, as their modules import this one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray


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


class Shown(Protocol):
    """A neuron as people look at it: `str()` is plain text, rich prints it in colours, a notebook shows a table."""

    def html(self) -> str:
        """The same as a fragment of a page."""


notebook_html: Callable[[object], str]
"""What a notebook shows of a store, a capture or a neuron."""


class ShowNeuron(Protocol):
    """Who shows a neuron."""

    def __call__(self, neuron: Any, k: int, capture: str | None, site: str, context: int) -> Shown:
        """The neuron as `Neuron.show` asks for it."""


show_neuron: ShowNeuron


class RankContributions(Protocol):
    """Who answers `Store.contributions`."""

    def __call__(self, store: Any, target: str | int | Sequence[str | int] | None, k: int, **asked: Any) -> pa.Table:
        """The neurons that contribute most."""


rank_contributions: RankContributions


class GraphViews(Protocol):
    """Who answers what is asked of a `NeuronGraph`, whose methods say what is asked."""

    def draw(self, graph: Any, *, paths: int, with_ignore: bool | None) -> Drawn:
        """The graph drawn."""

    def similar(self, graph: Any, k: int, *, normalise: bool) -> pa.Table:
        """Neurons with like graphs."""

    def encode(self, graph: Any, text: str) -> NDArray[np.int32]:
        """The tokens of a text."""


open_graph_views: Callable[[], GraphViews]
"""Gives who answers."""
