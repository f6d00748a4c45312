"""Writes neurons' graphs: part after part, then one file of all nodes and one of all neurons.

A part appears whole or not at all, so that a build that was killed goes on after the last; the same graphs are the same
bytes, however they were cut into parts. One writer at a time owns a name.
"""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import pyarrow as pa

from actstore.store.errors import FormatError, InvalidInputError
from actstore.store.files.names import write_names
from actstore.store.files.records import with_checksum
from actstore.store.files.shards import checksum
from actstore.store.graphs.record import NEURONS, NODES, THRESHOLD, GraphRecord, fault_of, read_record
from actstore.store.layout import graphs_key
from actstore.store.storage.lock import own_graphs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from numpy.typing import ArrayLike, NDArray

    from actstore.kernels.suffix_trie.api import Nodes
    from actstore.store.storage.folder import Folder

ROWS_PER_BATCH: Final = 1 << 20
_DRAFT: Final = "parts/graph.json"
_SUMS: Final = "parts/{}.sums.json"
"""CRC-32C of a part's two tables."""


class GraphWriter:
    """Adds the graphs of neurons in ascending order; they exist for readers once it is closed.

    It owns the name until then, or until a context that it was opened in is left, whatever happened there.
    """

    def __init__(self, folder: Folder, record: GraphRecord, *, resume: bool = False) -> None:
        """Begin the graphs of a record, or go on with them.

        With `resume`, parts of an earlier run stay; its record must be the same but for what writes it. `InvalidInputError`
        where it is not, and without `resume` where finished graphs have the name; `ReadOnlyError` where another writer has it.
        """
        self._folder, self.record = folder, record
        if not record.name or any(c in record.name for c in "/\\") or record.name.startswith("."):
            raise InvalidInputError(f"Graphs need a name that can be a folder's, found {record.name!r}. Check `name`.")
        with ExitStack() as owned:
            owned.enter_context(own_graphs(folder, record.name))
            self.is_finished = self._begin(resume=resume)
            """Whether there is nothing to do: the same graphs stand there already."""
            self._parts = [] if self.is_finished else self._whole_parts()
            self._owned = owned.pop_all()
        self.n_done = record.n_neurons if self.is_finished else sum(n for _, n, _ in self._parts)
        """Neurons added so far, earlier runs included."""
        self._last = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._owned.close()

    def _begin(self, *, resume: bool) -> bool:
        """Whether the graphs are finished already; where not, their draft stands there afterwards."""
        folder, name = self._folder, self.record.name
        finished, draft = read_record(folder, name), self._draft()
        if finished is not None and not resume:
            raise InvalidInputError(
                f"{folder} already has graphs {name!r}. Choose another `name`, or delete "
                f"{folder}/{graphs_key(name, '')} first."
            )
        earlier = finished or (draft if resume else None)
        if earlier is not None:
            self._check_same(earlier)
        else:
            # The draft first: parts that a kill leaves behind must not be taken for parts of the next draft.
            folder.delete(self._key(_DRAFT))
            folder.delete(self._key("parts"))
            folder.write_json(self._key(_DRAFT), self.record.to_json())
        return finished is not None

    def _key(self, file: str) -> str:
        return graphs_key(self.record.name, file)

    def _draft(self) -> GraphRecord | None:
        if not self._folder.exists(self._key(_DRAFT)):
            return None
        return GraphRecord.from_json(self._folder.read_json(self._key(_DRAFT)), f"{self._folder}/{self._key(_DRAFT)}")

    def _check_same(self, earlier: GraphRecord) -> None:
        for item in dataclasses.fields(GraphRecord):
            if item.name in ("written_by", "n_nodes", "files"):
                continue
            before, now = getattr(earlier, item.name), getattr(self.record, item.name)
            if item.name == "capture_identity" and not before:
                continue  # begun by an earlier version
            if item.name == "settings":
                changed = [k for k in {**before, **now} if before.get(k) != now.get(k)]
                what = ", ".join(f"{k} {before.get(k)!r}, now {now.get(k)!r}" for k in changed)
            else:
                changed, what = [item.name] * (before != now), f"{item.name} {before!r}, now {now!r}"
            if changed:
                raise InvalidInputError(
                    f"Graphs {self.record.name!r} were begun with {what}: resume them as they were begun, or name others."
                )

    def _whole_parts(self) -> list[tuple[int, int, int]]:
        """(number, neurons, nodes) of the parts, up to the first that is not whole; those after it are removed.

        What is built again need not end where the part before ended, and what followed that must not be taken for what follows.
        """
        parts, names = [], self._folder.names(self._key("parts"))
        for number in range(len(names)):
            try:
                neurons, nodes = self._read(number, "neurons", NEURONS), self._read(number, "nodes", NODES)
            except FormatError:
                break
            parts.append((number, neurons.num_rows, nodes.num_rows))
        # The checksums of a part, which say that it is whole, go before its tables.
        for name in sorted(names, key=lambda name: not name.endswith(_SUMS.rpartition("}")[2])):
            number_of = name.partition(".")[0]
            if number_of.isdigit() and int(number_of) >= len(parts):
                self._folder.delete(self._key(f"parts/{name}"))
        return parts

    def _read(self, number: int, table: str, schema: pa.Schema) -> pa.Table:
        key = self._key(f"parts/{number}.{table}.arrow")
        if not (self._folder.exists(key) and self._folder.exists(self._key(_SUMS.format(number)))):
            raise FormatError(f"{self._folder}/{key} is missing.")
        data = self._folder.view(key)
        # What is damaged here would be joined, and get a checksum as if it were right.
        if self._folder.read_json(self._key(_SUMS.format(number))).get(table) != checksum(data):
            raise FormatError(
                f"{self._folder}/{key} is damaged: its checksum does not match.", "Resume the build once more."
            )
        try:
            found = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(data))).read_all()
        except (pa.ArrowException, OSError) as error:
            raise FormatError(f"{self._folder}/{key} is damaged: {' '.join(str(error).split())}.") from None
        if not found.schema.equals(schema):
            raise FormatError(f"{self._folder}/{key} has other columns than graphs have.")
        return found

    def add(
        self,
        layer: ArrayLike,
        neuron: ArrayLike,
        nodes: Nodes,
        *,
        maximum: ArrayLike,
        n_events: ArrayLike,
        threshold: ArrayLike = THRESHOLD,
        status: Sequence[str] | None = None,
        importance: NDArray[np.float32] | None = None,
    ) -> None:
        """Add the graphs of some neurons, ascending by layer and neuron: one part.

        layer, neuron, maximum, n_events, threshold, status: [neuron], or one for all. nodes: of all of them, in canonical
        order; `ValueError` where they are not. importance: [node], NaN unless given.
        """
        n = len(nodes.offsets) - 1
        columns: dict[str, Any] = {
            "layer": np.broadcast_to(np.asarray(layer, np.int32), n),
            "neuron": np.broadcast_to(np.asarray(neuron, np.int32), n),
            "maximum": np.broadcast_to(np.asarray(maximum, np.float32), n),
            "threshold": np.broadcast_to(np.asarray(threshold, np.float32), n),
            "first_node": nodes.offsets[:-1],  # counted within the part; the whole file counts on
            "n_nodes": np.diff(nodes.offsets).astype(np.int32),
            "n_events": np.broadcast_to(np.asarray(n_events, np.int64), n),
            "status": [""] * n if status is None else list(status),
        }
        keys = columns["layer"].astype(np.int64) << 32 | columns["neuron"]
        if n and ((np.diff(keys) <= 0).any() or keys[0] <= self._last):
            raise ValueError("graphs must be added in ascending order of layer and neuron, each once")
        if (fault := fault_of(nodes)) is not None:
            raise ValueError(f"the nodes of graphs must be in canonical order, but {fault}")
        self._last = int(keys[-1]) if n else self._last
        if importance is None:
            importance = np.full(len(nodes.token), np.nan, np.float32)
        of_nodes = dict(zip(nodes._fields[1:], nodes[1:], strict=True)) | {"importance": importance}
        number = len(self._parts)
        # The checksums last: a part is whole exactly when they are there.
        sums = {}
        for table, schema, rows in (("nodes", NODES, of_nodes), ("neurons", NEURONS, columns)):
            file = f"parts/{number}.{table}.arrow"
            self._write(file, schema, iter([_table(rows, schema)]))
            sums[table] = checksum(self._folder.view(self._key(file)))
        self._folder.write_json(self._key(_SUMS.format(number)), sums)
        self._parts.append((number, n, len(nodes.token)))
        self.n_done += n

    def close(self) -> GraphRecord:
        """Join the parts; the record of the finished graphs. `ValueError` where neurons are missing."""
        with self._owned:
            record = self._finished() if self.is_finished else self._join()
            self._folder.delete(self._key("parts"))
        return record

    def _finished(self) -> GraphRecord:
        record = read_record(self._folder, self.record.name)
        assert record is not None
        return record

    def _join(self) -> GraphRecord:
        if self.n_done != self.record.n_neurons:
            raise ValueError(f"{self.record.n_neurons} neurons were announced, but {self.n_done} were added")
        self._write("nodes.arrow", NODES, _rebatch((self._read(i, "nodes", NODES) for i, _, _ in self._parts), NODES))
        self._write("neurons.arrow", NEURONS, _rebatch(self._counted_on(), NEURONS))
        files = {}
        for file in ("nodes.arrow", "neurons.arrow"):
            data = self._folder.view(self._key(file))
            files[file] = (len(data), checksum(data))
        record = dataclasses.replace(self.record, n_nodes=sum(n for *_, n in self._parts), files=files)
        write_names(self._folder, "graphs", record.name)
        self._folder.write_json(self._key("graph.json"), with_checksum(record.to_json()))
        return record

    def _counted_on(self) -> Iterator[pa.Table]:
        """The neurons of all parts, their first nodes counted from the first of all."""
        before = 0
        for number, _, n_nodes in self._parts:
            table = self._read(number, "neurons", NEURONS)
            at = NEURONS.names.index("first_node")
            yield table.set_column(at, NEURONS.field(at), pa.array(table["first_node"].to_numpy() + before))
            before += n_nodes

    def _write(self, file: str, schema: pa.Schema, tables: Iterator[pa.Table]) -> None:
        with self._folder.writer(self._key(file)) as out, pa.ipc.new_file(out, schema) as writer:
            for table in tables:
                writer.write_table(table)


def _table(columns: dict[str, Any], schema: pa.Schema) -> pa.Table:
    return pa.table({name: pa.array(columns[name], schema.field(name).type) for name in schema.names}, schema)


def _rebatch(tables: Iterator[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """The same rows in tables of one size, so that how they came does not show."""
    waiting = schema.empty_table()
    for table in tables:
        waiting = pa.concat_tables([waiting, table])
        while waiting.num_rows >= ROWS_PER_BATCH:
            yield _copied(waiting.slice(0, ROWS_PER_BATCH))
            waiting = waiting.slice(ROWS_PER_BATCH)
    if waiting.num_rows:
        yield _copied(waiting)


def _copied(table: pa.Table) -> pa.Table:
    """The rows in buffers of their own: a slice would bring along what lies around it, down to the bits."""
    return table.combine_chunks().take(pa.array(np.arange(table.num_rows)))
