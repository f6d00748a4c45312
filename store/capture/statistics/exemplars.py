"""`exemplars.parquet` of a finished capture of text: what `top` shows of each neuron, found without plan and documents.

A row has one neuron's exemplars, where they lie, the tokens around each, and the neuron's histogram. What the neuron does at
the tokens around is among the values. The table follows from the statistics and the plan, and is optional: captures of earlier
versions, of images and of questions have none.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from actstore.store.capture.plan import Plan
from actstore.store.capture.statistics.neuron_table import read_neuron_row
from actstore.store.capture.tables import bound_to
from actstore.store.errors import NotFoundError
from actstore.store.files.arrays import open_block_array
from actstore.store.files.block_arrays import block_arrays
from actstore.store.files.parquet import TableWriter
from actstore.store.files.table_columns import group_rows
from actstore.store.layout import block_parameters_key, table_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from actstore.kernels.pack.statistics import Statistics
    from actstore.store.capture.plan import BlockPlan
    from actstore.store.capture.statistics.capture_statistics import CaptureStatistics
    from actstore.store.capture.tables import OpenCapture
    from actstore.store.files.records import CaptureRecord
    from actstore.store.storage.folder import Folder

TABLE: Final = "exemplars"
SCALE: Final = "scale"
"""The block parameter that the table has a copy of, so that a neuron's values need no object per block for it."""
_NEEDS: Final = frozenset({"exemplar_tokens", "exemplar_values", "histogram"})
"""The statistics that it is made of."""
CONTEXT: Final = 24
"""Tokens on either side of an exemplar's that are stored."""
_SLOTS_AT_ONCE: Final = 1 << 20
"""Exemplars whose surroundings are in memory at once, some 300 bytes each; a layer's, if they are more."""
_WIDTH: Final = 2 * CONTEXT + 1

EXEMPLAR_ROWS: Final = pa.schema(
    [
        ("site", pa.string()),
        ("layer", pa.int32()),
        ("neuron", pa.int32()),
        ("scales", pa.list_(pa.float32())),
        ("values", pa.list_(pa.float32())),
        ("tokens", pa.list_(pa.int64())),
        ("windows", pa.list_(pa.int32())),
        ("documents", pa.list_(pa.int32())),
        ("sources", pa.list_(pa.string())),
        ("positions", pa.list_(pa.int32())),
        ("before", pa.list_(pa.int32())),
        ("ids", pa.list_(pa.list_(pa.int32()))),
        ("kept", pa.list_(pa.list_(pa.bool_()))),
        ("histogram", pa.list_(pa.int64())),
    ],
    metadata={
        "scales": "of each block, by which its int8 values are multiplied; none at other precisions",
        "values": "of the exemplars, descending; all lists have one item per exemplar",
        "tokens": "their slots",
        "sources": "of their documents, as in the table of documents",
        "positions": "in their windows",
        "before": "how many of the ids around stand before the exemplar's token",
        "ids": f"what the model read around it, at most {CONTEXT} tokens on either side, itself included",
        "kept": "which of these positions have a slot; they follow one another",
        "histogram": "counts by bin",
    },
)

EXEMPLAR_LISTS: Final = tuple(
    name for name in EXEMPLAR_ROWS.names if name not in ("site", "layer", "neuron", "scales", "histogram")
)
"""The columns with an item per exemplar."""


@dataclass(frozen=True)
class Surroundings:
    """Where some slots lie, and what the model read around them; all arrays are of the slots in ascending order."""

    slots: NDArray[np.int64]
    window: NDArray[np.int32]
    document: NDArray[np.int32]
    position: NDArray[np.int32]
    before: NDArray[np.int32]
    ids: NDArray[np.int32]
    """[slot, 2 · CONTEXT + 1]; what lies beyond the window is −1."""
    kept: NDArray[np.bool_]
    """[slot, 2 · CONTEXT + 1]"""


def has_exemplars(record: CaptureRecord) -> bool:
    """Whether a finished capture of this record gets the table."""
    return not record.of_images and record.settings.get("command", "capture") in ("capture", "import")


