"""Sizes of a capture: bytes of buffers per token slot while it is filled, and bytes that it is expected to take on disk."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, cast

import psutil

from actstore.engine.capture.buffers import buffer_nbytes
from actstore.store.capture.plan import CHUNK, TOKEN_ARRAYS
from actstore.store.capture.statistics.exemplars import has_exemplars
from actstore.store.capture.tokens.order import order_of_sites
from actstore.store.errors import InvalidInputError
from actstore.store.files.block_arrays import block_arrays
from actstore.store.files.precision import PRECISIONS
from actstore.store.layout import ValueFormat

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from actstore.engine.models.load import ModelSpec
    from actstore.store.files.records import CaptureRecord

LEAST_MEMORY: Final = 1 << 30
MOST_MEMORY: Final = 32 << 30
"""Bounds of the memory that blocks are planned for where nothing is said."""
MEMORY_PER_WEIGHT: Final = 3
"""Of the weights of a model's MLPs: so much do blocks take by default, if not more or less than these bounds."""
MOST_FILES: Final = 100_000
"""Captures that would have more files are bundled unless told: copying, listing and quotas of file systems become a matter of
their number. With fewer, files of their own are simpler: any Zarr reader opens them, and a repair writes one shard."""
STATISTICS_NBYTES: Final = 250
"""Of one neuron and block, compressed; likewise measured."""
EXEMPLAR_NBYTES: Final = 80
"""Of one exemplar in their table, with the tokens around it; likewise measured."""


def bytes_per_slot(record_sites: dict[str, dict[int, int]], precision: str, dtype: str, n_gate_neurons: int) -> float:
    """Bytes that one token slot takes in the staging buffers."""
    staging = PRECISIONS[precision](dtype).staging_format
    width = sum(w for layers in record_sites.values() for w in layers.values())
    return (staging.dtype.itemsize * width if staging else 0) + n_gate_neurons / 8


def default_memory(n_neurons: int, d_model: int, dtype: str) -> int:
    """Bytes that blocks may take where nothing is said: a few times the weights of the MLPs, three matrices of each.

    Who can run a model has memory of that order, and a model without much memory around it is captured without much: its blocks
    would be most of it. Large models need large blocks: the statistics of a block cost the host the same however few
    tokens it has, for a 7B model at 2,048 tokens as much as its values. A matter of the model, not of the machine.
    """
    weights = 3 * n_neurons * d_model * ValueFormat(dtype).dtype.itemsize
    return max(LEAST_MEMORY, min(MOST_MEMORY, MEMORY_PER_WEIGHT * weights))


def memory_of_model(spec: ModelSpec, dtype: str) -> int:
    """`default_memory` of a model, all of its layers with neurons together."""
    return default_memory(sum(layer.neurons for layer in spec.layers), spec.d_model, dtype)


def planned_slots(
    slot_nbytes: float, memory: int | None, block_tokens: int | None, most: int, default: int = LEAST_MEMORY
) -> int:
    """The slots of a block: `block_tokens`, else as many as fit into `memory`, or `default`, and at most `most`.

    What is free on this machine does not count: a plan is the same wherever it is made. `InvalidInputError` where `memory` and
    `block_tokens` are said and do not fit.
    """
    # Two sets of buffers where a GPU fills them, one elsewhere, and what encoding adds.
    nbytes = 2.5 * slot_nbytes
    if block_tokens is None:
        return min(most, int((memory or default) / nbytes)) if nbytes else most
    if memory is not None and block_tokens * nbytes > memory:
        raise InvalidInputError(
            f"Blocks of {block_tokens:,} tokens take up to {block_tokens * nbytes / 1e9:.2f} GB of buffers, more than the "
            f"{memory / 1e9:.2f} GB of `memory`. Raise `memory`, or lower `block_tokens`."
        )
    return block_tokens


def estimate_nbytes(record: CaptureRecord) -> int:
    """The expected size of a capture on disk, in bytes."""
    width = sum(w for site in record.sites for w in record.layers(site).values())
    per_slot = width * record.encoding.bytes_per_value
    per_slot += sum(record.layers("mlp.post")[layer] for layer in record.gate_sign) / 8
    per_slot += 4 * len(record.write_scale)
    n_exemplars = width * record.n_exemplars if has_exemplars(record) else 0
    of_blocks = record.plan.n_blocks * (record.plan.block_slots * per_slot + STATISTICS_NBYTES * width)
    return int(of_blocks + EXEMPLAR_NBYTES * n_exemplars)


def files_per_block(record: CaptureRecord) -> int:
    """Objects that a block of a capture is made of, its commit record among them."""
    if record.bundled:
        return 2
    has_answers = record.settings.get("command") == "attribute"
    return sum(1 for _ in block_arrays(record)) + 2 + has_answers


def estimate_objects(record: CaptureRecord) -> int:
    """The number of files of a capture, or of objects: those of its blocks, of its arrays, of its plan.

    What is left out is some dozens: tables, and statistics of all blocks.
    """
    plan = record.plan
    n_arrays = sum(1 for _ in block_arrays(record))
    n_plan = (1 + len(TOKEN_ARRAYS)) * (1 + -(-plan.n_blocks * plan.block_slots // CHUNK))
    return plan.n_blocks * files_per_block(record) + n_arrays + n_plan


def with_bundles(record: CaptureRecord, bundle: bool | None) -> CaptureRecord:
    """The record of a capture whose blocks are bundled as `bundle` says; with None, where that spares it too many files."""
    if bundle is None:
        files, bundled = (replace(record, bundled=kind) for kind in (False, True))
        bundle = MOST_FILES < estimate_objects(files) > estimate_objects(bundled)
    return replace(record, bundled=bundle)


def with_storage(record: CaptureRecord, requested: Mapping[str, object]) -> CaptureRecord:
    """The record of a new capture with how it is stored: bundled, compressed and ordered as requested, else by default."""
    usual = PRECISIONS[record.precision].default_compression
    order = order_of_sites(cast("str | None", requested.get("order")), record.sites)
    stored = replace(record, compression=cast("str | None", requested.get("compression")) or usual, order=order)
    return with_bundles(stored, cast("bool | None", requested.get("bundle")))


def n_buffers_on(device: torch.device) -> int:
    """Sets of buffers in which blocks are collected: where a GPU computes, one is filled while another is encoded."""
    return 1 if device.type == "cpu" else 2


def check_memory(record: CaptureRecord, n_buffers: int) -> None:
    """Raise `InvalidInputError` where there is no room for the buffers in which blocks are collected, `n_buffers` sets."""
    needed = n_buffers * buffer_nbytes(record)
    free = psutil.virtual_memory().available
    if needed > free:
        raise InvalidInputError(
            f"Blocks of {record.plan.block_slots:,} tokens take {needed / 1e9:.2f} GB of memory while capture {record.name!r} "
            f"is filled, and {free / 1e9:.2f} GB are free. Fill it on a machine with more, or plan it for less `memory` or "
            "fewer `block_tokens`."
        )
