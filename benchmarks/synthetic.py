"""Stores of any size without a model: synthetic activations, packed and written as a capture writes them."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np

from actstore.kernels.pack.api import pack
from actstore.kernels.pack.columns import Columns
from actstore.store import layout
from actstore.store.capture.plan import PlannedWindow, PlanWriter
from actstore.store.capture.statistics.capture_statistics import CaptureStatistics
from actstore.store.capture.writer import CaptureWriter, create_capture
from actstore.store.files.records import CaptureRecord, LayerRecord, ModelRecord, PlanRecord
from actstore.store.model import root
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

WINDOW, BLOCK = 256, 16_384


class Source(Protocol):
    """Tokens and activations of a synthetic capture."""

    @property
    def n_layers(self) -> int: ...

    @property
    def n_neurons(self) -> int:
        """Of each layer."""
        ...

    @property
    def n_vocabulary(self) -> int: ...

    def windows(self, n: int, block: int) -> NDArray[np.int32]:
        """The token ids [window, position] of a block."""
        ...

    def values(self, layer: int, block: int, ids: NDArray[np.int32]) -> NDArray[np.float16]:
        """Activations [token, neuron] of a layer over windows of ids."""
        ...


def write_capture(source: Source, path: Path, name: str, n_tokens: int, order: str = "neuron") -> None:
    """A capture of whole windows in the store at `path`, which is made where there is none."""
    folder = Folder(path, read_only=False)
    if not root.is_store(folder):
        root.write_root(folder, model_record(source.n_layers, source.n_neurons, source.n_vocabulary))
    n_blocks = -(-n_tokens // BLOCK)
    sizes = [min(BLOCK, n_tokens - block * BLOCK) // WINDOW for block in range(n_blocks)]
    plan = PlanWriter(folder, name, BLOCK, {})
    plan.add_document({"source": "synthetic", "sha256": "", "n_tokens": n_tokens})
    everywhere, text = np.arange(WINDOW, dtype=np.int32), np.full(WINDOW, layout.TEXT, np.uint8)
    for block, n in enumerate(sizes):
        plan.add_block([[PlannedWindow(0, ids, everywhere, text, ()) for ids in source.windows(n, block)]])
    fingerprint = plan.close(())
    record = CaptureRecord(
        name, root.now(), root.written_by(), "none", "float16", "exact",
        {"mlp.post": {str(i): source.n_neurons for i in range(source.n_layers)}}, (), None, 0, {},
        PlanRecord(fingerprint, "synthetic", "", "", {}, (), (), 1, plan.n_windows, plan.n_tokens, BLOCK, n_blocks),
    )  # fmt: skip
    record = create_capture(folder, replace(record, order={} if order == "neuron" else {"mlp.post": order}))
    with CaptureWriter(folder, record, n_threads=2, overlap=False) as writer:
        for block, n in enumerate(sizes):
            _write_block(source, writer, block, source.windows(n, block))


def model_record(n_layers: int, n_neurons: int, n_vocabulary: int) -> ModelRecord:
    """The record of a model of `n_layers` layers with `n_neurons` neurons each."""
    layers = tuple(
        LayerRecord(i, n_neurons, f"layers.{i}.mlp.down_proj", True, i, "decoder", None) for i in range(n_layers)
    )
    return ModelRecord(
        "synthetic", "llama", "causal", 512, n_vocabulary, "float16", "none", ("mlp.post",), layers, {}
    )  # fmt: skip


def _write_block(source: Source, writer: CaptureWriter, block: int, ids: NDArray[np.int32]) -> None:
    token = np.arange(ids.size)
    segments = np.arange(len(ids) + 1) * WINDOW
    labels, counted = np.empty((len(ids), 0), np.int32), np.ones(ids.size, bool)
    columns = Columns(token, token, segments, labels, counted, block * BLOCK)
    statistics, arrays = CaptureStatistics.empty(writer.record), {}
    statistics.label_tokens[-1] = ids.size
    for layer in range(source.n_layers):
        key = layout.values_key(writer.record.name, "mlp.post", layer)
        arrays[key] = np.full((source.n_neurons, BLOCK), np.nan, np.float16)
        pack(source.values(layer, block, ids), columns, arrays[key], statistics.sites["mlp.post", layer])
    writer.submit(block, arrays, statistics, time.time())


@dataclass(frozen=True)
class Gated:
    """One layer shaped like a gated feed-forward's, SiLU(gate) · up with gates mostly shut."""

    n_neurons: int
    sparse: float = 0.0
    """The share of values, the smallest ones, that are 0, as in a model with ReLU or in a sparse autoencoder."""
    n_layers: int = 1
    n_vocabulary: int = 256

    def windows(self, n: int, block: int) -> NDArray[np.int32]:
        return np.tile(np.arange(WINDOW, dtype=np.int32), (n, 1))

    def values(self, layer: int, block: int, ids: NDArray[np.int32]) -> NDArray[np.float16]:
        return np.roll(_gated(self.n_neurons, self.sparse, block % 4), 977 * block, axis=0)[: ids.size]


