"""Write scales: what each position multiplies the write vectors of a layer with, gathered while a model runs, block by block.

A norm after the feed-forward scales them by one over the root mean square of its input, a mixture by the routing weight of the
expert: one float32 per position and layer, kept beside the activations in an array of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from actstore.engine.capture.packing import routed_columns
from actstore.engine.models.writing.scales import Scale, ScaleFactors
from actstore.store.layout import write_scale_key

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.engine.models.load import LoadedModel
    from actstore.kernels.pack.columns import Columns
    from actstore.store.capture.plan import BlockPlan
    from actstore.store.files.records import CaptureRecord


class _Part(NamedTuple):
    """What one batch has of a layer, on the device that computed it."""

    scale: Scale
    columns: Columns
    """Of the whole batch."""


class WriteScales:
    """The scales of one block after another: `begin`, then `batch` and its factors for each, then `end`."""

    def __init__(self, model: LoadedModel, record: CaptureRecord, of_sums: Collection[int] = ()) -> None:
        """Those of the layers that the record keeps, and of `of_sums`, whose scales are wanted while the model runs."""
        self._record, self._kept = record, frozenset(record.write_scale)
        self._factors = ScaleFactors(model, self._kept | {*of_sums})
        self._blocks: dict[int, dict[str, NDArray[np.float32]]] = {}

    @property
    def layers(self) -> Collection[int]:
        """The layers of which factors are awaited."""
        return self._factors.layers

    def begin(self, plan: BlockPlan) -> None:
        """Start on a block."""
        self._block = plan.block
        self._parts: dict[int, list[_Part]] = {layer: [] for layer in self._kept}

    def batch(self) -> None:
        """Start on a batch."""
        self._factors.begin()

    def add(self, layer: int, factor: Tensor, rows: Tensor | None) -> Scale | None:
        """As `ScaleFactors.add`."""
        return self._factors.add(layer, factor, rows)

    def keep(self, layer: int, scale: Scale, columns: Columns) -> None:
        """Keep a complete scale, at the slots of the batch's `columns`; nothing waits for the device."""
        if layer in self._kept:
            # Inside the forward pass, memory that it may use again: a copy.
            rows = None if scale.rows is None else scale.rows.clone()
            self._parts[layer].append(_Part(Scale(scale.values.clone(), rows), columns))

    def end(self) -> None:
        """End the block: its arrays are there to be taken."""
        arrays = {}
        for layer, parts in self._parts.items():
            scale = np.zeros((1, self._record.plan.block_slots), np.float32)
            if parts:
                # Brought to the host once per layer and block.
                values = torch.cat([part.scale.values for part in parts]).cpu().numpy()
                seen = [part.scale.rows for part in parts if part.scale.rows is not None]
                rows = torch.cat(seen).cpu().numpy() if seen else None
                first = 0
                for part in parts:
                    stop, columns = first + len(part.scale.values), part.columns
                    if part.scale.rows is not None:
                        assert rows is not None
                        columns = routed_columns(columns, rows[first:stop])
                    scale[0, columns.slots] = values[first:stop][columns.rows]
                    first = stop
            arrays[write_scale_key(self._record.name, layer)] = scale
        self._blocks[self._block] = arrays

    def take(self, block: int) -> dict[str, NDArray[np.float32]]:
        """The arrays of a block that was ended, by their keys."""
        return self._blocks.pop(block)
