"""What is not as it should be in a store, in words."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Damage:
    """One thing in a store that is not what it should be."""

    capture: str | None
    """None for graphs, edits and what belongs to the store."""
    block: int | None
    """None for the plan and the finished statistics."""
    site: str | None
    layer: int | None
    key: str
    what: str
    graphs: str | None = None
    """The name of damaged graphs; None for a capture's parts."""

    def __str__(self) -> str:
        what = _without_advice(self.what)
        if self.graphs is None and self.capture is None:
            return f"{self.key}: {what}"
        if self.graphs is not None:
            return f"graphs {self.graphs!r}: {self.key}: {what}; build them again"
        place = f"layer {self.layer} ({self.site}), " if self.layer is not None else ""
        block = f"block {self.block}" if self.block is not None else "the capture as a whole"
        return f"capture {self.capture!r}, {place}{block}: {self.key}: {what}"


def _without_advice(what: str) -> str:
    """A reader's message without what `verify` is doing at this moment: to look for further damage, and to name a repair."""
    shorter = re.sub(
        r" ?Run `store\.verify\(\)` to find every damage(d block)?(, and `store\.repair\(\)` to make them again)?\.",
        "",
        what,
    )
    shorter = re.sub(r"Run `store\.verify\(\)` to find every damage, and (\w)", lambda rest: rest[1].upper(), shorter)
    return shorter.rstrip(".")
