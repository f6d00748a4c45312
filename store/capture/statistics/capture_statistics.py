"""A capture's statistics on disk: each block's own, their sum in block order, and the finished arrays.

Every block keeps its own statistics beside its values; a reader adds them up in block order, so an interrupted and resumed
capture ends with the same bits as an undisturbed one. A capture's record lists its statistics: what a later version gathers
besides is absent there, which is neither damage nor 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from actstore.kernels.pack.statistics import HISTOGRAM_EDGES, STATISTICS, Statistics
from actstore.store.capture.commits import committed_blocks, digest_commits, read_file
from actstore.store.capture.statistics.shapes import (
    check_labels,
    check_shapes,
    site_shape,
    statistics_nbytes,
    statistics_shapes,
)
from actstore.store.capture.statistics.tensors import damaged_tensors, decode_tensors, encode_tensors, narrowed
from actstore.store.errors import FIND_DAMAGE, FormatError, NotFoundError, finding
from actstore.store.files.plain_arrays import PlainArray, write_array
from actstore.store.layout import (
    GATE_SIGN,
    block_statistics_key,
    capture_key,
    folded_statistics_key,
    statistics_key,
    table_key,
)
from actstore.store.storage.listing import is_readable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from numpy.typing import NDArray

    from actstore.store.files.records import CaptureRecord
    from actstore.store.storage.folder import Folder

UNLISTED: Final = (
    "count",
    "mean",
    "m2",
    "minimum",
    "maximum",
    "non_finite",
    "histogram",
    "positives",
    "exemplar_values",
    "exemplar_tokens",
)
"""The statistics of every capture whose record lists none, as records of earlier versions do."""
UNLISTED_OPTIONAL: Final = ("overflow",)
"""Those that such a capture has where its arrays are there."""
_COMMITS: Final = "commits"
"""The tensor of a checkpoint that says which blocks it covers: `digest_commits` of them."""


def statistic_names(record: CaptureRecord) -> tuple[str, ...]:
    """The statistics that blocks of a capture are gathered with, of those that this version knows."""
    listed = record.statistics or UNLISTED + UNLISTED_OPTIONAL
    return tuple(name for name in STATISTICS if name in listed)


def check_can_gather(record: CaptureRecord) -> None:
    """Raise `FormatError` where a capture has a statistic that only a later version can gather."""
    unknown = [name for name in record.statistics if name not in STATISTICS]
    if unknown:
        raise FormatError(
            f"Capture {record.name!r}, begun by {record.written_by}, has statistics that this version of actstore cannot "
            f"gather: {', '.join(unknown)}.",
            "Resume it with that version or a later one.",
        )


class StoredStatistics(Statistics):
    """Statistics of a capture; reading one that the capture lacks is a `NotFoundError`."""

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> None:
            if name in STATISTICS:
                raise NotFoundError(
                    f"This capture has no statistic {name!r}: it was made by a version of actstore that did not gather it. "
                    "Capture the corpus again to have it."
                )
            return super().__getattr__(name)


@dataclass
class CaptureStatistics:
    """The statistics of some blocks of a capture; `merge` adds those of later blocks."""

    sites: Mapping[tuple[str, int], Statistics]
    """(site, layer) → statistics of its neurons."""
    gate_positives: dict[int, NDArray[np.int64]]
    """Layer → tokens of each label with an open gate; shape [label, neuron], the last row over all tokens."""
    label_tokens: NDArray[np.int64]
    """Counted tokens of each label, last over all; shape [label + 1]."""

    @classmethod
    def empty(cls, record: CaptureRecord) -> CaptureStatistics:
        """Statistics over no block: those that the capture is gathered with."""
        n_labels, names = len(record.plan.labels) + 1, statistic_names(record)
        widths = record.layers("mlp.post") if record.gate_sign else {}
        return cls(
            {
                (site, layer): StoredStatistics.empty(width, n_labels, record.n_exemplars, names)
                for site in record.sites
                for layer, width in record.layers(site).items()
            },
            {layer: np.zeros((n_labels, widths[layer]), np.int64) for layer in record.gate_sign},
            np.zeros(n_labels, np.int64),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The statistics that are there, at every site and layer alike."""
        return tuple(next(iter(self.sites.values())).arrays()) if self.sites else ()

    def merge(self, later: CaptureStatistics) -> None:
        """Add the statistics of a later block in place; a statistic that it lacks is dropped from the sum."""
        for key, statistics in self.sites.items():
            statistics.merge(later.sites[key])
        for layer, positives in self.gate_positives.items():
            positives += later.gate_positives[layer]
        self.label_tokens += later.label_tokens

    def narrowed(self) -> CaptureStatistics:
        """The same with integers as narrow as they allow, a third of the memory: to be encoded, and added to those of others.

        Floats are not copied.
        """
        gates = {layer: narrowed(positives) for layer, positives in self.gate_positives.items()}
        return CaptureStatistics({key: self.narrowed_site(key) for key in self.sites}, gates, self.label_tokens)

    def narrowed_site(self, key: tuple[str, int]) -> Statistics:
        """The same of the statistics of one site and layer alone."""
        return Statistics({name: narrowed(array) for name, array in self.sites[key].arrays().items()})

    @property
    def n_non_finite(self) -> int:
        """Values that are NaN or infinite, over all sites."""
        return sum(int(s.non_finite.sum()) for s in self.sites.values())

    def encode(self, n_blocks: int = 1, commits: bytes = b"") -> bytes:
        """As zstandard-compressed safetensors; `n_blocks` says how many blocks they cover, `commits` which."""
        arrays: dict[str, NDArray[Any]] = {
            f"{site}/{layer}/{name}": array
            for (site, layer), statistics in self.sites.items()
            for name, array in statistics.arrays().items()
        }
        arrays |= {f"{GATE_SIGN}/{layer}/positives": array for layer, array in self.gate_positives.items()}
        arrays["label_tokens"] = self.label_tokens
        arrays["n_blocks"] = np.array([n_blocks])
        if commits:
            arrays[_COMMITS] = np.frombuffer(commits, np.uint8)
        return encode_tensors(arrays)

    @classmethod
    def decode(cls, data: bytes, record: CaptureRecord, where: str) -> tuple[CaptureStatistics, int]:
        """What `encode` wrote, and the number of blocks it covers; `FormatError` naming `where` if damaged.

        Statistics that the record does not list are passed over: a later version may gather them in resuming the capture.
        """
        return cls._decoded(_tensors(data, record, where), record, where)

    @classmethod
    def _decoded(
        cls, arrays: Mapping[str, NDArray[Any]], record: CaptureRecord, where: str
    ) -> tuple[CaptureStatistics, int]:
        try:
            known = statistic_names(record)
            shapes = statistics_shapes(record, known)
            names = _present(record, lambda name: all(f"{site}/{layer}/{name}" in arrays for site, layer in shapes))
            sites = {}
            for (site, layer), of_layer in shapes.items():
                found = {name: arrays[f"{site}/{layer}/{name}"] for name in names}
                check_shapes(found, of_layer)
                sites[site, layer] = StoredStatistics.from_arrays(found)
            gates = {layer: arrays[f"{GATE_SIGN}/{layer}/positives"] for layer in record.gate_sign}
            labels, n_blocks = arrays["label_tokens"], int(arrays["n_blocks"][0])
            check_labels(record, gates, labels)
            counts = {layer: positives.astype(np.int64) for layer, positives in gates.items()}
            return cls(sites, counts, labels.astype(np.int64)), n_blocks
        except (ValueError, KeyError, IndexError, TypeError, MemoryError) as error:
            raise damaged_tensors(where, error) from None

    @classmethod
    def checkpoint(
        cls, folder: Folder, record: CaptureRecord, blocks: Collection[int]
    ) -> tuple[CaptureStatistics, int]:
        """What a checkpoint has, and the number of blocks it covers; nothing, of no block, unless it covers only `blocks`.

        It is a short way, and the blocks' own statistics are there: one that is damaged, of another capture, or of a block
        that was committed anew since, is not used.
        """
        key = folded_statistics_key(record.name)
        try:
            arrays = _tensors(folder.read(key), record, f"{folder}/{key}")
            total, n_blocks = cls._decoded(arrays, record, f"{folder}/{key}")
            if set(blocks).issuperset(range(n_blocks)):
                commits = digest_commits(folder, record, n_blocks)
                if _COMMITS in arrays and arrays[_COMMITS].tobytes() == commits:
                    return total, n_blocks
        except (FormatError, NotFoundError):
            pass
        return cls.empty(record), 0