@lru_cache(maxsize=4)
def _gated(n_neurons: int, sparse: float, seed: int) -> NDArray[np.float16]:
    rng = np.random.default_rng(seed)
    gate, up = rng.standard_normal((2, BLOCK, n_neurons), np.float32)
    gate -= 1
    values = gate / (1 + np.exp(-gate)) * up
    if sparse:
        values[values < np.quantile(values[::64], sparse)] = 0
    return values.astype(np.float16)


class Planted:
    """A corpus and neurons with planted structure.

    Tokens follow one another like words: each has 16 likely successors. A neuron fires at about 16 tokens: at a third
    of them always, at a third only after certain tokens, at a third unless a certain token came two positions before. At all
    other tokens it is mostly 0.
    """

    n_vocabulary = 4096

    def __init__(self, n_layers: int, n_neurons: int) -> None:
        rng = np.random.default_rng(0)
        self.n_layers, self.n_neurons = n_layers, n_neurons
        weights = 1 / np.arange(1, self.n_vocabulary + 1)
        self._next = rng.choice(self.n_vocabulary, (self.n_vocabulary, 16), p=weights / weights.sum())
        likely = 1 / np.arange(1, 17) ** 1.2
        self._likely = np.cumsum(likely / likely.sum())
        drawn = rng.random((n_layers, self.n_vocabulary, n_neurons), np.float32)
        self._kinds = np.digitize(drawn, np.float32([0.0013, 0.0026, 0.0039])).astype(np.uint8)
        noise = rng.random((BLOCK, n_neurons), np.float32)
        self._noise = np.where(noise > 0.98, (noise - 0.98) * 20, 0).astype(np.float16)

    def windows(self, n: int, block: int) -> NDArray[np.int32]:
        rng = np.random.default_rng([1, block])
        ids = np.empty((n, WINDOW), np.int32)
        ids[:, 0] = rng.integers(0, self.n_vocabulary, n)
        for i in range(1, WINDOW):
            drawn = np.minimum(np.searchsorted(self._likely, rng.random(n)), 15)
            ids[:, i] = self._next[ids[:, i - 1], drawn]
        return ids

    def values(self, layer: int, block: int, ids: NDArray[np.int32]) -> NDArray[np.float16]:
        before, two_before = (np.pad(ids, ((0, 0), (k, 0)))[:, :WINDOW].ravel() for k in (1, 2))
        kinds = self._kinds[layer][ids.ravel()]
        fires = kinds == 0
        fires |= (kinds == 1) & (before % 4 == 1)[:, None]
        fires |= (kinds == 2) & (two_before % 4 != 1)[:, None]
        strength = (0.6 + 0.4 * (ids.ravel() % 7) / 7).astype(np.float16)[:, None]
        values = np.roll(self._noise, 977 * block, axis=0)[: ids.size]
        return np.where(fires, strength, values)
