"""Fills blocks of windows that share prefixes: every distinct prefix runs through the model once.

The prefixes of a block's windows are a tree. A causal model reads it one depth at a time, and the activations of a token are
those of the node of its prefix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch

from actstore.engine.capture.block_filler import BlockFiller, packer_for, submit_blocks
from actstore.engine.capture.buffers import block_buffers
from actstore.engine.graphs.probes.stepping import Steps, hook_points_of, keeps_everything, narrow_attention
from actstore.kernels.pack.columns import Columns
from actstore.store import layout
from actstore.store.capture.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.engine.capture.buffers import BufferPool, Buffers
    from actstore.engine.capture.packing import FilledBlock
    from actstore.engine.capture.progress import CaptureProgress
    from actstore.engine.models.load import LoadedModel
    from actstore.store.capture.plan import BlockPlan
    from actstore.store.capture.writer import CaptureWriter
    from actstore.store.files.records import CaptureRecord
    from actstore.store.storage.folder import Folder

LARGEST: Final = 1 << 29
"""Maximum number of bytes of keys and values, and of activations, of a block that is read as a tree."""


class PrefixTree(NamedTuple):
    """The distinct prefixes of windows, by length."""

    ids: list[NDArray[np.int64]]
    """The last token of each prefix: one array per length, shortest first."""
    parents: list[NDArray[np.int64]]
    """The index, among the prefixes shorter by one, of the one that it continues; shape of `ids`, zeros for the first."""
    nodes: NDArray[np.int64]
    """[input] the prefix that ends there, numbered over all lengths."""

    @property
    def n_nodes(self) -> int:
        """Number of distinct prefixes."""
        return sum(map(len, self.ids))


def prefix_tree(inputs: NDArray[np.int32], lengths: NDArray[np.integer]) -> PrefixTree:
    """The prefixes of windows of `lengths` [window], whose tokens are concatenated in `inputs` [input]; none may be empty."""
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])[:-1]
    nodes = np.empty(len(inputs), np.int64)
    ids, parents = [], []
    before, first, depth = np.zeros(len(lengths), np.int64), 0, 0
    while (longer := np.flatnonzero(lengths > depth)).size:
        index = starts[longer] + depth
        # A prefix is its parent and its last token: one key of both.
        keys = before[longer] << 32 | inputs[index]
        prefixes, prefix = np.unique(keys, return_inverse=True)
        ids.append(prefixes & 0xFFFFFFFF)
        parents.append(prefixes >> 32)
        nodes[index] = first + prefix
        before[longer] = prefix
        first, depth = first + len(prefixes), depth + 1
    return PrefixTree(ids, parents, nodes)


class PrefixFiller:
    """Fills blocks as `BlockFiller` does, but for rounding, in less time where windows share prefixes."""

    def __init__(self, model: LoadedModel, record: CaptureRecord, buffers: BufferPool[Buffers]) -> None:
        """Capture what `record` says; `buffers` as for `BlockFiller`. Only for what `fits`."""
        self._model, self._record = model, record
        self._packer = packer_for(model.device, record, buffers, ())
        self._plain = BlockFiller(model, record, buffers)

    @staticmethod
    def fits(model: LoadedModel, record: CaptureRecord) -> bool:
        """Whether the record's activations of a model can be read token by token on a CPU."""
        only_post = list(record.sites) == ["mlp.post"] and not record.gate_sign
        return (
            only_post and model.device.type == "cpu" and keeps_everything(model) and hook_points_of(model) is not None
        )

    def fill(self, plans: Iterable[BlockPlan], progress: CaptureProgress) -> Iterator[FilledBlock]:
        """The blocks of the plans, filled, each to be released by its taker."""
        for plan in plans:
            tree = prefix_tree(plan.inputs, plan.windows["n_inputs"])
            if self._nbytes(tree) > LARGEST:
                yield from self._plain.fill([plan], progress)
                continue
            self._packer.begin(plan)
            columns = self._columns(plan, tree)
            self._packer.batch(columns)
            for layer, values in self._read(tree).items():
                self._packer.pack(layer, "mlp.post", values, columns)
            progress.filled(len(columns.slots))
            yield from self._packer.finish()

    def _nbytes(self, tree: PrefixTree) -> int:
        spec, itemsize = self._model.spec, self._model.dtype.itemsize
        # Keys and values of one depth and of the next; an upper bound, as if there were as many key heads as query heads.
        largest = max(len(ids) * (depth + 1) for depth, ids in enumerate(tree.ids))
        cache_values = 4 * len({layer.block for layer in spec.layers}) * spec.d_model * largest
        return itemsize * max(cache_values, tree.n_nodes * sum(layer.neurons for layer in spec.layers))

    def _columns(self, plan: BlockPlan, tree: PrefixTree) -> Columns:
        n_inputs, n_slots = plan.windows["n_inputs"], plan.windows["n_slots"]
        starts = np.cumsum(n_inputs) - n_inputs
        n_labels = len(self._record.plan.labels)
        return Columns(
            rows=tree.nodes[np.repeat(starts, n_slots) + plan.position],
            slots=np.arange(len(plan.position)),
            segments=np.concatenate([[0], np.cumsum(n_slots)]),
            labels=np.concatenate([plan.labels, np.full((len(plan.labels), 1), n_labels, np.int32)], axis=1),
            counted=plan.modality != layout.SPECIAL,
            first_token=plan.block * self._record.plan.block_slots,
        )

    def _read(self, tree: PrefixTree) -> dict[int, Tensor]:
        """The activations of every layer that reads text, [node, neuron]."""
        model, first = self._model, 0
        values = {
            layer: torch.empty((tree.n_nodes, model.spec.layers[layer].neurons), dtype=model.dtype)
            for layer in model.spec.part_layers("language")
        }

        def store(layer: int, _site: str, activations: Tensor, _rows: Tensor | None) -> None:
            values[layer][first : first + len(activations)] = activations

        steps = Steps(model, sink=store)
        for depth, (ids, parents) in enumerate(zip(tree.ids, tree.parents, strict=True)):
            steps.read(torch.from_numpy(ids)[:, None], torch.from_numpy(parents) if depth else None)
            first += len(ids)
        return values


def fill_by_prefix(
    folder: Folder,
    record: CaptureRecord,
    model: LoadedModel,
    writer: CaptureWriter,
    blocks: Iterable[int],
    progress: CaptureProgress,
) -> None:
    """Run the model over `blocks` and commit each."""
    plan = Plan(folder, record.name, record.plan, record.plan_files)
    filler = PrefixFiller(model, record, block_buffers(record, writer.n_blocks_in_use))
    with narrow_attention(model):
        submit_blocks(filler.fill(map(plan.block, blocks), progress), writer)
