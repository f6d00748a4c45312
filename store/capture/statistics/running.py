"""The sum of a capture's statistics while it is filled: block after block, in their order, with a checkpoint now and then."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore.store.capture.commits import CommitsDigest, committed_blocks, read_commit
from actstore.store.capture.statistics.capture_statistics import CaptureStatistics, read_block_statistics
from actstore.store.layout import folded_statistics_key

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from actstore.store.files.records import CaptureRecord, CommitRecord
    from actstore.store.storage.folder import Folder

CHECKPOINT_BLOCKS = 64
"""A resumed run reads at most this many blocks' own statistics before it continues adding.

At the shape of a 7B model, 16,384 tokens per block, that is half a minute of reading once, and a checkpoint of 0.1 GB for every
million tokens. Twice as often, the disk would have two of them to write for the same million; half as often, a minute to read.
"""


class RunningStatistics:
    """Adds up blocks in their order, whatever order they are committed in; only committed ones count. Not for two threads."""

    def __init__(self, folder: Folder, record: CaptureRecord, blocks: Collection[int] | None = None) -> None:
        """Continue from the last checkpoint that covers only `blocks`, all committed ones unless told, or from nothing."""
        self._folder, self._record = folder, record
        blocks = committed_blocks(folder, record.name) if blocks is None else blocks
        self.total, self.n_blocks = CaptureStatistics.checkpoint(folder, record, blocks)
        self._commits = CommitsDigest(record)
        """Of the blocks that are added, as far as their records were needed or at hand."""

    def add(self, commit: CommitRecord, statistics: CaptureStatistics) -> None:
        """Add a block that has just been committed, whose statistics are at hand, and write a checkpoint now and then.

        Committed blocks before it are read from the disk where they are not added yet. Where one of them is not committed, this
        one is left to `advance`: what waits for an earlier block takes memory, and its statistics are on the disk.
        """
        if self.n_blocks < commit.block:
            committed = committed_blocks(self._folder, self._record.name)
            self._read(filter(commit.block.__gt__, committed), checkpoint=True)
        if self.n_blocks == commit.block:
            self._add(statistics, commit, checkpoint=True)

    def advance(self, *, checkpoint: bool = False) -> None:
        """Add every committed block that follows what is added already; with `checkpoint`, write one now and then."""
        self._read(committed_blocks(self._folder, self._record.name), checkpoint=checkpoint)

    def _read(self, blocks: Iterable[int], *, checkpoint: bool) -> None:
        """Add those of the committed `blocks` that follow what is added already, as far as none is missing."""
        committed = set(blocks)
        while self.n_blocks in committed:
            statistics = read_block_statistics(self._folder, self._record, self.n_blocks)
            self._add(statistics, None, checkpoint=checkpoint)

    def _add(self, statistics: CaptureStatistics, commit: CommitRecord | None, *, checkpoint: bool) -> None:
        if commit is not None and self._commits.n_blocks == self.n_blocks:
            self._commits.add(commit)
        self.total.merge(statistics)
        self.n_blocks += 1
        if checkpoint and self.n_blocks % CHECKPOINT_BLOCKS == 0:
            self._write_checkpoint()

    def _write_checkpoint(self) -> None:
        while self._commits.n_blocks < self.n_blocks:
            self._commits.add(read_commit(self._folder, self._record, self._commits.n_blocks))
        data = self.total.encode(self.n_blocks, self._commits.digest())
        self._folder.write(folded_statistics_key(self._record.name), data)