def write_exemplars(folder: Folder, record: CaptureRecord, total: CaptureStatistics) -> None:
    """Write the table, given the statistics of all blocks; nothing for captures that have none."""
    if not has_exemplars(record) or not _NEEDS.issubset(total.names):
        return
    schema = bound_to(record, EXEMPLAR_ROWS.empty_table()).schema
    writer = TableWriter(
        folder, table_key(record.name, TABLE), schema, statistics=False
    )  # rows are found by their number
    try:
        for rows in exemplar_rows(folder, record, total):
            writer.write(bound_to(record, rows))
        writer.close()
    except BaseException:
        writer.abandon()
        raise


def exemplar_rows(folder: Folder, record: CaptureRecord, total: CaptureStatistics) -> Iterator[pa.Table]:
    """The row groups of the table in their order, given the statistics of all blocks."""
    plan = Plan(folder, record.name, record.plan, record.plan_files)
    sources = plan.table("documents")["source"]
    for layers in _batches(total):
        around = _surroundings(plan, layers)
        for (site, layer), statistics in layers.items():
            start, scales = 0, _scales(folder, record, site, layer)
            for n in _groups(record, len(statistics.count)):
                rows = slice(start, start + n)
                whole = {"scales": _lists(scales[rows]), "histogram": _lists(statistics.histogram[rows])}
                yield _rows(site, layer, rows, statistics, around, sources, whole)
                start += n


def _scales(folder: Folder, record: CaptureRecord, site: str, layer: int) -> NDArray[np.float32]:
    """The scales of a layer's neurons in every block, as they are stored; shape [neuron, block], or [neuron, 0] without."""
    if SCALE not in record.encoding.decode_parameters:
        return np.empty((record.layers(site)[layer], 0), np.float32)
    key = block_parameters_key(record.name, site, layer, SCALE)
    spec = next(spec for spec in block_arrays(record) if spec.key == key)
    array = open_block_array(folder, spec, lambda block: None)
    return np.stack([array.shard(block).rows()[:, 0] for block in range(record.plan.n_blocks)], axis=1)


def _lists(rows: NDArray[Any]) -> pa.Array:
    """A list per row of a matrix."""
    n, width = rows.shape
    return pa.ListArray.from_arrays(pa.array(np.arange(n + 1) * width, pa.int32()), pa.array(rows.ravel()))


