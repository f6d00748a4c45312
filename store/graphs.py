"""Neurons' graphs on disk: two Arrow tables, of nodes and of neurons, mapped into memory.

A graph is a trie read backwards from a position: depth 0 is the token at which the neuron fires, depth d the token d places
before it; `IGNORE` stands for any token, `BOUNDARY` for what comes before a window's first. A prediction follows the longest
line that matches and ends. Knows nothing about how graphs are found; `graph_writer` writes them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from actstore.kernels.suffix_trie.api import BOUNDARY, IGNORE, Nodes, predict
from actstore.store.errors import FormatError, InvalidInputError, NotFoundError
from actstore.store.layout import graphs_key
from actstore.store.neuron import parse_neuron
from actstore.store.records import Record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

    from actstore.store.folder import Folder
    from actstore.store.reader import Store

__all__ = ["BOUNDARY", "IGNORE", "GraphRecord", "Graphs", "Line", "NeuronGraph", "Nodes", "graph_names", "read_record"]

FORMAT: Final = 1

NODES = pa.schema(
    [
        ("parent", pa.int32()),
        ("token", pa.int32()),
        ("depth", pa.uint8()),
        ("ends", pa.bool_()),
        ("probability", pa.float32()),
        ("value", pa.float32()),
        ("count", pa.int32()),
        ("fires", pa.int32()),
        ("importance", pa.float32()),
    ],
    metadata={
        "parent": "counted from the neuron's first node; -1 at depth 0; a neuron's nodes are depth first, children by token",
        "token": "-1 stands for any token, -2 for what comes before a window's first",
        "probability": "of firing where a line ends here; NaN where none does",
        "value": "expected activation where a line ends here, in shares of the neuron's maximum",
        "count": "occurrences of the line in the evidence; fires of them firing",
        "importance": "share of the activation that goes when the token is masked; NaN where nobody asked the model",
    },
)
NEURONS = pa.schema(
    [
        ("layer", pa.int32()),
        ("neuron", pa.int32()),
        ("maximum", pa.float32()),
        ("threshold", pa.float32()),
        ("first_node", pa.int64()),
        ("n_nodes", pa.int32()),
        ("n_events", pa.int64()),
        ("status", pa.string()),
    ],
    metadata={
        "maximum": "largest activation over the capture",
        "threshold": "least probability at which the graph says that the neuron fires",
        "n_events": "positions of the evidence that fire",
        "status": "empty, or why there is no graph",
    },
)


@dataclass(frozen=True)
class GraphRecord(Record):
    """What graphs were made of and how."""

    name: str
    method: str
    """`corpus`: from the occurrences in a capture; `published`: as Foote et al. (2023)."""
    written_by: str
    model_fingerprint: str
    tokenizer_fingerprint: str
    capture: str
    plan_fingerprint: str
    site: str
    settings: dict[str, Any]
    n_neurons: int
    n_nodes: int = 0
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    """File → (bytes, CRC-32C)."""
    format: int = FORMAT


def graph_names(store: Store) -> tuple[str, ...]:
    """The names of the finished sets of graphs in a store."""
    names = store.folder.names("graphs")
    return tuple(name for name in names if store.folder.exists(graphs_key(name, "graph.json")))


def read_record(folder: Folder, name: str) -> GraphRecord | None:
    """The record of finished graphs; None where there are none of that name, `FormatError` for a newer format."""
    key = graphs_key(name, "graph.json")
    if not folder.exists(key):
        return None
    value = folder.read_json(key)
    if not isinstance(value.get("format"), int) or value["format"] > FORMAT:
        raise FormatError(
            f"{folder}/{key} has format {value.get('format')}; this actstore reads graphs up to {FORMAT}. Update actstore."
        )
    return GraphRecord.from_json(value, f"{folder}/{key}")


class Graphs:
    """The graphs of many neurons. They stay on disk; opening them reads the table of neurons."""

    def __init__(self, store: Store, name: str = "graphs") -> None:
        """Those called `name`; `NotFoundError` where there are none, `FormatError` where they are damaged."""
        record = read_record(store.folder, name)
        if record is None:
            known = ", ".join(graph_names(store)) or "none"
            raise NotFoundError(
                f"{store.folder} has no graphs {name!r}, only: {known}. Make them: actstore graph build."
            )
        self.store, self.name, self.record = store, name, record
        self.neurons: pa.Table = self._open("neurons.arrow", NEURONS)
        self.nodes: pa.Table = self._open("nodes.arrow", NODES)
        layer, neuron, self._first = (self.neurons[c].to_numpy() for c in ("layer", "neuron", "first_node"))
        self._keys = layer.astype(np.int64) << 32 | neuron
        sizes = self.neurons["n_nodes"].to_numpy()
        whole = len(self._keys) == record.n_neurons and self.nodes.num_rows == record.n_nodes == sizes.sum()
        if not whole or (sizes < 0).any() or (np.cumsum(sizes) - sizes != self._first).any():
            raise self._damaged("neurons.arrow", "it does not count the nodes that there are")
        if (np.diff(self._keys) <= 0).any():
            raise self._damaged("neurons.arrow", "its neurons do not ascend")

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
            raise NotFoundError(f"Graphs {self.name!r} of {self.store.folder} hold none of L{layer}.N{neuron}.")
        return self.row(row)

    def row(self, row: int) -> NeuronGraph:
        """The graph in a row of `neurons`."""
        found = self.neurons.slice(row, 1).to_pylist()[0]
        columns = self._columns(row, row + 1)
        nodes = Nodes(np.array([0, found["n_nodes"]]), *(columns[name] for name in Nodes._fields[1:]))
        if (fault := fault_of(nodes)) is not None:
            raise self._damaged("nodes.arrow", f"in L{found['layer']}.N{found['neuron']}, {fault}")
        return NeuronGraph(
            self.store, found["layer"], found["neuron"], found["maximum"], found["threshold"], found["n_events"],
            found["status"], nodes, columns["importance"],
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
        nbytes = self.record.files.get(file, (-1, ""))[0]
        if len(data) != nbytes:
            raise self._damaged(file, f"it has {len(data)} bytes, expected {nbytes}")
        try:
            table = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(data))).read_all()
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(file, " ".join(str(error).split())) from None
        if not table.schema.equals(schema):
            raise self._damaged(file, f"its columns are {', '.join(table.schema.names)}")
        return table

    def _damaged(self, file: str, what: str) -> FormatError:
        return FormatError(
            f"{self.store.folder}/{graphs_key(self.name, file)} is damaged: {what}. Build the graphs again."
        )


class Line(NamedTuple):
    """A line of a graph that ends."""

    tokens: tuple[int, ...]
    """From the token at which the neuron fires backwards."""
    probability: float
    value: float
    count: int  # type: ignore[assignment]
    fires: int


@dataclass(frozen=True, eq=False)
class NeuronGraph:
    """What makes one neuron fire."""

    store: Store
    layer: int
    neuron: int
    maximum: float
    threshold: float
    n_events: int
    status: str
    """Empty, or why there is no graph."""
    nodes: Nodes
    """Of this neuron alone; parents count from its first node."""
    importance: NDArray[np.float32]
    """[node] share of the activation that goes when the token is masked; NaN where nobody asked the model."""

    @property
    def name(self) -> str:
        """Such as `L3.N17`."""
        return f"L{self.layer}.N{self.neuron}"

    def __repr__(self) -> str:
        return f"NeuronGraph({self.name}: {self.status or f'{len(self)} nodes'})"

    def __len__(self) -> int:
        return len(self.nodes.token)

    @cached_property
    def children(self) -> dict[int, list[int]]:
        """The children of each node, by token; those at depth 0 under -1."""
        children: dict[int, list[int]] = {}
        for node, parent in enumerate(self.nodes.parent.tolist()):
            children.setdefault(parent, []).append(node)
        return children

    def text(self, token: int) -> str:
        """The text of a node's token; `…` for any token, `^` for a window's beginning."""
        return {IGNORE: "…", BOUNDARY: "^"}.get(token) or self.store.token_text(token)

    def line(self, node: int) -> tuple[int, ...]:
        """The tokens from depth 0 to a node."""
        tokens: list[int] = []
        while node >= 0:
            tokens.append(int(self.nodes.token[node]))
            node = int(self.nodes.parent[node])
        return tuple(reversed(tokens))

    def lines(self) -> Iterator[Line]:
        """Every line that ends, in the order of the nodes."""
        n = self.nodes
        for node in np.flatnonzero(n.ends).tolist():
            yield Line(
                self.line(node),
                float(n.probability[node]),
                float(n.value[node]),
                int(n.count[node]),
                int(n.fires[node]),
            )

    def predict(self, ids: ArrayLike) -> NDArray[np.float32]:
        """The expected activation at each token of one window, in shares of the neuron's maximum; 0 where no line matches.

        `ids` are tokens; `engine.graph.predict.encode` gives those of a text.
        """
        values: NDArray[np.float32] = predict(self.nodes, _checked(ids), threads=1).value[0]
        return values

    def fires(self, ids: ArrayLike) -> NDArray[np.bool_]:
        """Whether the neuron fires at each token: where the line's probability is at least the graph's threshold."""
        found = predict(self.nodes, _checked(ids), threads=1)
        fires: NDArray[np.bool_] = (found.line[0] >= 0) & (found.probability[0] >= np.float32(self.threshold))
        return fires


def _checked(ids: ArrayLike) -> NDArray[np.int32]:
    tokens = np.asarray(ids)
    if tokens.ndim != 1 or (tokens.size and (tokens.dtype.kind not in "iu" or tokens.min() < 0)):
        raise InvalidInputError(
            "A graph predicts a list of token ids, 0 or more; of a text, engine.graph.predict.encode gives them."
        )
    return tokens.astype(np.int32)


def fault_of(nodes: Nodes) -> str | None:
    """What makes some nodes no tries in canonical order; None where they are."""
    n = len(nodes.token)
    if not all(len(column) == n for column in nodes[1:]) or len(nodes.offsets) == 0 or nodes.offsets[-1] != n:
        return "columns differ in length"
    index = np.arange(n)
    first = np.repeat(nodes.offsets[:-1], np.diff(nodes.offsets))
    depth, parent = nodes.depth.astype(np.int64), nodes.parent.astype(np.int64) + first
    if not (nodes.token >= BOUNDARY).all():
        return "a token is below -2"
    if (np.isnan(nodes.probability) == nodes.ends).any():
        return "a line ends without a probability, or has one and does not end"
    for level in range(int(depth.max(initial=0)) + 1):
        here = np.flatnonzero(depth == level)
        if level == 0:
            above = first[here] - 1
        else:
            # Depth first: the parent is the latest node one level up, and of the same neuron.
            above = np.maximum.accumulate(np.where(depth == level - 1, index, -1))[here]
            above = np.where(above >= first[here], above, -2)
        if (parent[here] != above).any():
            return "a parent is not where depth first has it"
        if level == 0:
            above = first[here]
        siblings = np.diff(above) == 0
        if (np.diff(nodes.token[here])[siblings] <= 0).any():
            return "children do not ascend by token"
    return None
