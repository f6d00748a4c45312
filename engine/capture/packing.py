"""Packers: what a forward pass hands over, packed into the buffers and statistics of the current block, batch by batch.

A packer hands out filled blocks ready to be written. `HostPacker` packs on the CPU, into buffers from a pool; on a GPU
`actstore.engine.capture.gpu.packing` packs where the values are.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from actstore.kernels.pack import api
from actstore.kernels.pack.api import pack, pack_signs
from actstore.kernels.pack.columns import Columns
from actstore.store import layout
from actstore.store.capture.statistics.capture_statistics import CaptureStatistics

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.engine.capture.buffers import BufferPool, Buffers
    from actstore.store.capture.plan import BlockPlan
    from actstore.store.files.chunks import Rows
    from actstore.store.files.records import CaptureRecord

PACKABLE = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class FilledBlock:
    """A block whose every value is on the host."""

    block: int
    arrays: Mapping[str, Rows]
    """What is to be written: quantised, thresholded, or as it was computed. Some of it may be made when it is read."""
    statistics: CaptureStatistics
    """The block's; reading those of a site and layer, from any thread, may take its time."""
    began: float
    """`time.monotonic()` when its first batch began."""
    release: Callable[[], None]
    """Gives back the memory of `arrays` and of what `statistics` reads; called once, when they are not needed any more."""
    files: dict[str, bytes] = field(default_factory=dict)
    """What else belongs to the block, by key: written and committed with it."""


class Packer(Protocol):
    """Blocks one after another: `begin`, then `batch` and its `pack` calls as often as it takes, then `finish`."""

    def begin(self, plan: BlockPlan) -> None:
        """Start on a block."""

    def batch(self, columns: Columns) -> None:
        """Start on a batch of the block, whose tokens are those of `columns`; batches come in the order of their slots."""

    def pack(self, layer: int, site: str, values: Tensor, columns: Columns, rows: Tensor | None = None) -> None:
        """Keep what the record says of a site's `values` [row, neuron], valid during the call only.

        rows: [row] int64, where values are those of an expert: the row of the batch that each is, in any order.
        """

    def finish(self) -> Iterator[FilledBlock]:
        """End the block; gives the blocks that have become ready: this one, or the one before it.

        A block keeps its memory until its taker calls `release`. At most two may be unreleased when the next one is ended.
        """

    def drain(self) -> Iterator[FilledBlock]:
        """The blocks that were ended and not given yet; nothing may follow."""


class HostPacker:
    """Packs on the CPU."""

    def __init__(self, record: CaptureRecord, buffers: BufferPool[Buffers], experts: Collection[int]) -> None:
        """Collect each block in a set of `buffers`. `experts`: layers without values at some tokens."""
        self._record, self._buffers, self._experts = record, buffers, experts
        self._staging = record.encoding.staging_format

    def begin(self, plan: BlockPlan) -> None:
        """As `Packer` says."""
        self._plan, self._began, record = plan, time.monotonic(), self._record
        self._arrays, self._statistics = self._buffers.acquire(), CaptureStatistics.empty(record)
        for layer in record.gate_sign:
            self._arrays[layout.gate_sign_key(record.name, layer)].fill(0)
        for site in record.sites if self._staging else ():
            assert self._staging is not None
            for layer in record.layers(site):
                # An expert has values only where it was routed; a dense layer everywhere but in the padding slots.
                empty = slice(0 if layer in self._experts else len(plan.position), None)
                self._arrays[layout.values_key(record.name, site, layer)][:, empty] = self._staging.fill_value

    def batch(self, columns: Columns) -> None:
        """As `Packer` says."""
        count_labels(columns, self._statistics.label_tokens)

    def pack(self, layer: int, site: str, values: Tensor, columns: Columns, rows: Tensor | None = None) -> None:
        """As `Packer` says; brings values of another device to the CPU."""
        values = as_packable(values).to("cpu")
        if rows is not None:
            columns = routed_columns(columns, rows.cpu().numpy())
        if (site, layer) in self._statistics.sites:
            out = self._arrays.get(layout.values_key(self._record.name, site, layer))
            pack(values, columns, out, self._statistics.sites[site, layer])
        if site == "mlp.gate" and layer in self._statistics.gate_positives:
            bits = self._arrays[layout.gate_sign_key(self._record.name, layer)]
            pack_signs(values, columns, bits, self._statistics.gate_positives[layer])

    def finish(self) -> Iterator[FilledBlock]:
        """The block itself."""
        staged, statistics = self._arrays, self._statistics
        # Only the block has them from now on: they are not to be in memory while the next one is filled.
        del self._arrays, self._statistics
        arrays = encode(self._record, self._plan, staged)
        yield FilledBlock(self._plan.block, arrays, statistics, self._began, lambda: self._buffers.release(staged))

    def drain(self) -> Iterator[FilledBlock]:
        """Nothing."""
        return iter(())


