"""A capture's statistics on disk: each block's own, their sum in block order, and the finished arrays and table.

Every block keeps its own statistics beside its values; a reader adds them up in block order, so an interrupted and resumed
capture ends with the same bits as an undisturbed one. Knows nothing about how the statistics are gathered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numcodecs import Zstd
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from actstore.kernels.pack.statistics import HISTOGRAM_EDGES, NOT_KNOWN, OPTIONAL, Statistics, quantiles
from actstore.store.capture.commits import check_file, committed_blocks
from actstore.store.errors import FormatError, NotFoundError
from actstore.store.files.arrays import read_array, write_array
from actstore.store.files.parquet import write_table
from actstore.store.layout import (
    GATE_SIGN,
    block_statistics_key,
    folded_statistics_key,
    statistics_key,
    table_key,
)

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    from actstore.store.files.records import CaptureRecord
    from actstore.store.storage.folder import Folder

DIMENSIONS: dict[str, tuple[str, ...]] = {  # those of `OPTIONAL` are left out on disk where they are not known
    "count": ("neuron",),
    "mean": ("neuron",),
    "m2": ("neuron",),
    "minimum": ("neuron",),
    "maximum": ("neuron",),
    "non_finite": ("neuron",),
    "overflow": ("neuron",),
    "histogram": ("neuron", "bin"),
    "positives": ("label", "neuron"),
    "exemplar_values": ("neuron", "k"),
    "exemplar_tokens": ("neuron", "k"),
}
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
CHECKPOINT_BLOCKS = 64
"""A resumed run reads at most this many blocks' own statistics before it continues adding."""


@dataclass
class CaptureStatistics:
    """The statistics of some blocks of a capture; `merge` adds those of later blocks."""

    sites: dict[tuple[str, int], Statistics]
    """(site, layer) → statistics of its neurons."""
    gate_positives: dict[int, NDArray[np.int64]]
    """Layer → tokens of each label with an open gate; shape [label, neuron], the last row over all tokens."""
    label_tokens: NDArray[np.int64]
    """Counted tokens of each label, last over all; shape [label + 1]."""

    @classmethod
    def empty(cls, record: CaptureRecord) -> CaptureStatistics:
        """Statistics over no block."""
        n_labels = len(record.plan.labels) + 1
        widths = record.layers("mlp.post") if record.gate_sign else {}
        return cls(
            {
                (site, layer): Statistics.empty(width, n_labels, record.n_exemplars)
                for site in record.sites
                for layer, width in record.layers(site).items()
            },
            {layer: np.zeros((n_labels, widths[layer]), np.int64) for layer in record.gate_sign},
            np.zeros(n_labels, np.int64),
        )

    def merge(self, later: CaptureStatistics) -> None:
        """Add the statistics of a later block in place."""
        for key, statistics in self.sites.items():
            statistics.merge(later.sites[key])
        for layer, positives in self.gate_positives.items():
            positives += later.gate_positives[layer]
        self.label_tokens += later.label_tokens

    @property
    def n_non_finite(self) -> int:
        """Values that are NaN or infinite, over all sites."""
        return sum(int(s.non_finite.sum()) for s in self.sites.values())

    def encode(self, n_blocks: int = 1) -> bytes:
        """As zstandard-compressed safetensors; `n_blocks` says how many blocks they cover.

        Integers are kept as narrow as they allow: a block's histogram of a 7B model takes 70 MB instead of 280 before it is
        compressed.
        """
        arrays: dict[str, NDArray[Any]] = {
            f"{site}/{layer}/{name}": array
            for (site, layer), statistics in self.sites.items()
            for name, array in statistics.arrays().items()
            if _is_known(name, array)
        }
        arrays |= {f"{GATE_SIGN}/{layer}/positives": array for layer, array in self.gate_positives.items()}
        arrays["label_tokens"] = self.label_tokens
        arrays["n_blocks"] = np.array([n_blocks])
        return bytes(
            Zstd(level=1, checksum=True).encode(
                save_safetensors({k: np.ascontiguousarray(_narrowed(v)) for k, v in arrays.items()})
            )
        )

    @classmethod
    def decode(cls, data: bytes, record: CaptureRecord, where: str) -> tuple[CaptureStatistics, int]:
        """What `encode` wrote, and the number of blocks it covers; `FormatError` naming `where` if damaged."""
        try:
            arrays = load_safetensors(bytes(Zstd().decode(data)))
            empty = cls.empty(record)
            sites = {
                (site, layer): Statistics.from_arrays(
                    {
                        name: arrays[f"{site}/{layer}/{name}"]
                        for name in DIMENSIONS
                        if name not in OPTIONAL or f"{site}/{layer}/{name}" in arrays
                    }
                )
                for site, layer in empty.sites
            }
            gates = {layer: arrays[f"{GATE_SIGN}/{layer}/positives"].astype(np.int64) for layer in record.gate_sign}
            return cls(sites, gates, arrays["label_tokens"].astype(np.int64)), int(arrays["n_blocks"][0])
        except (SafetensorError, RuntimeError, ValueError, KeyError, IndexError) as error:
            raise FormatError(f"The statistics {where} are damaged ({error}). Run `actstore verify`.") from None


