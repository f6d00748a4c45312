"""How far a capture is, and what it lacks though it was finished: the one verdict of `verify`, `repair` and reports."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

from actstore.store.damage import Damage
from actstore.store.layout import committed_key, statistics_key, table_key
from actstore.store.storage.listing import is_readable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from actstore.store.capture.reader import Capture

_MOST_NAMED: Final = 1000
"""The maximum number of blocks without a commit record that are named one by one."""


@dataclass(frozen=True)
class Standing:
    """How far a capture is."""

    is_filled: bool
    """Whether every planned block is committed."""
    is_finished: bool
    """Whether what is written after the last block is there too; a capture that is not, and lacks nothing, is unfinished."""
    lost: tuple[Damage, ...]
    """What is not there, and was: later files say so."""

    @property
    def is_unfinished(self) -> bool:
        """Whether it was never finished: further blocks, or `actstore.finish`, do it."""
        return not self.is_finished and not self.lost


def standing(capture: Capture) -> Standing:
    """How far a capture is, by what is there: blocks, then statistics, the table of neurons, and the index, in this order.

    A capture of an earlier version has no index, and is finished with the table.
    """
    name, folder = capture.record.name, capture.folder
    has_index = is_readable(folder, committed_key(name))
    has_table = is_readable(folder, table_key(name, "neurons"))
    if not capture.is_complete:
        # Of these, nothing is written before every block is committed: from then on, none may lack its record.
        is_lost = (
            has_index or has_table or is_readable(folder, f"{statistics_key(name, 'tokens', 'by_label')}/zarr.json")
        )
        return Standing(False, False, tuple(_missing_blocks(capture)) if is_lost else ())
    if has_index and not has_table:
        what = "missing, and committed.json, which is written after it, is there"
        return Standing(True, False, (Damage(name, None, None, None, "neurons.parquet", what),))
    return Standing(True, has_table and (has_index or not capture.record.is_checked), ())


def _missing_blocks(capture: Capture) -> Iterator[Damage]:
    """Planned blocks without a commit record; at most `_MOST_NAMED` of them are named."""
    name, n_blocks, committed = capture.record.name, capture.record.plan.n_blocks, set(capture.blocks)
    n_missing = n_blocks - len(committed)
    unwritten = (block for block in range(n_blocks) if block not in committed)
    for n_named, block in enumerate(islice(unwritten, min(n_missing, _MOST_NAMED + 1))):
        what = "missing" if n_named < _MOST_NAMED else f"missing, as are others from there on: {n_missing:,} in all"
        yield Damage(name, block, None, None, f"blocks/{block}.json", what)
