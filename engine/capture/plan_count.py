"""A plan counted instead of written: documents, windows, tokens and blocks, and one block to try. Memory stays bounded."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actstore.store.capture.plan import PlannedWindow


class PlanCount:
    """Takes what `PlanWriter` takes and keeps numbers only, but for the batches of the first block."""

    def __init__(self) -> None:
        """Nothing is counted yet."""
        self.n_documents = self.n_windows = self.n_tokens = self.n_blocks = 0
        self.n_inputs = 0
        """Tokens that the model reads: those stored, those reread as context, and those of which nothing is kept."""
        self.first_block: list[list[PlannedWindow]] = []
        self.closed_at_s: float | None = None
        """When the last window was counted, by `time.monotonic`."""

    def add_document(self, row: dict[str, Any]) -> int:
        """The index of the document."""
        self.n_documents += 1
        return self.n_documents - 1

    def add_block(self, batches: Sequence[Sequence[PlannedWindow]]) -> None:
        """Count the windows of one block."""
        windows = [window for batch in batches for window in batch]
        self.n_blocks += 1
        self.n_windows += len(windows)
        self.n_tokens += sum(len(window.kept) for window in windows)
        self.n_inputs += sum(len(window.ids) for window in windows)
        if not self.first_block:
            self.first_block = [list(batch) for batch in batches]

    def close(self, labels: Sequence[tuple[str, str]]) -> str:
        """In place of the plan's fingerprint, nothing."""
        self.closed_at_s = time.monotonic()
        return ""

    def abandon(self) -> None:
        """There is nothing to drop."""

    def smallest_batch(self) -> list[PlannedWindow]:
        """The batch of the first block with the fewest tokens."""
        return min(self.first_block, key=_n_inputs)

    def typical_batch(self) -> list[PlannedWindow]:
        """The batch of the first block whose number of tokens is nearest to the mean."""
        mean = sum(map(_n_inputs, self.first_block)) / len(self.first_block)
        return min(self.first_block, key=lambda batch: abs(_n_inputs(batch) - mean))


def _n_inputs(batch: Sequence[PlannedWindow]) -> int:
    return sum(len(window.ids) for window in batch)
