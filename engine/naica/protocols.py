"""The protocols of the evaluation and the operations on neurons, as one table each.

The command line reads these at every start; nothing here loads a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class EvaluationProtocol:
    """Which queries neurons are selected with, and on which prompts they are tested."""

    label: str
    """The title of its table."""
    help: str
    """One sentence for the command line and the documentation."""


PROTOCOLS: Final[dict[str, EvaluationProtocol]] = {
    "prompt": EvaluationProtocol(
        "neurons tested on a prompt of their query that was left out",
        "One prompt of every query is held out; neurons selected with the others are tested on it.",
    ),
    "label": EvaluationProtocol(
        "a label's neurons tested on the half of its queries that was left out",
        "Half of each label's queries are held out; the neurons of the label, from the other half, are tested on them.",
    ),
    "query": EvaluationProtocol(
        "neurons tested on the prompts they were found with (the paper's protocol)",
        "Every query's neurons are tested on the prompts they were selected with, as in the paper.",
    ),
}
"""Name → protocol, in the order of the results: those first in which neurons are tested on what they were not found with."""


@dataclass(frozen=True)
class Operation:
    """What is done to a set of neurons at the last position."""

    label: str
    """What tables call it."""
    help: str
    """One sentence for the documentation."""
    factor: float
    """What their activations are multiplied by."""


OPERATIONS: Final[dict[str, Operation]] = {
    "boost": Operation("boost", "Activations are doubled.", 2.0),
    "suppress": Operation("suppress", "Activations are set to 0.", 0.0),
}
"""Name → operation, in the order of the results."""


@dataclass(frozen=True)
class Removal:
    """When common neurons are removed from a query's neurons."""

    help: str
    """One sentence for the command line and the documentation."""


REMOVALS: Final[dict[str, Removal]] = {
    "after": Removal("Of the v neurons with the largest naica the common ones are left out, as published."),
    "before": Removal("Common neurons are left out first: a query has v neurons where its cluster has enough others."),
}
"""Name → when common neurons are removed; the values that `removal` takes."""
