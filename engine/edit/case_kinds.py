"""The kinds of cases that an edit is evaluated on, as one table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True)
class CaseKind:
    """What a case of one kind shows."""

    heading: Literal["reliability", "generality", "locality", "portability", "fluency"]
    """The heading of the summary that it counts towards."""
    help: str
    measures: tuple[str, ...]
    """The scores (`scores.score`) that are reported, the published one first."""

    @property
    def is_locality(self) -> bool:
        """Whether nothing should change."""
        return self.heading == "locality"

    @property
    def needs_answer(self) -> bool:
        """Whether a case has to say what is expected."""
        return self.heading not in ("locality", "fluency")


HEADINGS: Final = ("reliability", "generality", "locality", "portability", "fluency")
CASE_KINDS: Final = {
    "reliability": CaseKind("reliability", "the new word, where the edit was made from", ("word", "exact")),
    "text-generality": CaseKind("generality", "the new word, in other texts", ("word", "exact")),
    "image-generality": CaseKind("generality", "the new word, for other images", ("word", "exact")),
    "text-locality": CaseKind("locality", "other texts, where nothing should change", ("top1", "exact")),
    "image-locality": CaseKind("locality", "other images, where nothing should change", ("top10", "top1", "exact")),
    "portability": CaseKind("portability", "what follows from the new fact", ("word", "exact")),
    "fluency": CaseKind("fluency", "the n-gram entropy of a text that is generated", ("entropy",)),
}
