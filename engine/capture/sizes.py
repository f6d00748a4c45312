"""Sizes of a capture: bytes of buffers per token slot while it is filled, and bytes that it is expected to take on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import psutil

from actstore.store.capture.statistics.exemplars import has_exemplars
from actstore.store.files.precision import PRECISIONS

if TYPE_CHECKING:
    from actstore.store.files.records import CaptureRecord

DEFAULT_MEMORY: Final = 4 << 30
STATISTICS_NBYTES: Final = 250
"""Of one neuron and block, compressed; likewise measured."""
EXEMPLAR_NBYTES: Final = 80
"""Of one exemplar in their table, with the tokens around it; likewise measured."""


def bytes_per_slot(record_sites: dict[str, dict[int, int]], precision: str, dtype: str, n_gate_neurons: int) -> float:
    """Bytes that one token slot takes in the staging buffers."""
    staging = PRECISIONS[precision](dtype).staging_format
    width = sum(w for layers in record_sites.values() for w in layers.values())
    return (staging.dtype.itemsize * width if staging else 0) + n_gate_neurons / 8


def affordable_slots(slot_nbytes: float, memory: int | None, most: int) -> int:
    """The slots, at most `most`, of which buffers fit into `memory`; by default a quarter of what is free, at most 4 GiB."""
    if not slot_nbytes:
        return most
    memory = memory or min(DEFAULT_MEMORY, psutil.virtual_memory().available // 4)
    # Two sets of buffers where a GPU fills them, one elsewhere, and what encoding adds.
    return min(most, int(memory / (2.5 * slot_nbytes)))


def estimate_nbytes(record: CaptureRecord) -> int:
    """The expected size of a capture on disk, in bytes."""
    width = sum(w for site in record.sites for w in record.layers(site).values())
    per_slot = width * record.encoding.bytes_per_value
    per_slot += sum(record.layers("mlp.post")[layer] for layer in record.gate_sign) / 8
    n_exemplars = width * record.n_exemplars if has_exemplars(record) else 0
    of_blocks = record.plan.n_blocks * (record.plan.block_slots * per_slot + STATISTICS_NBYTES * width)
    return int(of_blocks + EXEMPLAR_NBYTES * n_exemplars)
