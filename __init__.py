"""actstore: run the model once; ask forever.

`actstore.open` gives a store written by `actstore.capture`, `actstore.attribute` or the command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actstore.store import views as _views
from actstore.store.reader import Store

if TYPE_CHECKING:
    from pathlib import Path

    from actstore.store.views import GraphViews

__all__ = ["Store", "attribute", "capture", "open"]


def open(location: str | Path) -> Store:
    """The store at a path or URL, for reading.

    >>> actstore.open("stdlib.actstore").neuron("L3.N17").exemplars(k=5)
    """
    return Store(location)


def _open_graph_views() -> GraphViews:
    from actstore.engine.graph import views as engine_views  # only here: it loads the compiler

    return engine_views


# The store may not import the engine, which draws and compares the graphs that it holds.
_views.open_graph_views = _open_graph_views


def __getattr__(name: str) -> Any:
    # Capturing needs torch and transformers; reading a store does not, and should not wait for them.
    if name == "capture":
        from actstore.engine.captures import capture

        return capture
    if name == "attribute":
        from actstore.engine.attribution.attribute import attribute

        return attribute
    raise AttributeError(f"module 'actstore' has no attribute {name!r}")
