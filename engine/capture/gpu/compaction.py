"""Sparse blocks on their way from a GPU: compacted there, and made again, rows by rows, by the thread that writes them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from actstore.engine.capture.gpu.buffers import as_numpy
from actstore.kernels.compaction import gpu
from actstore.kernels.compaction.compacted import Compacted, nbytes_per_neuron
from actstore.kernels.compaction.rows import CompactedRows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from actstore.store.files.records import CaptureRecord
    from actstore.store.files.rows import Rows

WORTHWHILE: Final = 0.75
"""A block is compacted where that takes at most this share of its bytes: it costs the device a pass over the values."""
SEPARATOR: Final = "#"
"""Between the key of an array and the name of a part of it; keys have none."""


class Compaction:
    """How the values of a capture's blocks leave the device.

    A neuron keeps at most its share of the block's slots, so that what is copied has one size, known before anything is
    computed, and no copy waits for a count. Infinities and NaN are kept beyond the share: a layer in which a neuron has more
    entries than there is room for is copied as it is.
    """

    def __init__(self, record: CaptureRecord) -> None:
        """For blocks of `record`."""
        encoding, n_slots = record.encoding, record.plan.block_slots
        self._staging = encoding.staging_format
        self.capacity = math.ceil(n_slots * encoding.keep) if encoding.uses_keep and encoding.keep else 0
        itemsize = self._staging.dtype.itemsize if self._staging else 1
        share = nbytes_per_neuron(n_slots, self.capacity, itemsize) / (n_slots * itemsize)
        self.is_used = bool(self.capacity) and share <= WORTHWHILE
        """Whether values are compacted at all."""

    def parts(self, key: str, values: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The parts of a sparsified block [neuron, slot], each under a key of its own."""
        assert self._staging is not None
        fill = np.full(1, self._staging.fill_value, self._staging.dtype)
        missing = int(fill.view(f"i{fill.itemsize}")[0])
        compacted = gpu.compact(values, gpu.common_row(values, missing), self.capacity)
        for name, part in compacted.parts().items():
            yield f"{key}{SEPARATOR}{name}", part

    def collect(self, host: Mapping[str, Tensor], on_device: Mapping[str, Tensor]) -> dict[str, Rows]:
        """The arrays whose tensors are in `host`; those that could not be compacted are copied from `on_device` now."""
        arrays: dict[str, Rows] = {}
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in host.items():
            whole, _, name = key.partition(SEPARATOR)
            if name:
                parts.setdefault(whole, {})[name] = tensor
            else:
                arrays[key] = as_numpy(tensor)
        for key, of_key in parts.items():
            if int(of_key["totals"].max()) > self.capacity:
                values = on_device[key]
                arrays[key] = as_numpy(torch.empty_like(values, device="cpu").copy_(values))
            else:
                assert self._staging is not None
                compacted: Compacted[Any] = Compacted(**{name: part.numpy() for name, part in of_key.items()})
                arrays[key] = CompactedRows(compacted, self._staging.dtype)
        return arrays
