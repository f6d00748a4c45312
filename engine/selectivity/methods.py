"""The ways to select a label's neurons, as one table: LAPE and the baselines that its paper compares it with.

The command line reads this table at every start; nothing here loads a model or a compiler.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class SelectivityMethod:
    """One way to select neurons that are selective for labels."""

    label: str
    """What tables call it."""
    help: str
    """One sentence for the command line and the documentation."""


METHODS: Final[dict[str, SelectivityMethod]] = {
    "lape": SelectivityMethod("LAPE", "The lowest entropy over the labels of how often a neuron fires (Tang et al.)."),
    "lap": SelectivityMethod(
        "LAP", "A baseline: the neurons that fire on more than 95 % of a label's tokens, the most often first."
    ),
    "lave": SelectivityMethod(
        "LAVE", "A baseline: as LAPE, of the mean activation in place of how often a neuron fires."
    ),
    "pv": SelectivityMethod(
        "PV", "A baseline: as LAPE, of how far a neuron's write vector moves in a model tuned on the label alone."
    ),
    "random": SelectivityMethod("random", "A baseline: random neurons, as many of each label as LAPE selects."),
}
"""Name → method, in the order of the tables; the names that `method` takes."""
