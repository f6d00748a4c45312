"""Fills a planned capture: block buffers out to encoder threads, shards to the system, then to the disk, a commit record last.

Where the model computes elsewhere, two sets of block buffers alternate: encoding overlaps the next block's forward passes,
and memory stays bounded, because the faster side waits for the other. Where it computes on the same cores, a block is encoded
by all of them before the next begins: encoders beside a forward pass take cores from threads that wait for one another.

Either way the disk is waited for in the background, where a thread only sleeps: a block's buffers are free once the system has
its bytes, and while the next block is computed, its files are synced, then their folders, then its commit record. From then on
the block counts, and its statistics, still in memory, are added to those of the blocks before it, in a thread of their own.
"""

from __future__ import annotations

import dataclasses
import errno
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from actstore.store import layout
from actstore.store.capture.plan_files import read_plan_files
from actstore.store.capture.statistics.capture_statistics import check_can_gather
from actstore.store.errors import CaptureError
from actstore.store.files.arrays import create_block_array
from actstore.store.files.block_arrays import block_arrays, encoded_parts
from actstore.store.files.bundles.reader import find_bundles
from actstore.store.files.bundles.writer import BundleWriter
from actstore.store.files.names import write_names
from actstore.store.files.records import CommitRecord, with_checksum
from actstore.store.files.shards import checksum, write_parts
from actstore.store.model.root import read_root_id
from actstore.store.storage.batch import Batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from concurrent.futures import Future
    from types import TracebackType

    from actstore.store.capture.statistics.capture_statistics import CaptureStatistics
    from actstore.store.capture.statistics.running import RunningStatistics
    from actstore.store.files.chunks import Rows
    from actstore.store.files.records import CaptureRecord
    from actstore.store.storage.folder import Folder

SYNCING_THREADS: Final = 4
"""A disk that is asked to sync several files at once writes its journal once for all of them."""


def create_capture(folder: Folder, record: CaptureRecord) -> CaptureRecord:
    """Write the metadata of every block array, then the capture's own record: from here on the capture exists.

    The record as written: bound to the store's root and to the files of its plan, and with its identity.
    """
    record = dataclasses.replace(
        record, root=read_root_id(folder), identity=record.identity_of(), plan_files=read_plan_files(folder, record)
    )
    folder.clear(layout.capture_key(record.name), layout.BLOCK_ARRAYS)
    for spec in block_arrays(record):
        create_block_array(folder, spec, record.plan.n_blocks)
    write_names(folder, "captures", record.name)
    find_bundles(folder, record)
    write_record(folder, record)
    return record


def write_record(folder: Folder, record: CaptureRecord) -> None:
    """Write a capture's record as it is."""
    attributes = {"actstore_capture": with_checksum(record.to_json())}
    group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    folder.write_json(layout.record_key(record.name), group)


@dataclass
class _Block:
    """A block on its way to disk."""

    number: int
    began: float
    statistics: Future[tuple[CaptureStatistics, bytes]]
    """As they are added up, and as they are written."""
    batch: Batch
    """Of its shards, on their way to the disk."""
    shards: dict[str, Future[tuple[int, str]]] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    release: Callable[[], None] = lambda: None
    bundle: BundleWriter | None = None
    """What the files of a block of a bundled capture are written into."""


