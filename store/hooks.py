"""Functions of higher layers behind methods of the store's objects, such as `graph.draw()`.

The store may not import the engine, which computes, or the display, which draws; the package sets these hooks when it is
imported. Stores, neurons and graphs are `Any` here, because their modules import this one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray


class Drawn(Protocol):
    """A drawing: `str()` is a tree of plain text, rich prints it in colours, a notebook shows the picture."""

    def svg(self) -> str:
        """The picture as SVG."""

    def html(self) -> str:
        """The tree as an HTML page with nodes that fold."""

    def dot(self) -> str:
        """The graph in the DOT language of Graphviz."""

    def save(self, path: str | Path) -> None:
        """Write .svg, .html, .dot or, where Graphviz is installed, .png; `InvalidInputError` for another name."""


class Shown(Protocol):
    """A neuron displayed: `str()` is plain text, rich prints it in colours, a notebook shows a table."""

    def html(self) -> str:
        """The same as an HTML fragment."""


notebook_html: Callable[[object], str]
"""Gives the HTML that a notebook shows for a store, a capture, a neuron or a table."""

table_text: Callable[[Any], str]
"""What `print` shows of a table."""


class ShowNeuron(Protocol):
    """The function behind `Neuron.show`."""

    def __call__(self, neuron: Any, k: int, capture: str | None, site: str, context: int) -> Shown:
        """The neuron displayed; parameters as of `Neuron.show`."""


show_neuron: ShowNeuron


class Explore(Protocol):
    """The function behind `Store.explore` and `Neuron.explore`."""

    def __call__(self, store: Any, neuron: Any, capture: str | None, site: str, height: int, *, card: bool) -> Any:
        """The explorer as a widget; parameters as of `Store.explore`."""


explore: Explore


class RankContributions(Protocol):
    """The function behind `Store.contributions`."""

    def __call__(
        self, store: Any, target: str | int | Sequence[str | int] | None, query: Mapping[str, object]
    ) -> pa.Table:
        """The neurons that contribute most; `query` holds the other parameters of `Store.contributions`."""


rank_contributions: RankContributions


class GraphViews(Protocol):
    """The functions behind the methods of `NeuronGraph`, with the same parameters."""

    def draw(self, graph: Any, *, paths: int, with_ignore: bool | None) -> Drawn:
        """The graph drawn."""

    def similar(self, graph: Any, k: int, *, normalise: bool) -> pa.Table:
        """Neurons with similar graphs."""

    def encode(self, graph: Any, text: str) -> NDArray[np.int32]:
        """The tokens of a text."""


open_graph_views: Callable[[], GraphViews]
"""Gives the functions behind the methods of `NeuronGraph`."""
