"""Plan and model to store: runs the model over a planned corpus, block by block, and keeps what the record says.

The one module that brings model, plan, packer and store together: architectures are in `engine.models`, bytes on disk in
`store`, and how a value is packed, on the host or on a GPU, in `packing` and `gpu.packing`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from actstore.engine.capture.buffers import block_buffers
from actstore.engine.capture.packing import HostPacker, as_packable, routed_columns
from actstore.engine.capture.write_scales import WriteScales
from actstore.engine.contributions.while_capturing import RunningContributions
from actstore.engine.models.writing.path import WRITE_SCALE
from actstore.kernels.pack.api import Columns
from actstore.store import layout
from actstore.store.capture.plan import Plan
from actstore.store.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.engine.capture.buffers import BufferPool, Buffers
    from actstore.engine.capture.packing import FilledBlock, Packer
    from actstore.engine.capture.progress import CaptureProgress
    from actstore.engine.models.load import LoadedModel
    from actstore.store.capture.plan import BlockPlan
    from actstore.store.capture.writer import CaptureWriter
    from actstore.store.files.records import CaptureRecord
    from actstore.store.storage.folder import Folder


@dataclass(frozen=True)
class Batch:
    """What one forward pass reads and where its rows go."""

    input_ids: Tensor
    """[window, position], padded on the right."""
    attention_mask: Tensor | None
    """[window, position]; None where nothing is padded."""
    columns: Columns
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    """Further inputs, such as pixels."""
    n_rows: int | None = None
    """Rows that every layer must hand over; None where they are those of `input_ids`."""


class Batches(Protocol):
    """Gives the batches of a block in their planned order; label id `n_labels` is carried by every window."""

    def __call__(self, plan: BlockPlan, n_labels: int, block_slots: int) -> Iterator[Batch]:
        """As `batches_of` does."""


def batches_of(plan: BlockPlan, n_labels: int, block_slots: int) -> Iterator[Batch]:
    """The batches of a block of text."""
    input_starts = np.cumsum([0, *plan.windows["n_inputs"]])
    for batch in plan.batches():
        lengths = plan.windows["n_inputs"][batch]
        longest = int(lengths.max())
        ids = np.zeros((len(lengths), longest), np.int64)
        for row, start, length in zip(range(len(lengths)), input_starts[batch], lengths, strict=True):
            ids[row, :length] = plan.inputs[start : start + length]
        padded = bool((lengths != longest).any())
        columns = batch_columns(plan, batch, np.arange(len(lengths)) * longest, n_labels, block_slots)
        mask = torch.from_numpy(np.arange(longest) < lengths[:, None]).long() if padded else None
        yield Batch(torch.from_numpy(ids), mask, columns)


def batch_columns(
    plan: BlockPlan, batch: slice, first_rows: NDArray[np.int64], n_labels: int, block_slots: int
) -> Columns:
    """Which rows go to which slots, of a batch of windows whose position 0 is in the rows `first_rows` [window]."""
    slot_starts = np.cumsum([0, *plan.windows["n_slots"]])
    n_slots = plan.windows["n_slots"][batch]
    first, last = int(slot_starts[batch.start]), int(slot_starts[batch.stop])
    labels = plan.labels[batch]
    return Columns(
        rows=np.repeat(first_rows, n_slots) + plan.position[first:last],
        slots=np.arange(first, last),
        segments=np.concatenate([[0], np.cumsum(n_slots)]),
        labels=np.concatenate([labels, np.full((len(labels), 1), n_labels, np.int32)], axis=1),
        counted=plan.modality[first:last] != layout.SPECIAL,
        first_token=plan.block * block_slots,
    )


class BlockFiller:
    """Runs the model over one block after another and hands what it computes to a packer."""

    def __init__(
        self,
        model: LoadedModel,
        record: CaptureRecord,
        buffers: BufferPool[Buffers],
        batches: Batches = batches_of,
        contributions: RunningContributions | None = None,
    ) -> None:
        """Capture what `record` says; a block is collected on the host in a set of `buffers`.

        contributions: what adds them up besides, where the record asks for them.
        """
        self._model, self._record, self._batches = model, record, batches
        self._contributions = contributions
        self._sites = list(record.sites)
        if record.gate_sign and "mlp.gate" not in self._sites:
            self._sites.append("mlp.gate")
        self._layers = sorted({layer for site in record.sites for layer in record.layers(site)})
        experts = {spec.layer for spec in model.spec.layers if spec.expert is not None}
        self._packer = packer_for(model.device, record, buffers, experts)
        of_sums = contributions.scaled_layers if contributions is not None else ()
        self._scales = WriteScales(model, record, of_sums)

    def fill(self, plans: Iterable[BlockPlan], progress: CaptureProgress) -> Iterator[FilledBlock]:
        """The blocks of the plans, filled, each to be released by its taker; two of them may be unreleased at once."""
        for plan in plans:
            self._packer.begin(plan)
            self._scales.begin(plan)
            if self._contributions is not None:
                self._contributions.begin(plan)
            for batch in self._batches(plan, len(self._record.plan.labels), self._record.plan.block_slots):
                self._run(batch)
                progress.filled(len(batch.columns.slots))
            self._scales.end()
            if self._contributions is not None:
                self._contributions.end()
            yield from map(self._completed, self._packer.finish())
        yield from map(self._completed, self._packer.drain())

    def _completed(self, filled: FilledBlock) -> FilledBlock:
        """A block with what is gathered of it beside the packer."""
        files = {} if self._contributions is None else self._contributions.take(filled.block)
        scales = self._scales.take(filled.block)
        if not files and not scales:
            return filled
        return dataclasses.replace(filled, arrays={**filled.arrays, **scales}, files=filled.files | files)

    def _run(self, batch: Batch) -> None:
        self._packer.batch(batch.columns)
        self._scales.batch()

        def sink(layer: int, site: str, values: Tensor, rows: Tensor | None) -> None:
            # An expert's rows stay where they are: to wait for them once per expert is to wait thousands of times per batch.
            self._check_rows(batch, layer, values.numel() // values.shape[-1] if rows is None else None)
            if site == WRITE_SCALE:
                self._scale(layer, values, batch.columns, rows)
                return
            self._packer.pack(layer, site, values, batch.columns, rows)
            if self._contributions is not None:
                columns = batch.columns if rows is None else routed_columns(batch.columns, rows.cpu().numpy())
                self._contributions.add(layer, site, as_packable(values), columns)

        self._model.forward(
            batch.input_ids,
            batch.attention_mask,
            sites=self._sites,
            layers=self._layers,
            sink=sink,
            extra=batch.extra,
            scales=bool(self._scales.layers),
        )

    def _scale(self, layer: int, factor: Tensor, columns: Columns, rows: Tensor | None) -> None:
        """Take a factor of a layer's scale; what it completes is kept, and summed with."""
        scale = self._scales.add(layer, factor, rows)
        if scale is None:
            return
        self._scales.keep(layer, scale, columns)
        if self._contributions is not None:
            if scale.rows is not None:
                columns = routed_columns(columns, scale.rows.cpu().numpy())
            self._contributions.scale(layer, scale.values, columns)

    def _check_rows(self, batch: Batch, layer: int, n_rows: int | None) -> None:
        if n_rows is not None and batch.n_rows not in (None, n_rows):
            raise ModelError(
                f"Layer {layer} of {self._model.spec.name} ({self._model.spec.layers[layer].module}) holds {n_rows} rows for "
                f"a batch of images, not the {batch.n_rows} positions that were planned. Leave it out of `layers`."
            )


