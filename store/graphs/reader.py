"""Neurons' graphs on disk: two Arrow tables, of nodes and of neurons, mapped into memory.

A graph is a trie read backwards from a position: depth 0 is the token at which the neuron fires, depth d the token d places
before it; `IGNORE` stands for any token, `BOUNDARY` for what comes before a window's first. A prediction follows the longest
line that matches and ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from actstore.kernels.suffix_trie.api import Nodes
from actstore.store.calls import checks
from actstore.store.errors import FormatError, InvalidInputError, NotFoundError
from actstore.store.files.first_use import check_at_first_use
from actstore.store.files.shards import checksum
from actstore.store.graphs.graph import GraphPath, GraphSet, NeuronGraph
from actstore.store.graphs.nodes import BOUNDARY, IGNORE
from actstore.store.graphs.record import NEURONS, NODES, GraphRecord, check_belongs, fault_of, graph_names, read_record
from actstore.store.layout import graphs_key
from actstore.store.neurons import neuron_name, neuron_names, parse_neuron

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from actstore.store.capture.captures import Captures

__all__ = [
    "BOUNDARY",
    "IGNORE",
    "GraphPath",
    "GraphRecord",
    "Graphs",
    "NeuronGraph",
    "Nodes",
    "graph_names",
    "read_record",
]


@checks
class Graphs(GraphSet):
    """The graphs of many neurons. They stay on disk; opening them reads the table of neurons."""

    def __init__(self, store: Captures, name: str = "graphs") -> None:
        """Those called `name`; `NotFoundError` where there are none, `FormatError` where they are damaged."""
        record = read_record(store.folder, name)
        if record is None:
            known = ", ".join(graph_names(store.folder))
            held = f"{name!r}, only: {known}" if known else "yet"
            named = "" if name == "graphs" else f"name={name!r}"
            raise NotFoundError(f"{store.folder} has no graphs {held}. Make them: `store.graphs.build({named})`.")
        check_belongs(store.folder, record, store.root_record)
        self.store, self.name, self.record = store, name, record
        self.neurons = self._open("neurons.arrow", NEURONS)
        self.nodes = self._open("nodes.arrow", NODES)
        layer, neuron, self._first = (self.neurons[c].to_numpy() for c in ("layer", "neuron", "first_node"))
        self._keys = layer.astype(np.int64) << 32 | neuron
        sizes = self.neurons["n_nodes"].to_numpy()
        whole = len(self._keys) == record.n_neurons and self.nodes.num_rows == record.n_nodes == sizes.sum()
        if not whole or (sizes < 0).any() or (np.cumsum(sizes) - sizes != self._first).any():
            raise self._damaged("neurons.arrow", "it does not count the nodes that there are")
        if (np.diff(self._keys) <= 0).any():
            raise self._damaged("neurons.arrow", "its neurons do not ascend")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.store, self.name)

    def __repr__(self) -> str:
        return (
            f"Graphs({self.name!r}: {self.record.n_neurons} neurons, {self.record.n_nodes} nodes, {self.record.method})"
        )

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[NeuronGraph]:
        return (self.row(row) for row in range(len(self)))

    def __contains__(self, neuron: tuple[int, int]) -> bool:
        return self._find(*neuron) >= 0

    def graph(self, layer: int | str, neuron: int | None = None) -> NeuronGraph:
        """The graph of a neuron by layer and index, or by name; `NotFoundError` where it has none here."""
        if isinstance(layer, str):
            layer, neuron = parse_neuron(layer)
        if neuron is None:
            raise InvalidInputError('A neuron is a layer and an index, or a name: graph(3, 17), graph("L3.N17").')
        row = self._find(layer, neuron)
        if row < 0:
            raise NotFoundError(
                f"Graphs {self.name!r} of {self.store.folder} hold none of {neuron_name(layer, neuron)}."
            )
        return self.row(row)

    def names(self, rows: NDArray[np.integer]) -> list[str]:
        """The names, such as L3.N17, of the neurons in some rows of `neurons`."""
        layers, indices = (self.neurons[column].to_numpy()[rows].tolist() for column in ("layer", "neuron"))
        return neuron_names(layers, indices)

    def row(self, row: int) -> NeuronGraph:
        """The graph in a row of `neurons`."""
        found = self.neurons.slice(row, 1).to_pylist()[0]
        columns = self._columns(row, row + 1)
        nodes = Nodes(np.array([0, found["n_nodes"]]), *(columns[name] for name in Nodes._fields[1:]))
        if (fault := fault_of(nodes)) is not None:
            raise self._damaged("nodes.arrow", f"in {neuron_name(found['layer'], found['neuron'])}, {fault}")
        return NeuronGraph(
            self.store, found["layer"], found["neuron"], found["maximum"], found["threshold"], found["n_events"],
            found["status"], nodes, columns["importance"], self,
        )  # fmt: skip

    def tries(self, start: int = 0, stop: int | None = None) -> Nodes:
        """The nodes of the neurons in rows `start` to `stop`, all unless told, for `kernels.suffix_trie`."""
        stop = len(self) if stop is None else stop
        columns, sizes = self._columns(start, stop), self.neurons["n_nodes"].to_numpy()[start:stop]
        offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        return Nodes(offsets, *(columns[name] for name in Nodes._fields[1:]))

    def _columns(self, start: int, stop: int) -> dict[str, NDArray[Any]]:
        first = int(self._first[start]) if start < len(self) else self.record.n_nodes
        last = int(self._first[stop]) if stop < len(self) else self.record.n_nodes
        nodes = self.nodes.slice(first, last - first)
        return {name: np.ascontiguousarray(nodes[name].to_numpy()) for name in NODES.names}

    def _find(self, layer: int, neuron: int) -> int:
        key = layer << 32 | neuron
        row = int(np.searchsorted(self._keys, key))
        return row if row < len(self) and self._keys[row] == key else -1

    def _open(self, file: str, schema: pa.Schema) -> pa.Table:
        key = graphs_key(self.name, file)
        try:
            data = self.store.folder.view(key)
        except NotFoundError:
            raise self._damaged(file, "it is missing") from None
        nbytes, expected = self.record.files.get(file, (-1, ""))
        if len(data) != nbytes:
            raise self._damaged(file, f"it has {len(data)} bytes, expected {nbytes}")

        # That of nodes may be large, and is mapped: it is checked once, as long as it stays the same.
        def check() -> None:
            if checksum(data) != expected:
                raise self._damaged(file, "its checksum does not match")

        check_at_first_use(self.store.folder, key, check)
        try:
            table = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(data))).read_all()
            table.validate(full=schema is NEURONS)  # else columns longer than their bytes end the process
            is_expected = table.schema.equals(schema)
            columns = ", ".join(table.schema.names)
        except (
            pa.ArrowException,
            OSError,
            ValueError,
            MemoryError,
        ) as error:  # names and metadata that are no UTF-8 are a ValueError
            raise self._damaged(file, " ".join(str(error).split())) from None
        if not is_expected:
            raise self._damaged(file, f"its columns are {columns}")
        if any(column.null_count for column in table.columns):
            raise self._damaged(file, "it has null values")
        return table

    def _damaged(self, file: str, what: str) -> FormatError:
        return FormatError(
            f"{self.store.folder}/{graphs_key(self.name, file)} is damaged: {what}.", "Build the graphs again."
        )


def open_graphs(store: Captures, name: str = "graphs") -> Graphs:
    """The graphs called `name`; `NotFoundError` where there are none, and as `check_tokens`."""
    graphs = Graphs(store, name)
    check_tokens(store, graphs)
    return graphs


def check_tokens(store: Captures, graphs: GraphSet) -> None:
    """`InvalidInputError` where graphs were built with another tokenizer than the store's."""
    known = (store.vocabulary.schema.metadata or {}).get(b"fingerprint", b"") if store.vocabulary is not None else b""
    if known.decode() != graphs.record.tokenizer_fingerprint:
        raise InvalidInputError(
            f"Graphs {graphs.name!r} of {store.folder} were built with another tokenizer than the store's, so that their "
            "tokens mean other texts. Build them again from a capture of this store: `store.graphs.build()`."
        )
