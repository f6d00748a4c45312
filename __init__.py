"""actstore: run the model once; ask forever.

`actstore.open` gives a store written by `actstore.capture`, `actstore.attribute` or the command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actstore.store.reader import Store

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Store", "attribute", "capture", "open"]


def open(location: str | Path) -> Store:
    """The store at a path or URL, for reading.

    >>> actstore.open("stdlib.actstore").neuron("L3.N17").exemplars(k=5)
    """
    return Store(location)


def __getattr__(name: str) -> Any:
    # Capturing needs torch and transformers; reading a store does not, and should not wait for them.
    if name == "capture":
        from actstore.engine.capture_run import capture

        return capture
    if name == "attribute":
        from actstore.engine.attribution.attribute import attribute

        return attribute
    raise AttributeError(f"module 'actstore' has no attribute {name!r}")