def fill_blocks(
    folder: Folder,
    record: CaptureRecord,
    model: LoadedModel,
    writer: CaptureWriter,
    blocks: Iterable[int],
    progress: CaptureProgress,
    batches: Batches = batches_of,
) -> None:
    """Run the model over `blocks` and commit each."""
    plan = Plan(folder, record.name, record.plan, record.plan_files)
    contributions = RunningContributions.of(folder, record, model)
    filler = BlockFiller(model, record, block_buffers(record, writer.n_blocks_in_use), batches, contributions)
    submit_blocks(filler.fill(map(plan.block, blocks), progress), writer)


def submit_blocks(blocks: Iterable[FilledBlock], writer: CaptureWriter) -> None:
    """Hand filled blocks to the writer, which releases each when it is written."""
    for filled in blocks:
        writer.submit(filled.block, filled.arrays, filled.statistics, filled.began, filled.files, filled.release)
        del filled  # with its statistics, which nobody needs while the next block is filled


def packer_for(
    device: torch.device, record: CaptureRecord, buffers: BufferPool[Buffers], experts: Collection[int]
) -> Packer:
    """The packer for values that a model computes on `device`; the arguments are those of `HostPacker`."""
    if device.type == "cuda":
        from actstore.engine.capture.gpu.packing import DevicePacker  # only here: it loads Triton

        return DevicePacker(record, device, buffers)
    return HostPacker(record, buffers, experts)
