"""Graphs and edits, copied: their files, the name in the index, and the record last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from actstore.store.edits import RECORD, edit_names
from actstore.store.edits import read_record as read_edit
from actstore.store.errors import InvalidInputError
from actstore.store.files.names import write_names
from actstore.store.graphs.record import check_belongs, graph_names
from actstore.store.graphs.record import read_record as read_graphs
from actstore.store.layout import edits_key, graphs_key
from actstore.store.storage.lock import own_edit, own_graphs
from actstore.store.transfer.ranges import damaged, whole
from actstore.store.transfer.transfer import File

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from actstore.store.model.root import RootRecord
    from actstore.store.storage.folder import Folder
    from actstore.store.transfer.transfer import Transfer


@dataclass(frozen=True)
class Named:
    """Finished graphs, or an edit."""

    kind: str
    """`graphs` or `edits`."""
    name: str
    data: bytes
    """The bytes of its record."""
    files: Mapping[str, tuple[int, str]]
    """File → (bytes, CRC-32C)."""

    def key(self, file: str) -> str:
        """The key of one of its files."""
        return graphs_key(self.name, file) if self.kind == "graphs" else edits_key(self.name, file)

    @property
    def record_key(self) -> str:
        """The key of its record."""
        return self.key("graph.json" if self.kind == "graphs" else RECORD)


def read_named(source: Folder, root: RootRecord, captures: Collection[str] | None) -> list[Named]:
    """The finished graphs of a store, or those of some captures, and its edits; `FormatError` where a record is damaged."""
    found = []
    for name in graph_names(source):
        record = read_graphs(source, name)
        if record is None or (captures is not None and record.capture not in captures):
            continue
        check_belongs(source, record, root)
        found.append(Named("graphs", name, source.read(graphs_key(name, "graph.json")), record.files))
    for name in edit_names(source):
        edit = read_edit(source, name)
        found.append(Named("edits", name, source.read(edits_key(name, RECORD)), edit.files))
    return found


def check_named_of(source: Folder, target: Folder, named: Named) -> None:
    """Raise `InvalidInputError` where the target has graphs, or an edit, of the name that are others."""
    if target.exists(named.record_key) and target.read(named.record_key) != named.data:
        what = f"graphs {named.name!r}" if named.kind == "graphs" else f"an edit {named.name!r}"
        raise InvalidInputError(
            f"{target} already has {what} of its own, other than {source} has. Delete {target}/{named.key('')[:-1]}, or name "
            "another `dst`."
        )


def copy_named(transfer: Transfer, named: Named) -> None:
    """Copy graphs or an edit, unless they are there; `ReadOnlyError` while another process writes them there."""
    source, target = transfer.source, transfer.target
    draft = named.key("parts/graph.json") if named.kind == "graphs" else None
    if target.exists(named.record_key) and not (draft and target.exists(draft)):
        return
    with (own_graphs if named.kind == "graphs" else own_edit)(target, named.name):
        if draft:  # by which graphs without a record are unfinished, and not damaged
            target.write(draft, named.data)
        transfer.copy(File(named.key(file), whole(crc), nbytes) for file, (nbytes, crc) in named.files.items())
        if source.read(named.record_key) != named.data:
            raise damaged(source, named.record_key, "it was written anew meanwhile")
        write_names(target, named.kind, named.name)
        transfer.write(named.record_key, named.data)
        if draft:
            target.delete(named.key("parts"))