def _tensors(data: bytes, record: CaptureRecord, where: str) -> dict[str, NDArray[Any]]:
    """What `CaptureStatistics.encode` wrote: what it takes in memory is known from the record before it is decompressed."""
    return decode_tensors(data, where, statistics_nbytes(record, statistic_names(record)))


def _present(record: CaptureRecord, has_arrays: Callable[[str], bool]) -> list[str]:
    """The statistics that stored arrays must have: those listed; of an earlier version's, optional ones if they are there."""
    optional = () if record.statistics else UNLISTED_OPTIONAL
    return [name for name in statistic_names(record) if name not in optional or has_arrays(name)]


def read_block_statistics(folder: Folder, record: CaptureRecord, block: int) -> CaptureStatistics:
    """One committed block's own statistics."""
    key = block_statistics_key(record.name, block)
    return CaptureStatistics.decode(read_file(folder, record, block, key), record, f"{folder}/{key}")[0]


def sum_statistics(
    folder: Folder, record: CaptureRecord, blocks: Collection[int] | None = None, *, is_known_finished: bool = False
) -> CaptureStatistics:
    """The statistics of some committed blocks, of all unless told, finished or not, added in block order.

    A reader that knows some blocks wants theirs, whatever a writer commits meanwhile; one that knows that the capture is
    finished spares looking.
    """
    blocks = sorted(committed_blocks(folder, record.name) if blocks is None else blocks)
    if len(blocks) == record.plan.n_blocks and (is_known_finished or is_finished(folder, record)):
        return _read_finished(folder, record)
    total, n_blocks = CaptureStatistics.checkpoint(folder, record, blocks)
    for block in blocks[n_blocks:]:
        total.merge(read_block_statistics(folder, record, block))
    return total


