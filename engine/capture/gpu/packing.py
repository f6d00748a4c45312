"""Packing on the model's own GPU, and copying what was packed to the host while the model runs on.

Blocks are packed into device memory as they are computed. A full block is copied to pinned memory on a stream of its own,
while the next one fills a second staging buffer: nothing waits for the compute stream. A block that is too large for device
memory goes through it in spans of slots. Imported only where there is a GPU: it loads Triton.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from actstore.engine.capture.buffers import BufferPool
from actstore.engine.capture.gpu.arena import Arena, groups_nbytes
from actstore.engine.capture.gpu.buffers import (
    BlockStatistics,
    CopyEvent,
    CopyStream,
    StagingBuffer,
    as_numpy,
    clear_staged,
    staged_groups,
)
from actstore.engine.capture.gpu.outgoing import Outgoing
from actstore.engine.capture.packing import FilledBlock, as_packable, count_labels, encode
from actstore.kernels.pack import gpu
from actstore.store import layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from actstore.engine.capture.buffers import Buffers
    from actstore.kernels.pack.columns import Columns
    from actstore.store.capture.plan import BlockPlan
    from actstore.store.files.chunks import Rows
    from actstore.store.files.records import CaptureRecord

MEMORY_FRACTION: Final = 0.4
"""Of the device memory that is free once the model is loaded: what buffers and statistics may take. The rest is for the
forward pass."""


@dataclass(frozen=True)
class _Pending:
    """A block whose copies are under way."""

    plan: BlockPlan
    began: float
    arrays: Callable[[], Mapping[str, Rows]]
    statistics: BlockStatistics
    copied: CopyEvent
    release: Callable[[], None]

    def collect(self) -> FilledBlock:
        self.copied.wait()
        return FilledBlock(self.plan.block, self.arrays(), self.statistics.to_host(), self.began, self.release)


class DevicePacker:
    """Packs on a GPU; a `Packer`. A block that fits device memory is given when the next one has been computed."""

    def __init__(
        self,
        record: CaptureRecord,
        device: torch.device,
        buffers: BufferPool[Buffers],
        *,
        memory: int | None = None,
    ) -> None:
        """Pack on `device` within `memory` bytes of it; `MEMORY_FRACTION` of what is free, unless given.

        A block that fits comes in pinned memory of the packer's own, one that does not in a set of `buffers`.
        """
        self._record, self._device, self._buffers = record, device, buffers
        is_gpu = device.type == "cuda"
        self._side = CopyStream(device)
        self._outgoing = Outgoing(record, device)
        self._device_statistics = [BlockStatistics.empty(record, device) for _ in range(2)]
        # Two blocks at once: one is written while the next is copied.
        self._host_statistics = BufferPool(lambda: BlockStatistics.empty(record, "cpu", pinned=is_gpu), 2)
        self._pinned = BufferPool(self._outgoing.host_arena, 2)
        if memory is None:
            memory = int(MEMORY_FRACTION * torch.cuda.mem_get_info(device)[0]) if is_gpu else 1 << 30
        self._memory = memory - 2 * self._device_statistics[0].nbytes
        self._spans: list[StagingBuffer] = []
        self._n_span_slots = 0
        self._n_blocks = self._n_opened = 0
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="actstore-staging")
        self._waiting: _Pending | None = None

    def begin(self, plan: BlockPlan) -> None:
        """As `Packer` says."""
        self._plan, self._began, self._stop = plan, time.monotonic(), 0
        self._allocate(plan)
        self._statistics = self._device_statistics[self._n_blocks % 2]
        self._n_blocks += 1
        self._statistics.copied.hold_compute(self._device)
        self._statistics.clear()
        if not self._is_whole:
            self._arrays = self._buffers.acquire()
            staging = self._record.encoding.staging_format
            for array in self._arrays.values():
                array.fill(0 if staging is None or array.dtype == np.uint8 else staging.fill_value)
        self._open()

    def batch(self, columns: Columns) -> None:
        """As `Packer` says."""
        count_labels(columns, self._statistics.label_tokens)
        if columns.n_slots - self._span.base > self._n_span_slots:
            self._close()
            self._open()
        self._stop = max(self._stop, columns.n_slots)
        self._batch = columns, self._within_span(columns)

    def pack(self, layer: int, site: str, values: Tensor, columns: Columns, rows: Tensor | None = None) -> None:
        """As `Packer` says; waits for nothing."""
        values = as_packable(values).to(self._device, non_blocking=True)
        if rows is not None and rows.device != values.device:
            rows = rows.to(values.device, non_blocking=True)
        span_columns = self._batch[1] if columns is self._batch[0] else self._within_span(columns)
        if (site, layer) in self._statistics.sites:
            out = self._span.arena.tensors.get(layout.values_key(self._record.name, site, layer))
            gpu.pack(values, span_columns, out, self._statistics.sites[site, layer], rows)
        if site == "mlp.gate" and layer in self._statistics.gate_positives:
            bits = self._span.arena.tensors[layout.gate_sign_key(self._record.name, layer)]
            gpu.pack_signs(values, span_columns, bits, self._statistics.gate_positives[layer], rows)

    def finish(self) -> Iterator[FilledBlock]:
        """The block before this one, whose own copies begin when that has been dealt with; or this one, if it did not fit."""
        # Whoever takes the block before this one then releases the one before that, whose memory this one is copied to.
        yield from self._collect()
        self._close()
        statistics, on_device = self._host_statistics.acquire(), self._statistics
        with self._side.after_compute():
            on_device.copy_to(statistics)
        on_device.copied = self._side.mark()
        arrays, release_arrays = self._whole_block(self._span) if self._is_whole else self._moved_block(self._plan)

        def release() -> None:
            release_arrays()
            self._host_statistics.release(statistics)

        self._waiting = _Pending(self._plan, self._began, arrays, statistics, on_device.copied, release)
        if not self._is_whole:
            yield from self._collect()

    def drain(self) -> Iterator[FilledBlock]:
        """The last block."""
        yield from self._collect()
        self._worker.shutdown()

    @property
    def _is_whole(self) -> bool:
        return self._n_span_slots >= self._record.plan.block_slots

    def _allocate(self, plan: BlockPlan) -> None:
        """Make both sets of buffers, large enough for any batch of the block."""
        block_slots = self._record.plan.block_slots
        nbytes = 2 * groups_nbytes(staged_groups(self._record, block_slots)) + self._outgoing.device_nbytes
        affordable = int(self._memory * block_slots / nbytes) if nbytes else block_slots
        longest = max(int(plan.windows["n_slots"][batch].sum()) for batch in plan.batches())
        # A span begins at the last multiple of 8 before its first slot.
        needed = min(block_slots, max(affordable, longest + 7))
        if needed <= self._n_span_slots:
            return
        self._n_span_slots = min(block_slots, -(-needed // 8) * 8)
        groups = staged_groups(self._record, self._n_span_slots)
        self._spans = []  # given back before as much is asked for again
        self._spans = [StagingBuffer(Arena(groups, self._device)) for _ in range(2)]

    def _open(self) -> None:
        """Let the other set of buffers receive the slots from the last batch's end on."""
        self._span = self._spans[self._n_opened % 2]
        self._n_opened += 1
        self._span.first, self._span.base = self._stop, self._stop // 8 * 8
        self._span.copied.hold_compute(self._device)
        clear_staged(self._span.arena, self._record)

    def _close(self) -> None:
        """Start copying the span to the host, and from there, if it is not the whole block, to its place in the block."""
        span = self._span
        if span.moved is not None:
            span.moved.result()
        if self._is_whole:
            span.host = self._pinned.acquire()
        elif span.host is None:
            groups = staged_groups(self._record, self._n_span_slots)
            span.host = Arena(groups, "cpu", pinned=self._device.type == "cuda")
        with self._side.after_compute():
            if self._is_whole:
                self._outgoing.copy(span.arena, self._plan, span.host)
            else:
                span.arena.copy_to(span.host)
        span.copied = self._side.mark()
        if not self._is_whole:
            span.moved = self._worker.submit(
                _move_to_block, span.copied, span.host, self._arrays, span.first, span.base, self._stop
            )

    def _within_span(self, columns: Columns) -> Columns:
        base = self._span.base
        return replace(columns, slots=columns.slots - base, first_token=columns.first_token + base) if base else columns

    def _whole_block(self, span: StagingBuffer) -> tuple[Callable[[], Mapping[str, Rows]], Callable[[], None]]:
        """What gives the arrays of a block once it is copied, and what gives back their memory.

        The first is called before the block after the next one begins, which overwrites the span on the device.
        """
        host = span.host
        assert host is not None
        return lambda: self._outgoing.collect(host, span.arena), lambda: self._pinned.release(host)

    def _moved_block(self, plan: BlockPlan) -> tuple[Callable[[], Mapping[str, Rows]], Callable[[], None]]:
        """As `_whole_block`, of a block that passed through device memory in spans."""
        arrays, moves = self._arrays, [span.moved for span in self._spans if span.moved is not None]

        def wait() -> Buffers:
            for move in moves:
                move.result()
            return encode(self._record, plan, arrays)

        return wait, lambda: self._buffers.release(arrays)

    def _collect(self) -> Iterator[FilledBlock]:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            yield waiting.collect()


def _move_to_block(copied: CopyEvent, host: Arena, arrays: Buffers, first: int, base: int, stop: int) -> None:
    """Move slots `first` to `stop` from the host memory of a span that begins at slot `base` to their places in a block."""
    copied.wait()
    for key, array in arrays.items():
        values = as_numpy(host.tensors[key])
        if values.dtype == np.uint8:
            n_octets = -(-(stop - base) // 8)
            array[:, base // 8 : base // 8 + n_octets] |= values[:, :n_octets]
        else:
            array[:, first:stop] = values[:, first - base : stop - base]
