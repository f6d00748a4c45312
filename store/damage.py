"""What is not as it should be in a store, in words."""

from __future__ import annotations

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
        what = self.what.rstrip(".")
        if self.graphs is None and self.capture is None:
            return f"{self.key}: {what}"
        if self.graphs is not None:
            return f"graphs {self.graphs!r}: {self.key}: {what}"
        place = f"layer {self.layer} ({self.site}), " if self.layer is not None else ""
        block = f"block {self.block}" if self.block is not None else "the capture as a whole"
        return f"capture {self.capture!r}, {place}{block}: {self.key}: {what}"
