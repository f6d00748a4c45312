"""One pass over a capture's blocks, in which every file is read once: checksums, places, and the sum of their statistics."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actstore.store.capture.commits import ShardsDigest, checked_files, read_commit
from actstore.store.capture.statistics.capture_statistics import CaptureStatistics, read_block_statistics
from actstore.store.errors import FormatError, NotFoundError, finding
from actstore.store.files.block_arrays import block_arrays
from actstore.store.files.bundles.reader import damaged_bundle
from actstore.store.files.shards import Shard, shard_seed
from actstore.store.layout import (
    block_statistics_key,
    bundle_key,
    capture_key,
    commit_key,
    folded_statistics_key,
    shard_key,
)

if TYPE_CHECKING:
    from actstore.store.files.arrays import BlockArraySpec
    from actstore.store.files.records import CaptureRecord, CommitRecord
    from actstore.store.reader import Capture
    from actstore.store.storage.folder import Folder
    from actstore.store.storage.pieces import Source


@dataclass(frozen=True)
class CheckedBlock:
    """What a block's files are."""

    damage: list[tuple[str, str]]
    """(key below the capture, reason) of every file that is damaged, or else another's, commit record and all."""
    commit: CommitRecord | None = None
    """None where it cannot be read."""
    statistics: bytes | None = None
    """The file of its statistics, where the commit record lists one that is whole."""
    is_whole: bool = False
    """Whether no file is damaged; some may be another's."""


def check_block(folder: Folder, record: CaptureRecord, block: int) -> CheckedBlock:
    """Read every file of a block once, and hold it against the commit record."""
    prefix = capture_key(record.name)
    try:
        commit = read_commit(folder, record, block)
    except FormatError as error:
        return CheckedBlock([(commit_key(record.name, block).removeprefix(f"{prefix}/"), finding(error))])
    if record.bundled and (what := damaged_bundle(folder, record, block, [*commit.shards])) is not None:
        return CheckedBlock([(bundle_key(record.name, block).removeprefix(f"{prefix}/"), what)], commit)
    statistics = block_statistics_key(record.name, block).removeprefix(f"{prefix}/")
    specs = block_arrays(record) if record.is_checked else ()
    places = {shard_key(spec.key, block).removeprefix(f"{prefix}/"): spec for spec in specs}
    data: bytes | None = None
    damage, misplaced = [], []
    for key, source, what in checked_files(folder, prefix, commit.shards):
        if source is None:
            damage.append((key, what))
        elif key == statistics:
            data = bytes(source.read(0, source.nbytes))
        elif key in places and not damage:
            misplaced += _misplaced(places[key], block, key, source)
    return CheckedBlock(damage or misplaced, commit, data, not damage)


def _misplaced(spec: BlockArraySpec, block: int, key: str, source: Source) -> list[tuple[str, str]]:
    """What is wrong with the place of a shard: the checksum of one row tells."""
    seed = shard_seed(spec.identity, spec.key, block)
    try:
        Shard(source, spec.grid, spec.dtype, shard_key(spec.key, block), seed).row(0)
    except FormatError as error:
        return [(key, finding(error))]
    except Exception as error:
        return [(key, unforeseen(error))]
    return []


def unforeseen(error: Exception) -> str:
    """What is wrong with bytes over which a library raised what nobody expects.

    Raises an error of the disk or the network again, which says nothing about the bytes.
    """
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    return f"cannot be checked: {' '.join(str(error).split()) or type(error).__name__}"


class BlockPass:
    """What follows from all blocks of a capture, each of which `check_block` has read, in their order."""

    def __init__(self, capture: Capture) -> None:
        """Nothing is read yet but the checkpoint of added statistics, if there is one."""
        record = self._record = capture.record
        self._folder = capture.folder.direct
        self._prefix = capture_key(record.name)
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

    def add(self, block: int, checked: CheckedBlock) -> None:
        """Take in what `check_block` found, of one block after the other."""
        if checked.commit is None:
            self._total = self._shards = None
            return
        if self._shards is not None:
            self._shards.add(checked.commit)
        self._add(block, checked)

    def _add(self, block: int, checked: CheckedBlock) -> None:
        """Add a block's statistics, and compare the checkpoint with the sum of the blocks that it covers."""
        key = self._short(block_statistics_key(self._record.name, block))
        if self._total is None or key in dict(checked.damage):
            self._total = None
            return
        try:
            if checked.statistics is None:  # not among the files that its commit record lists
                found = read_block_statistics(self._folder, self._record, block)
            else:
                where = f"{self._folder}/{self._prefix}/{key}"
                found, _ = CaptureStatistics.decode(checked.statistics, self._record, where)
            self._total.merge(found)
        except (FormatError, NotFoundError, ValueError) as error:
            self._total = None
            if checked.is_whole:
                self.unreadable = key, finding(error)
            return
        self._n_added += 1
        if block + 1 == self._n_added == self._covered and _digest(self._total) != self._checkpoint:
            self.checkpoint_fault = "not the sum of the blocks' own"

    def _short(self, key: str) -> str:
        return key.removeprefix(f"{self._prefix}/")

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
            self.checkpoint_fault = finding(error)


def _digest(statistics: CaptureStatistics) -> bytes:
    return hashlib.sha256(statistics.encode()).digest()
