"""The scorers of generations, as one table; the command line reads it at every start, and nothing here loads a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class ScorerKind:
    """One way to score generations."""

    label: str
    """What tables call it."""
    help: str
    """One sentence for the command line and the documentation."""
    argument: str | None = None
    """What follows its name after a colon; None where nothing does."""


SCORERS: Final[dict[str, ScorerKind]] = {
    "refusal": ScorerKind(
        "refusal", "1 where the generation reads as a refusal (`activation_patching.REFUSALS`), else 0."
    ),
    "regex": ScorerKind("regex", "1 where the generation matches a regular expression, else 0.", "PATTERN"),
    "likelihood": ScorerKind("likelihood", "The mean log probability of the generation under the donor."),
    "function": ScorerKind(
        "function", "What a Python function of yours gives for the texts of prompt and generation.", "MODULE:NAME"
    ),
}
"""Name → scorer, as a command line names it; any `activation_patching.Scorer` can be passed to `evaluate_patching`."""
