"""What follows from a capture's record and its blocks alone, made again: no model runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore.engine.capture.steps.finish import write_results
from actstore.engine.repair.scratch import copy_file, scratch_folder
from actstore.store.capture.statistics.capture_statistics import CaptureStatistics, read_block_statistics
from actstore.store.capture.statistics.running import CHECKPOINT_BLOCKS
from actstore.store.files.arrays import create_block_array
from actstore.store.files.block_arrays import block_arrays
from actstore.store.files.groups import groups_of_capture, write_group
from actstore.store.layout import capture_key, folded_statistics_key

if TYPE_CHECKING:
    from collections.abc import Iterable

    from actstore.store.files.records import CaptureRecord
    from actstore.store.reader import Capture
    from actstore.store.storage.folder import Folder


def write_metadata(folder: Folder, record: CaptureRecord, keys: Iterable[str]) -> None:
    """Write the metadata of arrays of blocks and of groups, by their keys below the capture: `values/mlp.post/0/zarr.json`."""
    wanted = {f"{capture_key(record.name)}/{key}" for key in keys}
    for group in groups_of_capture(record):
        if f"{group}/zarr.json" in wanted:
            write_group(folder, group)
    with scratch_folder(folder, record.name) as scratch:
        for spec in block_arrays(record):
            if (key := f"{spec.key}/zarr.json") in wanted:
                # Not in the store itself: creating an array there would remove its shards.
                create_block_array(scratch, spec, record.plan.n_blocks)
                copy_file(scratch, folder, key)


def add_up(capture: Capture) -> None:
    """Add up the blocks' own statistics, all committed, and write what a finished capture has, its table of neurons last."""
    write_results(capture, _sum(capture.folder, capture.record, capture.record.plan.n_blocks))


def write_checkpoint(folder: Folder, record: CaptureRecord, blocks: Iterable[int]) -> None:
    """Write the checkpoint of added statistics as a run that committed `blocks` leaves it; removed where it leaves none."""
    committed, n_blocks = set(blocks), 0
    while n_blocks in committed:
        n_blocks += 1
    n_blocks -= n_blocks % CHECKPOINT_BLOCKS
    key = folded_statistics_key(record.name)
    if n_blocks:
        folder.write(key, _sum(folder, record, n_blocks).encode(n_blocks))
    else:
        folder.delete(key)


def _sum(folder: Folder, record: CaptureRecord, n_blocks: int) -> CaptureStatistics:
    """The statistics of the first blocks, each read from its own."""
    total = CaptureStatistics.empty(record)
    for block in range(n_blocks):
        total.merge(read_block_statistics(folder, record, block))
    return total
