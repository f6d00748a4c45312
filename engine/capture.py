"""Plan and model to store: runs the model over a planned corpus, block by block, and keeps what was asked for.

The one module that brings model, plan, kernels and store together. Knows nothing about architectures (`models`), about
bytes on disk (`store`), or about how a value is packed (`kernels`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from actstore.kernels.pack.api import Columns, pack, pack_signs, quantise, sparsify
from actstore.store import layout
from actstore.store.plans import Plan
from actstore.store.statistics import CaptureStatistics
from actstore.store.writer import block_arrays

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.engine.models import LoadedModel
    from actstore.engine.progress import CaptureProgress
    from actstore.store.folder import Folder
    from actstore.store.plans import BlockPlan
    from actstore.store.records import CaptureRecord
    from actstore.store.writer import BlockArraySpec, CaptureWriter

MODEL_DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


@dataclass(frozen=True)
class Batch:
    """What one forward pass reads and where its rows go."""

    input_ids: Tensor
    """[window, position], padded on the right."""
    attention_mask: Tensor | None
    """[window, position]; None where nothing is padded."""
    columns: Columns


def batches_of(plan: BlockPlan, n_labels: int, block_slots: int) -> Iterator[Batch]:
    """The batches of a block in their planned order; label id `n_labels` is carried by every window."""
    input_starts = np.cumsum([0, *plan.windows["n_inputs"]])
    slot_starts = np.cumsum([0, *plan.windows["n_slots"]])
    labels = np.concatenate([plan.labels, np.full((len(plan.labels), 1), n_labels, np.int32)], axis=1)
    for batch in plan.batches():
        lengths = plan.windows["n_inputs"][batch]
        longest = int(lengths.max())
        ids = np.zeros((len(lengths), longest), np.int64)
        for row, start, length in zip(range(len(lengths)), input_starts[batch], lengths, strict=True):
            ids[row, :length] = plan.inputs[start : start + length]
        padded = bool((lengths != longest).any())
        n_slots = plan.windows["n_slots"][batch]
        first, last = int(slot_starts[batch.start]), int(slot_starts[batch.stop])
        window_of_slot = np.repeat(np.arange(len(lengths)), n_slots)
        columns = Columns(
            rows=window_of_slot * longest + plan.position[first:last],
            slots=np.arange(first, last),
            segments=np.concatenate([[0], np.cumsum(n_slots)]),
            labels=labels[batch],
            counted=plan.modality[first:last] != layout.SPECIAL,
            first_token=plan.block * block_slots,
        )
        mask = torch.from_numpy(np.arange(longest) < lengths[:, None]).long() if padded else None
        yield Batch(torch.from_numpy(ids), mask, columns)


def routed_columns(columns: Columns, rows: NDArray[np.int64]) -> Columns:
    """The columns of an expert that saw only `rows` of the batch; its values come in the order of `rows`."""
    order = np.argsort(rows, kind="stable")
    at = np.searchsorted(rows[order], columns.rows)
    at = np.minimum(at, max(len(rows) - 1, 0))
    seen = rows[order][at] == columns.rows if len(rows) else np.zeros(len(columns.rows), bool)
    segment = np.repeat(np.arange(len(columns.segments) - 1), np.diff(columns.segments))
    return Columns(
        rows=order[at[seen]] if len(rows) else np.empty(0, np.int64),
        slots=columns.slots[seen],
        segments=np.concatenate([[0], np.cumsum(np.bincount(segment[seen], minlength=len(columns.segments) - 1))]),
        labels=columns.labels,
        counted=columns.counted[seen],
        first_token=columns.first_token,
    )


class BlockFiller:
    """Runs the model over one block after another and packs what it computes into buffers and statistics."""

    def __init__(self, model: LoadedModel, record: CaptureRecord) -> None:
        """Capture what `record` says."""
        self._model, self.record = model, record
        self._staging = layout.staging_format(record.precision, record.dtype)
        self._sites = list(record.sites)
        if record.gate_sign and "mlp.gate" not in self._sites:
            self._sites.append("mlp.gate")
        self._layers = sorted({layer for site in record.sites for layer in record.layers(site)})
        self._experts = {spec.layer for spec in model.spec.layers if spec.expert is not None}
        self._n_labels = len(record.plan.labels)

    def fill(self, plan: BlockPlan, arrays: dict[str, NDArray[Any]], progress: CaptureProgress) -> CaptureStatistics:
        """The statistics of a block, whose values go into `arrays` (key → [neuron, slot], contents undefined)."""
        statistics = CaptureStatistics.empty(self.record)
        n_used = len(plan.position)
        for layer in self.record.gate_sign:
            arrays[layout.gate_sign_key(self.record.name, layer)].fill(0)
        for site in self.record.sites if self._staging else ():
            assert self._staging is not None
            for layer in self.record.layers(site):
                array = arrays[layout.values_key(self.record.name, site, layer)]
                # An expert has values only where it was routed; a dense layer everywhere but in the padding slots.
                empty = slice(0 if layer in self._experts else n_used, None)
                array[:, empty] = self._staging.fill_value
        for batch in batches_of(plan, self._n_labels, self.record.plan.block_slots):
            self._run(batch, arrays, statistics)
            progress.filled(len(batch.columns.slots))
        return statistics

    def _run(self, batch: Batch, arrays: dict[str, NDArray[Any]], statistics: CaptureStatistics) -> None:
        columns = batch.columns
        _count_labels(columns, statistics.label_tokens)

        def sink(layer: int, site: str, values: Tensor, rows: Tensor | None) -> None:
            if values.dtype not in MODEL_DTYPES:
                values = values.float()
            values = values.reshape(-1, values.shape[-1]).to("cpu")
            here = columns if rows is None else routed_columns(columns, rows.cpu().numpy())
            if (site, layer) in statistics.sites:
                out = arrays.get(layout.values_key(self.record.name, site, layer))
                pack(values, here, out, statistics.sites[site, layer])
            if site == "mlp.gate" and layer in statistics.gate_positives:
                bits = arrays[layout.gate_sign_key(self.record.name, layer)]
                pack_signs(values, here, bits, statistics.gate_positives[layer])

        self._model.forward(batch.input_ids, batch.attention_mask, sites=self._sites, layers=self._layers, sink=sink)

    def encode(self, plan: BlockPlan, staged: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The arrays to be written for a block whose buffers are filled: quantised, thresholded, or as they are."""
        if self.record.precision not in ("int8", "sparse"):
            return staged
        arrays = dict(staged)
        used = np.arange(self.record.plan.block_slots) < len(plan.position)
        for site in self.record.sites:
            for layer in self.record.layers(site):
                key = layout.values_key(self.record.name, site, layer)

                def parameter(name: str, values: NDArray[Any], site: str = site, layer: int = layer) -> None:
                    arrays[layout.block_parameters_key(self.record.name, site, layer, name)] = values[:, None]

                if self.record.precision == "int8":
                    arrays[key], scale = quantise(staged[key])
                    arrays[key][_is_nan(staged[key])] = layout.NO_VALUE_INT8
                    parameter("scale", scale)
                else:
                    assert self.record.keep is not None
                    threshold, dropped = sparsify(staged[key], self.record.keep, used)
                    parameter("threshold", threshold)
                    parameter("dropped", dropped)
        return arrays


