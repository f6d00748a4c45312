"""A capture, copied: its plan, its record, each block with its commit record last, and what is added up of them.

Whatever stops it leaves a capture whose plan is not finished, or one that is unfinished, which the next copy completes.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Final

from actstore.store.capture.commits import committed_blocks, parse_commit, shards_digest
from actstore.store.capture.committed import read_committed
from actstore.store.capture.plan import TOKEN_ARRAYS
from actstore.store.capture.record import read_capture
from actstore.store.capture.requests import has_requests, parse_requests, requests_key
from actstore.store.capture.statistics.capture_statistics import UNLISTED, UNLISTED_OPTIONAL
from actstore.store.capture.statistics.neuron_table import remove_finished
from actstore.store.errors import FormatError, InvalidInputError, NotFoundError
from actstore.store.files.block_arrays import block_arrays
from actstore.store.files.bundles.reader import open_bundle
from actstore.store.files.bundles.writer import write_bundle
from actstore.store.files.names import write_names
from actstore.store.layout import (
    GATE_SIGN,
    bundle_key,
    capture_key,
    commit_key,
    committed_key,
    folded_statistics_key,
    numerics_key,
    plan_key,
    statistics_key,
    table_key,
)
from actstore.store.storage.lock import own
from actstore.store.storage.strict_json import parse_json
from actstore.store.transfer.arrays import Array, copy_array, group_files
from actstore.store.transfer.ranges import damaged, of_table, whole
from actstore.store.transfer.transfer import File

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from actstore.store.capture.reader import Capture
    from actstore.store.files.records import CaptureRecord, CommitRecord
    from actstore.store.storage.folder import Folder
    from actstore.store.transfer.transfer import Transfer

_BLOCKS_IN_MEMORY: Final = 256
"""Blocks whose copying is asked for at once."""


def check_capture_of(source: Folder, target: Folder, name: str) -> None:
    """Raise `InvalidInputError` where the target has a capture of the name that is another one."""
    key = f"{capture_key(name)}/zarr.json"
    if read_capture(target, name) is not None and target.read(key) != source.read(key):
        raise InvalidInputError(
            f"{target} already has a capture {name!r}, and it is another than that of {source}. Leave it out by naming the "
            "other `captures`, or name another `dst`."
        )


@dataclass
class CaptureCopy:
    """One capture on its way."""

    transfer: Transfer
    capture: Capture
    on_block: Callable[[], None]
    n_blocks: int = 0
    """Blocks that were copied."""

    def __post_init__(self) -> None:
        self.source, self.target = self.transfer.source, self.transfer.target
        self.record: CaptureRecord = self.capture.record
        self.name = self.record.name
        self._unfinishing = Lock()
        self._is_unfinished = False

    def run(self) -> None:
        """Copy what the target lacks of the capture; `ReadOnlyError` while another process writes it there."""
        with own(self.target, self.name):
            index = self._index()
            if index is not None and self._is_at_target(committed_key(self.name), index):
                for _ in self.capture.blocks:
                    self.on_block()
                return
            if read_capture(self.target, self.name) is None:
                self._copy_plan()
            self.transfer.copy([File(numerics_key(self.name), is_optional=True)])
            digest = shards_digest(self.record, self._copy_blocks())
            if self.capture.is_finished:
                self._copy_totals(index, digest)

    def _index(self) -> bytes | None:
        """The source's `committed.json`, if it has one."""
        try:
            return self.source.read(committed_key(self.name))
        except NotFoundError:
            return None

    def _is_at_target(self, key: str, data: bytes) -> bool:
        try:
            return self.target.read(key) == data
        except NotFoundError:
            return False

    def _copy_plan(self) -> None:
        """Copy the plan and the metadata of block arrays, and the record last."""
        name, listed = self.name, self.record.plan_files
        names = ["inputs/ids", *(f"tokens/{column}" for column in TOKEN_ARRAYS)]
        arrays = [Array(plan_key(name, one), listed.get(one, ""), is_optional=one not in listed) for one in names]
        self._copy_arrays(arrays)
        specs = [spec.key for spec in block_arrays(self.record)]
        groups = group_files([*specs, *(one.key for one in arrays)])
        tables = ["windows", "documents", *(["patches"] if self.record.of_images else [])]
        self.transfer.copy(
            [
                *groups,
                *(File(f"{key}/zarr.json") for key in specs),
                *(self._table(table, listed.get(f"{table}.parquet", "")) for table in tables),
            ]
        )
        if has_requests(self.record):
            data = self.source.read(requests_key(name))
            parse_requests(self.source, name, data, listed.get("requests.arrow", ""))
            self.transfer.write(requests_key(name), data)
        write_names(self.target, "captures", name)
        self.transfer.copy([File(f"{capture_key(name)}/zarr.json")])

    def _copy_arrays(self, arrays: list[Array]) -> None:
        self.transfer.map(lambda array: copy_array(self.transfer, array), arrays)

    def _table(self, table: str, digest: str = "", *, is_optional: bool = False) -> File:
        key = table_key(self.name, table)
        return File(key, of_table(self.source, key, digest), is_optional=is_optional)

    def _copy_blocks(self) -> Iterator[CommitRecord]:
        """Copy the committed blocks that the target lacks; the commit records of all."""
        there = set(committed_blocks(self.target, self.name))
        blocks = self.capture.blocks
        for start in range(0, len(blocks), _BLOCKS_IN_MEMORY):
            batch = blocks[start : start + _BLOCKS_IN_MEMORY]
            yield from self.transfer.map(lambda block: self._copy_block(block, is_there=block in there), batch)

    def _copy_block(self, block: int, *, is_there: bool) -> CommitRecord:
        key, prefix = commit_key(self.name, block), capture_key(self.name)
        try:
            data = self.source.read(key)
        except NotFoundError:
            raise damaged(self.source, key, "it is missing") from None
        commit = parse_commit(self.source, self.record, block, parse_json(data, f"{self.source}/{key}"))
        if not (is_there and self._has_block(commit, key, data)):
            self._unfinish()
            if self.record.bundled:
                self._copy_bundle(commit)
            else:
                self.transfer.copy(
                    File(f"{prefix}/{short}", whole(checksum), nbytes)
                    for short, (nbytes, checksum) in commit.shards.items()
                )
            self.transfer.write(key, data)
            with self._unfinishing:
                self.n_blocks += 1
        self.on_block()
        return commit

    def _copy_bundle(self, commit: CommitRecord) -> None:
        """Copy the bundle of a block: every file in it is held against the commit record."""
        block = commit.block
        try:
            bundle = open_bundle(self.source, self.record, block)
            files = ((key, bundle) for key in commit.shards)
            self.transfer.count(write_bundle(self.target, self.record, block, files, commit.shards))
        except NotFoundError:
            raise damaged(self.source, bundle_key(self.name, block), "it is missing, or lacks a file") from None

    def _has_block(self, commit: CommitRecord, key: str, data: bytes) -> bool:
        """Whether the target has a block with the same values, from here or computed there; not one with a damaged record.

        `InvalidInputError` where it has others.
        """
        found = self.target.read(key)
        if found == data:
            return True
        try:
            there = parse_commit(self.target, self.record, commit.block, parse_json(found, f"{self.target}/{key}"))
        except FormatError:
            return False
        if there.shards != commit.shards:
            raise InvalidInputError(
                f"Block {commit.block} of capture {self.name!r} has other values in {self.target} than in {self.source}: it "
                f"was computed anew in one. Delete {self.target}/{capture_key(self.name)} to have a copy of the other."
            )
        return True

    def _unfinish(self) -> None:
        """Remove from the target, once, what is added up of blocks, of which some are to change."""
        with self._unfinishing:
            if not self._is_unfinished:
                remove_finished(self.target, self.name)
                self._is_unfinished = True

    def _copy_totals(self, index: bytes | None, digest: str) -> None:
        """Copy what a finished capture has beside its blocks, what says that it is finished last.

        `digest` is that of the commit records that were copied, which the source's index must have.
        """
        name = self.name
        self._unfinish()
        if index is not None:
            expected = read_committed(self.source, self.record)
            if expected is None or expected.shards != digest:
                raise damaged(self.source, committed_key(name), "it is not what the commit records say")
        arrays = list(self._statistics())
        self._copy_arrays(arrays)
        tables = [self._table(table, is_optional=True) for table in ("exemplars", "prompts", "queries")]
        checkpoint = File(folded_statistics_key(name), is_optional=True)
        self.transfer.copy([*group_files(one.key for one in arrays), *tables, checkpoint])
        self.transfer.copy([self._table("neurons")])
        if self._index() != index:
            raise damaged(self.source, committed_key(name), "it was written anew meanwhile")
        if index is not None:
            self.transfer.write(committed_key(name), index)

    def _statistics(self) -> Iterator[Array]:
        """The arrays of finished statistics."""
        record, name = self.record, self.record.name
        listed = record.statistics or UNLISTED + UNLISTED_OPTIONAL
        optional = () if record.statistics else UNLISTED_OPTIONAL
        for site in record.sites:
            for statistic in listed:
                key = statistics_key(name, site, statistic)
                yield Array(key, identity=record.identity, is_optional=statistic in optional)
        for layer in record.gate_sign:
            yield Array(statistics_key(name, GATE_SIGN, f"{layer}/positives"), identity=record.identity)
        yield Array(statistics_key(name, "tokens", "by_label"), identity=record.identity)
