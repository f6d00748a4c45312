"""Batches as tensors of torch, on any of its devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import IterableDataset

from actstore.store.batches.loader import Batches
from actstore.store.batches.mixed import MixedBatches

if TYPE_CHECKING:
    from collections.abc import Mapping

    from actstore.kernels.token_rows.api import Decoding
    from actstore.store.batches.batch import Batch
    from actstore.store.batches.selection import Selection
    from actstore.store.batches.settings import BatchSettings
    from actstore.store.batches.window import Rows
    from actstore.store.capture.reader import Capture


class TensorBatches(Batches, IterableDataset[Any]):
    """Batches of a capture's tokens as tensors; a dataset for `torch.utils.data.DataLoader(batches, batch_size=None)`."""

    def __init__(
        self,
        capture: Capture,
        settings: BatchSettings,
        selection: Selection,
        counts: Mapping[int, int],
        device: str = "cpu",
    ) -> None:
        super().__init__(capture, settings, selection, counts)
        self.device = device

    def _is_as_stored(self, rows: Rows) -> bool:
        return self.device == "cpu" and super()._is_as_stored(rows)

    def _empty(self, n: int) -> Any:
        if self.device == "cpu":
            return super()._empty(n)
        shape = n, self._reader.starts[-1]
        return torch.empty(shape, dtype=getattr(torch, self.settings.dtype), device=self.device)

    def _decode(self, rows: Rows, part: slice, out: Any, to: slice) -> None:
        if self.device == "cpu":
            super()._decode(rows, part, out, to)
            return
        raw = as_tensor(rows.raw[part]).to(self.device)
        blocks = torch.from_numpy(rows.blocks(part)).to(self.device) if rows.decoding.scales is not None else None
        out[to] = decoded(raw, blocks, rows.decoding)

    def _finished(self, batch: Batch) -> Batch:
        if self.device == "cpu":
            return batch._with_arrays(as_tensor)
        return batch._with_arrays(
            lambda values: values if torch.is_tensor(values) else torch.from_numpy(values).to(self.device)
        )


class MixedTensorBatches(MixedBatches, IterableDataset[Any]):
    """Batches of several sources as tensors; a dataset for `torch.utils.data.DataLoader(batches, batch_size=None)`."""


def as_tensor(values: Any) -> torch.Tensor:
    """A tensor of the memory of an array, whose bits of bfloat16 are uint16."""
    if values.dtype == np.uint16:
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def decoded(raw: torch.Tensor, blocks: torch.Tensor | None, decoding: Decoding) -> torch.Tensor:
    """`kernels.token_rows.decode_rows` of rows that are on a device; float32 [row, neuron]."""

    def there(values: Any) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(raw.device)

    values = raw.float()
    if decoding.scales is not None:
        bits = decoding.scales.view(np.uint32)
        scales, is_marked = (
            there((bits & ~np.uint32(1)).view(np.float32))[blocks],
            there((bits & 1).astype(np.bool_))[blocks],
        )
        values = torch.where(is_marked & (values.abs() == 127), values * torch.inf, values * scales)
        values = torch.where(raw == -128, torch.nan, values)
    if np.isfinite(decoding.limit).any():
        limit = there(decoding.limit)
        values = torch.minimum(torch.maximum(values, -limit), limit)
    if decoding.shift.any():
        values = values - there(decoding.shift)
    if (decoding.factor != 1).any():
        values = values * there(decoding.factor)
    return values