def is_finished(folder: Folder, record: CaptureRecord) -> bool:
    """Whether the finished arrays, whose table is written last, stand for the committed blocks: all that are planned."""
    written = is_readable(folder, table_key(record.name, "neurons"))
    return written and len(committed_blocks(folder, record.name)) == record.plan.n_blocks


def layer_offsets(record: CaptureRecord, site: str) -> dict[int, slice]:
    """Where each layer's neurons lie in the finished statistics of a site."""
    offsets, start = {}, 0
    for layer, width in record.layers(site).items():
        offsets[layer] = slice(start, start + width)
        start += width
    return offsets


def write_finished_arrays(folder: Folder, record: CaptureRecord, total: CaptureStatistics) -> None:
    """Write the arrays of all sites."""
    check_can_gather(record)
    folder.clear(capture_key(record.name), ("statistics",))
    for site in record.sites:
        offsets = layer_offsets(record, site)
        attributes = {
            "layer_offsets": {str(layer): [rows.start, rows.stop] for layer, rows in offsets.items()},
            "labels": [*map(list, record.plan.labels), ["", "all tokens"]],
        }
        for name in total.names:
            dimensions = STATISTICS[name].dimensions
            of_layers = [total.sites[site, layer].arrays()[name] for layer in offsets]
            extra = {"edges": [float(e) for e in HISTOGRAM_EDGES[1:-1]]} if "bin" in dimensions else {}
            write_array(
                folder,
                statistics_key(record.name, site, name),
                np.concatenate(of_layers, axis=dimensions.index("neuron")),
                dimensions,
                attributes | extra,
                identity=record.identity,
            )
    for layer, positives in total.gate_positives.items():
        key = statistics_key(record.name, GATE_SIGN, f"{layer}/positives")
        write_array(folder, key, positives, ("label", "neuron"), identity=record.identity)
    key = statistics_key(record.name, "tokens", "by_label")
    write_array(folder, key, total.label_tokens, ("label",), identity=record.identity)


def _read_finished(folder: Folder, record: CaptureRecord) -> CaptureStatistics:
    def has_arrays(name: str) -> bool:
        return all(is_readable(folder, f"{statistics_key(record.name, site, name)}/zarr.json") for site in record.sites)

    def opened(key: str, *, may_lack: bool = False) -> PlainArray:
        return PlainArray(folder, key, identity=record.identity, may_lack_chunks=lambda: may_lack)

    def read(site: str, name: str) -> NDArray[Any]:
        # Without checksums, as of earlier versions, the one statistic whose chunks may be left out for being -1 throughout.
        array = opened(statistics_key(record.name, site, name), may_lack=name == "exemplar_tokens")
        check_shapes({name: array}, {name: site_shape(record, site, name)})  # before memory is taken
        if array.dtype != STATISTICS[name].dtype:
            raise ValueError(f"{name} is {array.dtype}, expected {np.dtype(STATISTICS[name].dtype)}")
        return array.read()

    names = _present(record, has_arrays)
    try:
        sites = {}
        for site in record.sites:
            arrays = {name: read(site, name) for name in names}
            _check_exemplars(arrays)
            for layer, rows in layer_offsets(record, site).items():
                of_layer = {
                    n: a[:, rows] if STATISTICS[n].dimensions[0] == "label" else a[rows] for n, a in arrays.items()
                }
                sites[site, layer] = StoredStatistics.from_arrays(of_layer)
        gates = {
            layer: opened(statistics_key(record.name, GATE_SIGN, f"{layer}/positives")) for layer in record.gate_sign
        }
        labels = opened(statistics_key(record.name, "tokens", "by_label"))
        check_labels(record, gates, labels)
        positives = {layer: array.read() for layer, array in gates.items()}
        return CaptureStatistics(sites, positives, labels.read())
    except (FormatError, NotFoundError, ValueError, RuntimeError) as error:
        raise FormatError(
            f"The statistics of capture {record.name!r} of {folder} are damaged: {finding(error)}.",
            FIND_DAMAGE,
        ) from None


def _check_exemplars(arrays: dict[str, NDArray[Any]]) -> None:
    """Raise ValueError where there are exemplars without their tokens."""
    if "exemplar_tokens" in arrays and "exemplar_values" in arrays:
        tokens, values = arrays["exemplar_tokens"], arrays["exemplar_values"]
        if tokens.shape == values.shape and (np.isfinite(values) & (tokens < 0)).any():
            raise ValueError("exemplar_tokens lacks tokens of exemplars.")
