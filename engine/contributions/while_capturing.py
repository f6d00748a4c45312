"""Contributions to next tokens, added up while a capture runs the model, so that no activation need be stored for them.

The neurons of a batch are held against the next token of each position where they are computed, and summed by label: what
`rank` makes of a stored capture, without the store in between. On a GPU, activations and weights stay where they are.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from actstore.engine.contributions.next_tokens import NextTokens
from actstore.engine.contributions.source import SITE, slot_labels
from actstore.engine.models.writing.path import is_scaled
from actstore.kernels.contribution.api import ContributionSums, Targets, sum_contributions
from actstore.store.capture.statistics.contribution_sums import encode_sums, label_ids, sums_by
from actstore.store.errors import InvalidInputError
from actstore.store.layout import block_contributions_key
from actstore.store.model.directions import WriteDirections
from actstore.store.reader import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.engine.models.load import LoadedModel
    from actstore.kernels.pack.columns import Columns
    from actstore.store.capture.plan import BlockPlan
    from actstore.store.files.records import CaptureRecord
    from actstore.store.reader import Capture
    from actstore.store.storage.folder import Folder


class RunningContributions:
    """The sums of one block after another: `begin`, then `add` for each batch and layer, then `end`."""

    def __init__(self, capture: Capture, model: LoadedModel, unembedding: Tensor) -> None:
        """Of a planned capture that asks for them; `unembedding` is that of the `model`, which computes the activations."""
        self._capture, self._record = capture, capture.record
        self._by = sums_by(capture.record)[1]
        self._labels = label_ids(capture.record, self._by)
        self._next_tokens = NextTokens(capture)
        norms = model.final_norm(), model.post_norm
        self._directions = WriteDirections.of_model(model.write_vectors, unembedding, *norms)
        self._layers = [
            one.layer for one in capture.store.model.head_layers if one.layer in capture.record.layers(SITE)
        ]
        self._files: dict[int, dict[str, bytes]] = {}
        self.scaled_layers = frozenset(layer for layer in self._layers if is_scaled(model.scaled_by(layer)))
        """Layers whose activations wait for the scale of what they write, which comes after them."""
        self._waiting: dict[int, Tensor] = {}

    @classmethod
    def of(cls, folder: Folder, record: CaptureRecord, model: LoadedModel) -> RunningContributions | None:
        """What a capture's record asks for; None where it asks for nothing, `InvalidInputError` for a model without a head."""
        if not sums_by(record)[0]:
            return None
        unembedding = model.unembedding()
        if unembedding is None:
            raise InvalidInputError(
                f"Contributions are to logits, and {model.spec.name} has no unembedding. Leave `contributions` out."
            )
        return cls(Store(folder).peek(record.name), model, unembedding)

    def begin(self, plan: BlockPlan) -> None:
        """Start on a block."""
        following = self._next_tokens.of_block(plan.block)
        labels, is_counted = slot_labels(self._capture, self._by, self._labels, plan.block)
        is_summed = is_counted & (following >= 0)
        self._block = plan.block
        self._next = np.where(is_summed, following, 0)  # [slot]
        self._groups = np.where(is_summed, labels, -1)  # [slot]
        self._sums = {
            layer: ContributionSums.empty(len(self._labels), self._record.layers(SITE)[layer]) for layer in self._layers
        }

    def add(self, layer: int, site: str, values: Tensor, columns: Columns) -> None:
        """Add a batch of a layer's activations [row, neuron], in a format that kernels take: those at the rows of `columns`.

        Of `scaled_layers` they are added once `scale` brings what they are multiplied with.
        """
        if site != SITE or layer not in self._sums:
            return
        if layer in self.scaled_layers:
            self._waiting[layer] = values.clone()  # valid during the call only
        else:
            self._add(layer, values, columns, None)

    def scale(self, layer: int, scale: Tensor, columns: Columns) -> None:
        """Add the activations of a layer that wait for their scale [row]; `columns` as for `add`."""
        if (values := self._waiting.pop(layer, None)) is not None:
            of_rows = scale.float().cpu().numpy()
            self._add(layer, values, columns, np.where(np.isfinite(of_rows), of_rows, np.float32(0)))

    def _add(self, layer: int, values: Tensor, columns: Columns, scale: NDArray[np.float32] | None) -> None:
        groups, following = np.full(len(values), -1, np.int64), np.zeros(len(values), np.int64)  # [row]
        groups[columns.rows], following[columns.rows] = self._groups[columns.slots], self._next[columns.slots]
        if (groups < 0).all():
            return
        targets = Targets(self._unembedding, following, self._gain, scale)
        vectors = self._directions.vectors(layer)
        # Out of the mode of the forward pass: the kernel's threads are in none, and may not write to tensors made in it.
        with torch.inference_mode(False), torch.no_grad():
            sums = sum_contributions(values, vectors, targets, groups, len(self._labels), token_major=True)
        self._sums[layer].merge(sums)

    def end(self) -> None:
        """End the block: its file is there to be taken."""
        # Of an expert, a position that is not routed to it counts as 0.
        count = np.bincount(self._groups[self._groups >= 0], minlength=len(self._labels)).astype(np.int64)
        key = block_contributions_key(self._record.name, self._block)
        self._files[self._block] = {key: encode_sums(self._sums, count)}

    def take(self, block: int) -> dict[str, bytes]:
        """The file of a block that was ended, by its key."""
        return self._files.pop(block)

    @cached_property
    def _unembedding(self) -> Tensor:
        return self._directions.unembedding()

    @cached_property
    def _gain(self) -> NDArray[np.float32] | None:
        gain = self._directions.gain
        return None if gain is None else gain.float().cpu().numpy()