def _is_known(name: str, array: NDArray[Any]) -> bool:
    """Whether a statistic over some neurons says something of all of them."""
    return name not in OPTIONAL or not (array == NOT_KNOWN).any()


def _narrowed(array: NDArray[Any]) -> NDArray[Any]:
    """`array` in the narrowest integer type that holds its values; floats as they are."""
    if array.dtype.kind == "i" and array.size:
        for dtype in (np.uint8, np.uint16, np.int32):
            if np.iinfo(dtype).min <= array.min() and array.max() <= np.iinfo(dtype).max:
                return array.astype(dtype)
    return array


class RunningStatistics:
    """Adds up blocks in their order as they are committed, whatever order they are committed in."""

    def __init__(self, folder: Folder, record: CaptureRecord, blocks: Collection[int] | None = None) -> None:
        """Continue from the last checkpoint that covers only `blocks`, all committed ones unless told, or from nothing."""
        self._folder, self._record = folder, record
        key = folded_statistics_key(record.name)
        if folder.exists(key):
            self.total, self.n_blocks = CaptureStatistics.decode(folder.read(key), record, f"{folder}/{key}")
            if set(committed_blocks(folder, record.name) if blocks is None else blocks).issuperset(
                range(self.n_blocks)
            ):
                return
        # Without a checkpoint, or with one that covers a block whose commit record has been taken away since.
        self.total, self.n_blocks = CaptureStatistics.empty(record), 0

    def advance(self, *, checkpoint: bool = False) -> None:
        """Add every committed block that follows what is added already; with `checkpoint`, write one now and then."""
        committed = set(committed_blocks(self._folder, self._record.name))
        while self.n_blocks in committed:
            self.total.merge(read_block_statistics(self._folder, self._record, self.n_blocks))
            self.n_blocks += 1
            if checkpoint and self.n_blocks % CHECKPOINT_BLOCKS == 0:
                self._folder.write(folded_statistics_key(self._record.name), self.total.encode(self.n_blocks))


def read_block_statistics(folder: Folder, record: CaptureRecord, block: int) -> CaptureStatistics:
    """One committed block's own statistics."""
    key = block_statistics_key(record.name, block)
    check_file(folder, record.name, block, key)
    return CaptureStatistics.decode(folder.read(key), record, f"{folder}/{key}")[0]


def sum_statistics(folder: Folder, record: CaptureRecord, blocks: Collection[int] | None = None) -> CaptureStatistics:
    """The statistics of some committed blocks, of all unless told, finished or not, added in block order.

    A reader that knows some blocks wants theirs, whatever a writer commits meanwhile.
    """
    blocks = sorted(committed_blocks(folder, record.name) if blocks is None else blocks)
    if len(blocks) == record.plan.n_blocks and is_finished(folder, record):
        return _read_finished(folder, record)
    running = RunningStatistics(folder, record, blocks)
    for block in blocks[running.n_blocks :]:
        running.total.merge(read_block_statistics(folder, record, block))
    return running.total


def is_finished(folder: Folder, record: CaptureRecord) -> bool:
    """Whether the finished arrays, whose table is written last, stand for the committed blocks: all that are planned."""
    written = folder.exists(table_key(record.name, "neurons"))
    return written and len(committed_blocks(folder, record.name)) == record.plan.n_blocks


def layer_offsets(record: CaptureRecord, site: str) -> dict[int, slice]:
    """Where each layer's neurons lie in the finished statistics of a site."""
    offsets, start = {}, 0
    for layer, width in record.layers(site).items():
        offsets[layer] = slice(start, start + width)
        start += width
    return offsets


def write_finished(folder: Folder, record: CaptureRecord, total: CaptureStatistics) -> None:
    """Write the arrays of all sites, then the table of neurons."""
    for site in record.sites:
        offsets = layer_offsets(record, site)
        attributes = {
            "layer_offsets": {str(layer): [where.start, where.stop] for layer, where in offsets.items()},
            "labels": [*map(list, record.plan.labels), ["", "all tokens"]],
        }
        for name, dimensions in DIMENSIONS.items():
            axis = dimensions.index("neuron")
            values = np.concatenate([getattr(total.sites[site, layer], name) for layer in offsets], axis=axis)
            if not _is_known(name, values):
                continue
            extra = {"edges": [float(e) for e in HISTOGRAM_EDGES[1:-1]]} if name == "histogram" else {}
            write_array(folder, statistics_key(record.name, site, name), values, dimensions, attributes | extra)
    for layer, positives in total.gate_positives.items():
        write_array(
            folder, statistics_key(record.name, GATE_SIGN, f"{layer}/positives"), positives, ("label", "neuron")
        )
    write_array(folder, statistics_key(record.name, "tokens", "by_label"), total.label_tokens, ("label",))
    write_table(folder, table_key(record.name, "neurons"), neuron_table(record, total))


