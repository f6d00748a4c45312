"""The methods that build graphs, by name; importing them does not load the compiler."""

from __future__ import annotations

from typing import Final

CORPUS: Final = "corpus"
PUBLISHED: Final = "published"
METHODS: Final = {
    CORPUS: "from the captured text, for every neuron",
    PUBLISHED: "as Foote et al. (2023), from probes of the model",
}
"""Name → what graphs are built from; a record keeps the name."""
