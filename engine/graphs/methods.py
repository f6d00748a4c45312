"""The methods that build graphs, as one table; importing it does not load the compiler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class GraphMethod:
    """A method that builds graphs."""

    help: str
    """What the graphs are built from."""
    set_name: str
    """Name of the set of graphs, by default."""
    draws_ignored: bool
    """Whether drawings show positions at which any token may stand, by default."""


CORPUS: Final = "corpus"
PUBLISHED: Final = "published"
METHODS: Final = {
    CORPUS: GraphMethod("from the captured text, for every neuron", "graphs", draws_ignored=True),
    PUBLISHED: GraphMethod("as Foote et al. (2023), from probes of the model", "published", draws_ignored=False),
}
"""Name → method; the record of a set of graphs keeps the name."""