def _read_finished(folder: Folder, record: CaptureRecord) -> CaptureStatistics:
    try:
        sites, empty = {}, CaptureStatistics.empty(record).sites
        for site in record.sites:
            arrays = _read_site(folder, record, site)
            for layer, where in layer_offsets(record, site).items():
                sites[site, layer] = Statistics.from_arrays(
                    {n: a[:, where] if DIMENSIONS[n][0] == "label" else a[where] for n, a in arrays.items()}
                )
                _check_like(sites[site, layer], empty[site, layer], arrays)
        gates = {
            layer: read_array(folder, statistics_key(record.name, GATE_SIGN, f"{layer}/positives"))
            for layer in record.gate_sign
        }
        return CaptureStatistics(sites, gates, read_array(folder, statistics_key(record.name, "tokens", "by_label")))
    except (NotFoundError, ValueError, RuntimeError) as error:
        raise FormatError(f"The statistics of capture {record.name!r} of {folder} are damaged: {error}.") from None


def _read_site(folder: Folder, record: CaptureRecord, site: str) -> dict[str, NDArray[Any]]:
    """The finished statistics of a site by name, over the neurons of all layers; an optional one only where it is there."""
    keys = {name: statistics_key(record.name, site, name) for name in DIMENSIONS}
    there = {n: k for n, k in keys.items() if n not in OPTIONAL or folder.exists(f"{k}/zarr.json")}
    return {name: read_array(folder, key) for name, key in there.items()}


def _check_like(found: Statistics, empty: Statistics, arrays: dict[str, NDArray[Any]]) -> None:
    """Raise ValueError where a layer's statistics, part of `arrays`, are not shaped as `empty` ones or of another dtype."""
    for name, expected in empty.arrays().items():
        if name not in arrays:
            continue  # an optional one of an earlier version
        if getattr(found, name).shape != expected.shape or arrays[name].dtype != expected.dtype:
            raise ValueError(f"{name} is {arrays[name].shape} {arrays[name].dtype}")


def neuron_table(record: CaptureRecord, total: CaptureStatistics) -> pa.Table:
    """A row per site and neuron: moments, quantiles, shares of positive values, the top exemplar.

    Quantiles are estimates from the histogram; `quantile_error` bounds how far any of a neuron's may be from the true one.
    """
    layers = (_layer_table(record, total, site, layer, statistics) for (site, layer), statistics in total.sites.items())
    return pa.concat_tables(layers).unify_dictionaries()


def _layer_table(
    record: CaptureRecord, total: CaptureStatistics, site: str, layer: int, statistics: Statistics
) -> pa.Table:
    n = len(statistics.count)
    values = quantiles(statistics.histogram, list(QUANTILES), statistics.minimum, statistics.maximum)
    seen = statistics.count > 0
    count = np.maximum(statistics.count, 1)
    empty = statistics.exemplar_tokens.shape[1] == 0
    top_token = np.full(n, -1, np.int64) if empty else statistics.exemplar_tokens[:, 0]
    gate = total.gate_positives.get(layer) if site == "mlp.post" else None

    def known(array: NDArray[Any]) -> pa.Array:
        return pa.array(array, mask=~seen)

    def by_label(positives: NDArray[np.int64]) -> pa.Array:
        names = [f"{column}={value}" for column, value in record.plan.labels]
        shares = positives[:-1] / np.maximum(total.label_tokens[:-1, None], 1)
        offsets = np.arange(n + 1, dtype=np.int32) * len(names)
        return pa.MapArray.from_arrays(offsets, pa.array(names * n, pa.string()), pa.array(shares.T.ravel()))

    columns = {
        "site": pa.array([site] * n).dictionary_encode(),
        "layer": pa.array(np.full(n, layer, np.int32)),
        "neuron": pa.array(np.arange(n, dtype=np.int32)),
        "name": pa.array([f"L{layer}.N{i}" for i in range(n)]),
        "count": statistics.count,
        "non_finite": statistics.non_finite,
        "overflow": pa.array(statistics.overflow, mask=statistics.overflow == NOT_KNOWN),
        "mean": known(statistics.mean),
        "std": known(np.sqrt(statistics.m2 / count)),
        "min": known(statistics.minimum),
        "max": known(statistics.maximum),
        **{f"q{round(q * 100):02d}": known(values.estimate[:, i]) for i, q in enumerate(QUANTILES)},
        "quantile_error": known(np.maximum(values.estimate - values.low, values.high - values.estimate).max(axis=1)),
        "positive": known(statistics.positives[-1] / count),
        "positive_by_label": by_label(statistics.positives),
        "gate_positive": pa.array(gate[-1] / max(int(total.label_tokens[-1]), 1))
        if gate is not None
        else pa.nulls(n, pa.float64()),
        "gate_positive_by_label": by_label(gate)
        if gate is not None
        else pa.nulls(n, pa.map_(pa.string(), pa.float64())),
        "top_value": pa.array(statistics.maximum if empty else statistics.exemplar_values[:, 0], mask=top_token < 0),
        "top_token": pa.array(top_token, mask=top_token < 0),
    }
    return pa.table(columns)
