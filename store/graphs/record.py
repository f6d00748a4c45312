"""What neurons' graphs are on disk: the columns of their two tables, the order of their nodes, and their record."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from actstore.store.capture.record import read_capture
from actstore.store.errors import FormatError, NotFoundError
from actstore.store.files.names import stored_names
from actstore.store.files.record_checks import MAX_COUNT, check_files, check_name, check_number
from actstore.store.files.records import Record, verify_checksum
from actstore.store.graphs.nodes import BOUNDARY
from actstore.store.layout import graphs_key
from actstore.store.storage.listing import is_readable

if TYPE_CHECKING:
    from actstore.kernels.suffix_trie.api import Nodes
    from actstore.store.model.root import RootRecord
    from actstore.store.storage.folder import Folder

FORMAT: Final = 1
NEVER_FIRES: Final = "never fires"
"""Status of a neuron that fires nowhere in the capture."""
THRESHOLD: Final = 0.3
"""Minimum probability at which a graph predicts that its neuron fires, unless told otherwise."""

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
    capture_identity: str = ""
    """The identity of `capture`; empty in graphs of earlier versions, and of captures without one."""

    def check(self, where: str) -> None:
        """As `Record.check`."""
        check_name(where, "name", self.name)
        check_number(where, "n_neurons", self.n_neurons, 0, MAX_COUNT)
        check_number(where, "n_nodes", self.n_nodes, 0)
        check_files(where, "files", self.files)


def graph_names(folder: Folder) -> tuple[str, ...]:
    """The names of the finished sets of graphs in a store."""
    return tuple(name for name in stored_names(folder, "graphs") if is_readable(folder, graphs_key(name, "graph.json")))


def read_record(folder: Folder, name: str) -> GraphRecord | None:
    """The record of finished graphs; None where there are none of that name, `FormatError` for a newer format."""
    key = graphs_key(name, "graph.json")
    try:
        value = folder.read_json(key)
    except NotFoundError:
        return None
    if not isinstance(value.get("format"), int) or value["format"] > FORMAT:
        raise FormatError(
            f"{folder}/{key} has format {value.get('format')}; this actstore reads graphs up to {FORMAT}. Update actstore."
        )
    verify_checksum(value, f"{folder}/{key}")
    record = GraphRecord.from_json(value, f"{folder}/{key}")
    if record.name != name:
        raise FormatError(
            f"{folder}/{key} is the record of other graphs, {record.name!r}.",
            "Restore it from a copy, or build them again.",
        )
    return record


def check_belongs(folder: Folder, record: GraphRecord, root: RootRecord) -> None:
    """`FormatError` where graphs are of another model than the store's, or of another capture than the one of its name.

    They outlive their capture: one that is not there, or cannot be read, is not compared.
    """
    if record.model_fingerprint != root.model.fingerprint:
        raise _foreign(folder, record, "model", record.model_fingerprint, root.model.fingerprint)
    try:
        capture = read_capture(folder, record.capture)
    except FormatError:
        return
    if capture is None:
        return
    if record.plan_fingerprint != capture.plan.fingerprint:
        what = f"capture {record.capture!r}, by its plan"
        raise _foreign(folder, record, what, record.plan_fingerprint, capture.plan.fingerprint)
    if record.capture_identity and record.capture_identity != capture.identity:
        raise _foreign(folder, record, f"capture {record.capture!r}", record.capture_identity, capture.identity)


def _foreign(folder: Folder, record: GraphRecord, what: str, found: str, expected: str) -> FormatError:
    return FormatError(
        f"Graphs {record.name!r} of {folder} are of another {what}: fingerprint {found[:12]}…, expected {expected[:12]}….",
        "Build them again, or restore them from a copy.",
    )


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
