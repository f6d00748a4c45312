"""Whether the windows of a plan are where and what the plan's record says, before their numbers are taken for sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

    from actstore.store.files.records import PlanRecord


_COLUMNS: Final = {"document", "block", "n_slots", "input_start", "n_inputs", "slot_start"}


def checked_windows(windows: pa.Table, plan: PlanRecord, block: int | None = None) -> pa.Table:
    """These rows of the windows table, all or those of one `block`; ValueError unless they can be of the plan."""
    if any(column.null_count for column in windows.columns):
        raise ValueError("it has null values")
    columns = {name: windows[name].to_numpy().astype(np.int64) for name in windows.column_names if name in _COLUMNS}
    for name, high in {"block": plan.n_blocks, "document": plan.n_documents, "n_slots": plan.block_slots + 1}.items():
        _check_range(columns, name, high)
    for name in ("input_start", "n_inputs", "slot_start"):
        _check_range(columns, name, 1 << 62)
    if (columns["n_slots"] > columns["n_inputs"]).any():
        raise ValueError("a window has more slots than positions")
    if block is not None and (columns["block"] != block).any():
        raise ValueError(f"windows of other blocks stand among those of block {block}")
    # A window's slots follow those of the one before it; a block's first are where the block begins.
    blocks, n_slots = columns["block"], columns["n_slots"]
    begins = np.flatnonzero(np.diff(blocks, prepend=-1))
    ends = np.cumsum(n_slots)
    before_block = np.repeat((ends - n_slots)[begins], np.diff([*begins, len(blocks)]))
    if (np.diff(blocks) < 0).any() or (
        columns["slot_start"] != blocks * plan.block_slots + ends - n_slots - before_block
    ).any():
        raise ValueError("its windows do not follow one another")
    if (ends - before_block > plan.block_slots).any():
        raise ValueError("the windows of a block have more slots than it")
    labels = windows["labels"].combine_chunks()
    lengths = np.diff(labels.offsets.to_numpy())
    if (lengths != len(plan.label_columns)).any():
        raise ValueError(f"a window has no label for each of the {len(plan.label_columns)} label columns")
    found = labels.flatten().to_numpy()
    if labels.flatten().null_count or ((found < -1) | (found >= len(plan.labels))).any():
        raise ValueError(f"a window has another label than the {len(plan.labels)} that there are")
    return windows


def _check_range(columns: dict[str, np.ndarray], name: str, high: int) -> None:
    """Raise ValueError unless a column's values lie in 0…high - 1."""
    values = columns[name]
    if ((values < 0) | (values >= high)).any():
        raise ValueError(
            f"its column {name} has {values[(values < 0) | (values >= high)][0]}, expected 0 to {high - 1}"
        )
