"""Fills a planned capture: block buffers out to encoder threads, shards to disk, a commit record last.

Where the model computes elsewhere, two sets of block buffers alternate: encoding overlaps the next block's forward passes,
and memory stays bounded, because the faster side waits for the other. Where it computes on the same cores, a block is encoded
by all of them before the next begins: encoders beside a forward pass take cores from threads that wait for one another.
"""

from __future__ import annotations

import dataclasses
import errno
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from actstore.store import layout
from actstore.store.capture.statistics import check_can_gather
from actstore.store.errors import CaptureError
from actstore.store.files.arrays import BlockArraySpec, create_block_array
from actstore.store.files.records import CommitRecord, with_checksum
from actstore.store.files.shards import checksum, shard_parts, shard_seed, write_parts
from actstore.store.model.root import read_root_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from concurrent.futures import Future
    from types import TracebackType

    from numpy.typing import NDArray

    from actstore.store.files.records import CaptureRecord
    from actstore.store.storage.folder import Folder


def create_capture(folder: Folder, record: CaptureRecord) -> CaptureRecord:
    """Write the metadata of every block array, then the capture's own record: from here on the capture exists.

    The record as written: bound to the store's root, and with its identity.
    """
    record = dataclasses.replace(record, root=read_root_id(folder), identity=record.identity_of())
    for spec in block_arrays(record):
        create_block_array(folder, spec, record.plan.n_blocks)
    folder.write_json(
        f"{layout.capture_key(record.name)}/zarr.json",
        {"zarr_format": 3, "node_type": "group", "attributes": {"actstore_capture": with_checksum(record.to_json())}},
    )
    return record


def block_arrays(record: CaptureRecord) -> Iterator[BlockArraySpec]:
    """Every sharded array that a capture of this record has."""
    slots = record.plan.block_slots
    encoding = record.encoding
    form = encoding.stored_format
    for site in record.sites if form else ():
        assert form is not None
        for layer, width in record.layers(site).items():
            bound: dict[str, Any] = {"identity": record.identity, "title": _title(record, layer, site)}
            yield BlockArraySpec(
                layout.values_key(record.name, site, layer),
                width,
                slots,
                form.dtype,
                form.fill_value,
                "token",
                {"value_dtype": form.name, "precision": record.precision},
                encoding.compression,
                **bound,
            )
            for name, dtype in encoding.parameters.items():
                key = layout.block_parameters_key(record.name, site, layer, name)
                yield BlockArraySpec(key, width, 1, np.dtype(dtype), 0, "block", **bound)
    widths = record.layers("mlp.post") if "mlp.post" in record.sites else {}
    for layer in record.gate_sign:
        key = layout.gate_sign_key(record.name, layer)
        yield BlockArraySpec(
            key, widths[layer], slots // 8, np.dtype("uint8"), 0, "token_byte", {"bit_order": "little"},
            identity=record.identity, title=_title(record, layer, layout.GATE_SIGN),
        )  # fmt: skip


def _title(record: CaptureRecord, layer: int, site: str) -> str:
    return f"capture {record.name!r}, layer {layer} ({site})"


@dataclass
class _Block:
    """A block on its way to disk."""

    number: int
    began: float
    statistics: Future[bytes]
    shards: dict[str, Future[tuple[int, str]]] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    release: Callable[[], None] = lambda: None


class CaptureWriter:
    """Encodes and commits the blocks of one capture; use as a context manager, under `lock.own`."""

    def __init__(self, folder: Folder, record: CaptureRecord, *, n_threads: int, overlap: bool) -> None:
        """Write blocks of `record` with `n_threads` encoders, with `overlap` beside whatever fills the next block."""
        check_can_gather(record)
        self._folder, self.record = folder, record
        self._specs = {spec.key: spec for spec in block_arrays(record)}
        self._pool = ThreadPoolExecutor(n_threads, thread_name_prefix="actstore-encoder")
        self._in_flight: _Block | None = None
        self._overlap = overlap
        self.on_commit: Callable[[int], None] = lambda block: None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.drain()
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)

    @property
    def n_blocks_in_use(self) -> int:
        """Number of blocks whose arrays are in use at once: that which is filled, and with `overlap` that which is written."""
        return 2 if self._overlap else 1

    def submit(
        self,
        block: int,
        arrays: dict[str, NDArray[Any]],
        statistics: Callable[[], bytes],
        began: float,
        files: Mapping[str, bytes] | None = None,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        """Hand over a filled block; returns when it, or with `overlap` the one before it, is committed.

        `files` are further objects of the block, key → bytes, committed with it. `release` is called, in this thread, when
        `arrays` and `statistics` are not read any more.
        """
        job = _Block(block, began, self._pool.submit(statistics), files=files or {}, release=release)
        for key, values in arrays.items():
            job.shards[key] = self._pool.submit(self._write_shard, key, block, values)
        previous, self._in_flight = self._in_flight, job
        if previous is not None:
            self._commit(previous)
        if not self._overlap:
            self.drain()

    def drain(self) -> None:
        """Commit what is in flight."""
        job, self._in_flight = self._in_flight, None
        if job is not None:
            self._commit(job)

    def _write_shard(self, key: str, block: int, values: NDArray[Any]) -> tuple[int, str]:
        spec = self._specs[key]
        parts = shard_parts(values, spec.grid, spec.compression, shard_seed(spec.identity, key, block))
        with self._folder.writer(layout.shard_key(key, block)) as file:
            return write_parts(parts, file.write)

    def _commit(self, job: _Block) -> None:
        prefix = layout.capture_key(self.record.name) + "/"
        try:
            shards = {
                layout.shard_key(key, job.number).removeprefix(prefix): future.result()
                for key, future in job.shards.items()
            }
            statistics = {layout.block_statistics_key(self.record.name, job.number): job.statistics.result()}
            job.release()
            for key, data in {**statistics, **job.files}.items():
                self._folder.write(key, data)
                shards[key.removeprefix(prefix)] = len(data), checksum(data)
            record = CommitRecord(
                job.number,
                shards,
                seconds=round(time.monotonic() - job.began, 3),
                capture=self.record.name,
                plan=self.record.plan.fingerprint,
                model=self.record.model_fingerprint,
                identity=self.record.identity,
            ).with_checksum()
            self._folder.write_json(layout.commit_key(self.record.name, job.number), record.to_json())
            self.on_commit(job.number)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise CaptureError(
                f"The disk of {self._folder} is full: block {job.number} of capture {self.record.name!r} could not be "
                "written. Everything committed before it stays readable; make room and run again with `resume=True`."
            ) from None
