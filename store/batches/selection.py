"""Which tokens of a capture are in batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from actstore.store.capture.positions import POSITIONS, check_positions
from actstore.store.errors import InvalidInputError
from actstore.store.sql import run_sql

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.store.batches.settings import BatchSettings
    from actstore.store.capture.captures import Captures
    from actstore.store.capture.plan import BlockPlan
    from actstore.store.capture.reader import Capture


@dataclass(frozen=True)
class Selection:
    """The tokens at some positions of some documents."""

    positions: str
    skip: int
    """Positions at the beginning of each window that are left out."""
    documents: NDArray[np.bool_] | None
    """[document] None: all."""

    def slots(self, plan: BlockPlan) -> NDArray[np.int64]:
        """The selected slots of a block, ascending, counted from the block's first."""
        selected = POSITIONS[self.positions].select(plan)
        if self.skip:
            selected = selected & (plan.position >= self.skip)
        if self.documents is not None:
            selected = selected & self.documents[plan.windows["document"]][plan.window_of_slot()]
        return np.flatnonzero(selected)

    def count(self, capture: Capture, block: int) -> int:
        """The number of selected slots of a block."""
        if self.positions == "all" and not self.skip and self.documents is None:
            return int(capture.used_slots[block])  # which is known: nothing of the block's plan is read
        return len(self.slots(capture.block_plan(block)))


def select_tokens(store: Captures, capture: Capture, settings: BatchSettings) -> tuple[Selection, dict[int, int]]:
    """Which tokens `settings` select, and block → their number, of the blocks that have some; the plan is read once.

    `InvalidInputError` where there are fewer than ranks.
    """
    check_positions(capture, settings.positions)
    documents = None if settings.where is None else _documents(store, capture, settings.where)
    selection = Selection(settings.positions, settings.skip, documents)
    counts = {block: selection.count(capture, block) for block in capture.blocks}
    n_tokens = sum(counts.values())
    if n_tokens < settings.ranks:
        found = "none" if n_tokens == 0 else f"{n_tokens:,} for {settings.ranks} ranks"
        raise InvalidInputError(
            f"Expected tokens of capture {capture.record.name!r} to train on, found {found}. Choose other `where`, `positions` "
            "or `skip`."
        )
    return selection, {block: n for block, n in counts.items() if n}


def _documents(store: Captures, capture: Capture, where: str) -> NDArray[np.bool_]:
    """Whether each document is one of those that a condition names."""
    # On a line of its own: a comment at its end must not take in the bracket.
    table = run_sql(store, f"select document from documents where (\n{where}\n)", capture.record.name)
    selected = np.zeros(capture.record.plan.n_documents, np.bool_)
    selected[table["document"].to_numpy()] = True
    return selected