class CaptureWriter:
    """Encodes and commits the blocks of one capture; use as a context manager, under `lock.own`."""

    def __init__(self, folder: Folder, record: CaptureRecord, *, n_threads: int, overlap: bool) -> None:
        """Write blocks of `record` with `n_threads` encoders, with `overlap` beside whatever fills the next block."""
        check_can_gather(record)
        self._folder, self.record = folder, record
        find_bundles(folder, record)
        self._specs = {spec.key: spec for spec in block_arrays(record)}
        self._pool = ThreadPoolExecutor(n_threads, thread_name_prefix="actstore-encoder")
        self._syncing = ThreadPoolExecutor(SYNCING_THREADS, thread_name_prefix="actstore-sync")
        self._committing = ThreadPoolExecutor(1, thread_name_prefix="actstore-commit")
        self._adding = ThreadPoolExecutor(1, thread_name_prefix="actstore-statistics")
        self._encoding: _Block | None = None
        """The block that is being encoded, with `overlap` while the next is filled."""
        self._commit: tuple[int, Future[None]] | None = None
        """The block before that, on its way to the disk."""
        self._added: tuple[int, Future[None]] | None = None
        """The block whose statistics are being added to those of the blocks before it; the committing thread's."""
        self._overlap = overlap
        self.running: RunningStatistics | None = None
        """What every block is added to once its commit record counts, in a thread of its own: nobody else uses it meanwhile."""
        self.on_commit: Callable[[int], None] = lambda block: None
        """Told, in the thread that submits blocks, of each block once its commit record counts."""
        self.is_wanted: Callable[[int], bool] = lambda block: True
        """Asked, in the same thread, before anything of a block is written; a block that is not wanted is passed over."""
        self._bundles: set[BundleWriter] = set()
        """Those that are being written."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        is_whole = False
        try:
            if kind is None:
                self.drain()
                is_whole = True
        finally:
            self._pool.shutdown(wait=True, cancel_futures=not is_whole)
            # What the system has got is brought to the disk even after an error: it may be a whole block.
            self._committing.shutdown(wait=True)
            self._adding.shutdown(wait=True)
            self._syncing.shutdown(wait=True)
            for bundle in self._bundles:
                bundle.abandon()

    @property
    def n_blocks_in_use(self) -> int:
        """Number of blocks whose arrays are in use at once: that which is filled, and with `overlap` that which is written."""
        return 2 if self._overlap else 1

    def submit(
        self,
        block: int,
        arrays: Mapping[str, Rows],
        statistics: CaptureStatistics,
        began: float,
        files: Mapping[str, bytes] | None = None,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        """Hand over a filled block; returns when it, or with `overlap` the one before it, is encoded and with the system.

        The block before that is committed then. `files` are further objects of the block, key → bytes, committed with it.
        A block that `is_wanted` refuses is not written.

        `release` is called, in this thread, when `arrays` are not read any more, and `statistics` not looked up; what they gave
        stays in use until it is added to `running`.
        """
        if not self.is_wanted(block):
            release()
            return
        encoded = self._encode_statistics(statistics)
        job = _Block(block, began, encoded, Batch(self._syncing), files=files or {}, release=release)
        if self.record.bundled:
            with self._block_errors(block):
                job.bundle = BundleWriter(self._folder, layout.bundle_key(self.record.name, block), job.batch)
            self._bundles.add(job.bundle)
        # A bundle has its files in one order, whoever fills the block.
        keys = [key for key in self._specs if key in arrays] if self.record.bundled else arrays
        for number, key in enumerate(keys):
            job.shards[key] = self._pool.submit(self._write_shard, key, arrays[key], job, number)
        previous, self._encoding = self._encoding, job
        if previous is not None:
            self._hand_over(previous)
        if not self._overlap:
            self._encoding = None
            self._hand_over(job)

    def _encode_statistics(self, statistics: CaptureStatistics) -> Future[tuple[CaptureStatistics, bytes]]:
        """A block's statistics as they are added up later, in memory of their own, and as they are written."""
        sites = {key: self._pool.submit(statistics.narrowed_site, key) for key in statistics.sites}
        without_sites = dataclasses.replace(statistics, sites={})

        def encode() -> tuple[CaptureStatistics, bytes]:
            # Tasks begin in the order in which they are submitted: these have, and wait for none.
            own = dataclasses.replace(without_sites, sites={key: site.result() for key, site in sites.items()})
            sites.clear()
            return own, own.encode()

        return self._pool.submit(encode)

    def drain(self) -> None:
        """Commit what is in flight, and add up its statistics."""
        job, self._encoding = self._encoding, None
        if job is not None:
            self._hand_over(job)
        self._await_commit()
        self._await_added()

    def _hand_over(self, job: _Block) -> None:
        """Wait until a block is encoded, and have it committed in the background once the one before it is."""
        with self._block_errors(job.number):
            files = {key: future.result() for key, future in job.shards.items()}
            statistics, data = job.statistics.result()
        job.release()
        self._await_commit()
        self._commit = job.number, self._committing.submit(self._commit_block, job, files, statistics, data)

    def _await_commit(self) -> None:
        """Wait until the block in the background is committed, and tell of it."""
        if self._commit is not None:
            (number, future), self._commit = self._commit, None
            with self._block_errors(number):
                future.result()
                self.on_commit(number)

    def _await_added(self) -> None:
        """Wait until the statistics of the last block that was handed over are added up."""
        if self._added is not None:
            (number, future), self._added = self._added, None
            with self._block_errors(number):
                future.result()

    def _write_shard(self, key: str, values: Rows, job: _Block, number: int) -> tuple[int, str]:
        parts = encoded_parts(self._specs[key], values, job.number)
        if job.bundle is not None:
            return job.bundle.add_shard(number, self._short(layout.shard_key(key, job.number)), parts)
        with self._folder.writer(layout.shard_key(key, job.number), job.batch) as file:
            return write_parts(parts, file.write)

    def _short(self, key: str) -> str:
        return key.removeprefix(f"{layout.capture_key(self.record.name)}/")

    def _commit_block(
        self, job: _Block, files: Mapping[str, tuple[int, str]], statistics: CaptureStatistics, data: bytes
    ) -> None:
        """Commit a block; from then on its statistics count, which are added up while the next one is brought to the disk."""
        commit = self._write_commit(job, files, data)
        if self.running is not None:
            # One block is added and one waits, no more: they take memory.
            self._await_added()
            self._added = job.number, self._adding.submit(self.running.add, commit, statistics)

    def _write_commit(self, job: _Block, files: Mapping[str, tuple[int, str]], statistics: bytes) -> CommitRecord:
        """Bring a block to the disk, its commit record last."""
        name = self.record.name
        shards = {self._short(layout.shard_key(key, job.number)): size for key, size in files.items()}
        for key, data in {layout.block_statistics_key(name, job.number): statistics, **job.files}.items():
            if job.bundle is None:
                self._folder.write(key, data)
                shards[self._short(key)] = len(data), checksum(data)
            else:
                shards[self._short(key)] = job.bundle.add(job.bundle.n_files, self._short(key), [data])
        if job.bundle is not None:
            job.bundle.close()
            self._bundles.discard(job.bundle)
        job.batch.sync()
        record = CommitRecord(
            job.number,
            shards,
            seconds=round(time.monotonic() - job.began, 3),
            capture=name,
            plan=self.record.plan.fingerprint,
            model=self.record.model_fingerprint,
            identity=self.record.identity,
        ).with_checksum()
        self._folder.write_json(layout.commit_key(name, job.number), record.to_json())
        return record

    @contextmanager
    def _block_errors(self, block: int) -> Iterator[None]:
        """A disk that is full, or that fails, stops the capture, which can be resumed."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                reason, remedy = f"The disk of {self._folder} is full", "make room"
            elif error.errno == errno.EIO:
                reason, remedy = f"The disk of {self._folder} fails ({error.strerror})", "check the disk"
            else:
                raise
            raise CaptureError(
                f"{reason}: block {block} of capture {self.record.name!r} could not be written. Everything committed before "
                f"it stays readable; {remedy}, and run the same again, a capture with `resume=True`."
            ) from None