def _groups(record: CaptureRecord, width: int) -> list[int]:
    """Rows of each row group of a layer: half of those of the table of neurons, for a row is longer, and a footer shorter."""
    n_rows = sum(sum(record.layers(site).values()) for site in record.sites)
    size = max(1, max(group_rows([n_rows])) // 2)
    return [min(size, width - start) for start in range(0, width, size)]


def _batches(total: CaptureStatistics) -> Iterator[dict[tuple[str, int], Statistics]]:
    """The layers in order, as many at once as have `_SLOTS_AT_ONCE` exemplars."""
    batch: dict[tuple[str, int], Statistics] = {}
    n_slots = 0
    for key, statistics in total.sites.items():
        if batch and n_slots + statistics.exemplar_tokens.size > _SLOTS_AT_ONCE:
            yield batch
            batch, n_slots = {}, 0
        batch[key] = statistics
        n_slots += statistics.exemplar_tokens.size
    if batch:
        yield batch


def _surroundings(plan: Plan, layers: Mapping[tuple[str, int], Statistics]) -> Surroundings:
    """The surroundings of all exemplars of some layers."""
    found = [np.unique(statistics.exemplar_tokens) for statistics in layers.values()]
    slots = np.unique(np.concatenate(found))
    slots = slots[slots >= 0]
    size = plan.record.block_slots
    parts = [
        surroundings_of(plan.block(int(block)), slots[slots // size == block], size)
        for block in np.unique(slots // size)
    ]
    if not parts:
        nothing = np.empty(0, np.int32)
        return Surroundings(
            slots, nothing, nothing, nothing, nothing, np.empty((0, _WIDTH), np.int32), np.empty((0, _WIDTH), bool)
        )
    return Surroundings(*(np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])))


def surroundings_of(plan: BlockPlan, slots: NDArray[np.int64], block_slots: int) -> Surroundings:
    """The surroundings of some slots of one block, ascending."""
    at = slots - plan.block * block_slots
    window = plan.window_of_slot()
    first_input = np.cumsum([0, *plan.windows["n_inputs"][:-1]])
    has_slot = np.zeros(len(plan.inputs), bool)
    has_slot[first_input[window] + plan.position] = True
    row, position = window[at], plan.position[at].astype(np.int64)
    begin = np.maximum(position - CONTEXT, 0)
    place = begin[:, None] + np.arange(_WIDTH)
    end = np.minimum(plan.windows["n_inputs"][row], position + CONTEXT + 1)
    is_inside = place < end[:, None]
    place = np.where(is_inside, first_input[row][:, None] + place, 0)
    return Surroundings(
        slots,
        plan.windows["window"][row],
        plan.windows["document"][row],
        position.astype(np.int32),
        (position - begin).astype(np.int32),
        np.where(is_inside, plan.inputs[place], -1).astype(np.int32),
        is_inside & has_slot[place],
    )


def _rows(
    site: str,
    layer: int,
    rows: slice,
    statistics: Statistics,
    around: Surroundings,
    sources: pa.ChunkedArray,
    whole: Mapping[str, pa.Array],
) -> pa.Table:
    """Rows of some neurons of a layer; `whole`: the columns that are of the neuron, not of its exemplars."""
    tokens, values = statistics.exemplar_tokens[rows], statistics.exemplar_values[rows]
    is_there = tokens >= 0
    place = np.searchsorted(around.slots, tokens[is_there])
    offsets = np.concatenate([[0], np.cumsum(is_there.sum(axis=1))])
    ids = around.ids[place]
    inner = np.concatenate([[0], np.cumsum((ids >= 0).sum(axis=1))])

    def per_exemplar(items: Any) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), items)

    def per_position(items: NDArray[Any]) -> pa.Array:
        return per_exemplar(pa.ListArray.from_arrays(pa.array(inner, pa.int32()), pa.array(items[place][ids >= 0])))

    n = len(tokens)
    columns = {
        "site": pa.array([site] * n),
        "layer": pa.array(np.full(n, layer, np.int32)),
        "neuron": pa.array(np.arange(rows.start, rows.start + n, dtype=np.int32)),
        "values": per_exemplar(pa.array(values[is_there])),
        "tokens": per_exemplar(pa.array(tokens[is_there])),
        "windows": per_exemplar(pa.array(around.window[place])),
        "documents": per_exemplar(pa.array(around.document[place])),
        "sources": per_exemplar(sources.take(pa.array(around.document[place])).combine_chunks()),
        "positions": per_exemplar(pa.array(around.position[place])),
        "before": per_exemplar(pa.array(around.before[place])),
        "ids": per_position(around.ids),
        "kept": per_position(around.kept),
    }
    return pa.table({**columns, **whole}, schema=EXEMPLAR_ROWS)


def read_exemplars(
    capture: OpenCapture, site: str, layer: int, neuron: int, columns: Sequence[str] | None = None
) -> dict[str, Any] | None:
    """One neuron's row of the table of a finished capture, some columns or all; None in captures without the table.

    `FormatError` where it is another neuron's.
    """
    if not has_exemplars(capture.record):
        return None
    try:
        if not {*EXEMPLAR_ROWS.names} <= {*capture.table(TABLE).names}:
            return None  # another version's
        return read_neuron_row(capture, TABLE, site, layer, neuron, columns)
    except NotFoundError:
        return None


class Scales:
    """The scales of the neurons that were asked for last, each read once, however many threads decode its blocks."""

    def __init__(self, capture: OpenCapture) -> None:
        self._read = lru_cache(maxsize=16)(partial(_read_scales, capture))
        self._reading = Lock()

    def of(self, site: str, layer: int, neuron: int) -> list[float]:
        """One neuron's scale in each block; nothing where the table of a finished capture has none."""
        with self._reading:
            return self._read(site, layer, neuron)


def _read_scales(capture: OpenCapture, site: str, layer: int, neuron: int) -> list[float]:
    row = read_exemplars(capture, site, layer, neuron, ("site", "layer", "neuron", "scales"))
    return [] if row is None else list(row["scales"])
