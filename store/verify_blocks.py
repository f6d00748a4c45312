"""One pass over a capture's blocks, in which every file is read once: checksums, places, and the sum of their statistics."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from actstore.store.capture.commits import ShardsDigest, checked_files, read_commit
from actstore.store.capture.statistics.capture_statistics import CaptureStatistics, read_block_statistics
from actstore.store.capture.writer import block_arrays
from actstore.store.errors import FormatError, NotFoundError
from actstore.store.files.shards import Shard, shard_seed
from actstore.store.layout import block_statistics_key, capture_key, commit_key, folded_statistics_key, shard_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from actstore.store.reader import Capture
    from actstore.store.storage.pieces import Source


class BlockPass:
    """The files of a capture's blocks, which `check` reads block by block, in their order."""

    def __init__(self, capture: Capture) -> None:
        """Nothing is read yet but the checkpoint of added statistics, if there is one."""
        record = self._record = capture.record
        self._folder = capture.folder.direct
        self._prefix = capture_key(record.name)
        self._specs = {spec.key: spec for spec in block_arrays(record)} if record.is_checked else {}
        self._total: CaptureStatistics | None = CaptureStatistics.empty(record)
        self._n_added = 0
        self._shards: ShardsDigest | None = ShardsDigest(record)
        self.unreadable: tuple[str, str] | None = None
        """(key below the capture, reason) of the first block's statistics that are not damaged, and cannot be read."""
        self.checkpoint_fault = ""
        """What is wrong with the checkpoint of added statistics."""
        self._covered, self._checkpoint = 0, b""
        self._open_checkpoint()

    @property
    def total(self) -> CaptureStatistics | None:
        """The sum of the statistics of all blocks; None where those of one cannot be read."""
        return self._total

    @property
    def shards(self) -> str:
        """`digest_shards` of the blocks; empty where a commit record cannot be read."""
        return "" if self._shards is None else self._shards.hexdigest()

    def check(self, block: int) -> Iterator[tuple[str, str]]:
        """(key below the capture, reason) of every file of a block that is damaged, or another's, commit record and all."""
        try:
            commit = read_commit(self._folder, self._record, block)
        except FormatError as error:
            self._total = self._shards = None
            yield self._short(commit_key(self._record.name, block)), str(error)
            return
        if self._shards is not None:
            self._shards.add(commit)
        statistics = self._short(block_statistics_key(self._record.name, block))
        places = {self._short(shard_key(key, block)): key for key in self._specs}
        data: bytes | None = None
        damage, misplaced = [], []
        for key, source, what in checked_files(self._folder, self._prefix, commit.shards):
            if source is None:
                damage.append((key, what))
            elif key == statistics:
                data = bytes(source.read(0, source.nbytes))
            elif key in places and not damage:
                misplaced += self._misplaced(places[key], block, key, source)
        yield from damage or misplaced
        self._add(block, statistics, data, is_damaged=statistics in dict(damage), is_whole=not damage)

    def _short(self, key: str) -> str:
        return key.removeprefix(f"{self._prefix}/")

    def _misplaced(self, array: str, block: int, key: str, source: Source) -> list[tuple[str, str]]:
        """What is wrong with the place of a shard: the checksum of one row tells."""
        spec = self._specs[array]
        try:
            Shard(source, spec.grid, spec.dtype, shard_key(array, block), shard_seed(spec.identity, array, block)).row(
                0
            )
        except FormatError as error:
            return [(key, str(error))]
        except Exception as error:  # whatever libraries raise over bytes that they did not expect
            if isinstance(error, OSError) and error.errno is not None:
                raise
            return [(key, f"cannot be checked: {' '.join(str(error).split()) or type(error).__name__}")]
        return []

    def _add(self, block: int, key: str, data: bytes | None, *, is_damaged: bool, is_whole: bool) -> None:
        """Add a block's statistics, and compare the checkpoint with the sum of the blocks that it covers."""
        if self._total is None or is_damaged:
            self._total = None
            return
        try:
            if data is None:  # not among the files that its commit record lists
                found = read_block_statistics(self._folder, self._record, block)
            else:
                where = f"{self._folder}/{self._prefix}/{key}"
                found, _ = CaptureStatistics.decode(data, self._record, where)
            self._total.merge(found)
        except (FormatError, NotFoundError, ValueError) as error:
            self._total = None
            if is_whole:
                self.unreadable = key, str(error)
            return
        self._n_added += 1
        if block + 1 == self._n_added == self._covered and _digest(self._total) != self._checkpoint:
            self.checkpoint_fault = "not the sum of the blocks' own"

    def _open_checkpoint(self) -> None:
        key = folded_statistics_key(self._record.name)
        try:
            found, self._covered = CaptureStatistics.decode(
                self._folder.read(key), self._record, f"{self._folder}/{key}"
            )
            self._checkpoint = _digest(found)
        except NotFoundError:
            pass
        except FormatError as error:
            self.checkpoint_fault = str(error)


def _digest(statistics: CaptureStatistics) -> bytes:
    return hashlib.sha256(statistics.encode()).digest()