def _is_nan(values: NDArray[Any]) -> NDArray[np.bool_]:
    if values.dtype == np.uint16:
        values = layout.decode_values(values, None)
    missing: NDArray[np.bool_] = np.isnan(values)
    return missing


def _count_labels(columns: Columns, label_tokens: NDArray[np.int64]) -> None:
    """Add the counted tokens of each window to its labels."""
    counted = np.add.reduceat(np.append(columns.counted, False).astype(np.int64), columns.segments[:-1])
    counted[np.diff(columns.segments) == 0] = 0
    for column in columns.labels.T:
        labelled = column >= 0
        np.add.at(label_tokens, column[labelled], counted[labelled])


def staging_buffers(record: CaptureRecord, writer: CaptureWriter) -> dict[str, NDArray[Any]]:
    """The current block's buffers for everything that is collected token by token."""
    staging = layout.staging_format(record.precision, record.dtype)
    buffers = {}
    for spec in block_arrays(record):
        if spec.dimension != "block":
            dtype = _staging_dtype(spec, staging)
            buffers[spec.key] = writer.buffer(spec.key, (spec.rows, spec.columns), dtype)
    return buffers


def _staging_dtype(spec: BlockArraySpec, staging: layout.ValueFormat | None) -> np.dtype[Any]:
    return staging.dtype if staging and spec.dimension == "token" else spec.dtype


def fill_blocks(
    folder: Folder,
    record: CaptureRecord,
    model: LoadedModel,
    writer: CaptureWriter,
    blocks: list[int],
    progress: CaptureProgress,
) -> None:
    """Run the model over `blocks` and commit each."""
    plan, filler = Plan(folder, record.name, record.plan), BlockFiller(model, record)
    for block in blocks:
        began = time.monotonic()
        block_plan = plan.block(block)
        staged = staging_buffers(record, writer)
        statistics = filler.fill(block_plan, staged, progress)
        writer.submit(block, filler.encode(block_plan, staged), statistics.encode, began)