def routed_columns(columns: Columns, rows: NDArray[np.int64]) -> Columns:
    """The columns of an expert that saw only `rows` of the batch; its values come in the order of `rows`."""
    order = np.argsort(rows, kind="stable")
    at = np.searchsorted(rows[order], columns.rows)
    at = np.minimum(at, max(len(rows) - 1, 0))
    is_routed = rows[order][at] == columns.rows if len(rows) else np.zeros(len(columns.rows), bool)
    segment = np.repeat(np.arange(len(columns.segments) - 1), np.diff(columns.segments))
    return Columns(
        rows=order[at[is_routed]] if len(rows) else np.empty(0, np.int64),
        slots=columns.slots[is_routed],
        segments=np.concatenate([[0], np.cumsum(np.bincount(segment[is_routed], minlength=len(columns.segments) - 1))]),
        labels=columns.labels,
        counted=columns.counted[is_routed],
        first_token=columns.first_token,
    )


def as_packable(values: Tensor) -> Tensor:
    """`values` as [row, neuron] in a format that the kernels take."""
    if values.dtype not in PACKABLE:
        values = values.float()
    return values.reshape(-1, values.shape[-1])


def count_labels(columns: Columns, label_tokens: NDArray[np.int64]) -> None:
    """Add the counted tokens of each window to its labels."""
    counted = np.add.reduceat(np.append(columns.counted, False).astype(np.int64), columns.segments[:-1])
    counted[np.diff(columns.segments) == 0] = 0
    for column in columns.labels.T:
        labelled = column >= 0
        np.add.at(label_tokens, column[labelled], counted[labelled])


def used_slots(record: CaptureRecord, plan: BlockPlan) -> NDArray[np.bool_]:
    """Which slots of a block hold a token; shape [slot]."""
    used: NDArray[np.bool_] = np.arange(record.plan.block_slots) < len(plan.position)
    return used


class _InPlace:
    """The kernels of lossy precisions, whose results lie in the block's own memory: beside it there is no room for them."""

    sparsify = staticmethod(api.sparsify)

    @staticmethod
    def quantise(block: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """As `api.quantise`; the steps [neuron, slot] are the first bytes of each neuron's row."""
        return api.quantise(block, block.view(np.int8)[:, : block.shape[1]])


def encode(record: CaptureRecord, plan: BlockPlan, staged: Buffers) -> Buffers:
    """The arrays to be written for a block whose buffers are filled: quantised, thresholded, or as they are.

    They lie in the memory of `staged`, which is not what it was then.
    """
    arrays, used = dict(staged), used_slots(record, plan)
    for site in record.sites if record.encoding.keeps_values else ():
        for layer in record.layers(site):
            key = layout.values_key(record.name, site, layer)
            encoded = record.encoding.encode(staged[key], used, _InPlace)
            arrays[key] = encoded.values
            for name, values in encoded.parameters.items():
                arrays[layout.block_parameters_key(record.name, site, layer, name)] = values[:, None]
    return arrays
