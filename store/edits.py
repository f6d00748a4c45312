"""Edits on disk: a folder with a record, `edit.json`, and rows of weights before and after, `delta.safetensors`.

An edit of kind "weights" replaces the write vectors of some neurons; one of kind "intervention" is a specification of what
happens to activations while the model runs, and has no rows. The folder of an edit is complete in itself, in a store's
`edits/` or elsewhere.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from actstore.store.errors import FormatError, InvalidInputError, NotFoundError
from actstore.store.files import record_checks
from actstore.store.files.names import indexed_names, stored_names, write_names
from actstore.store.files.records import Record, verify_checksum, with_checksum
from actstore.store.files.shards import checksum
from actstore.store.layout import edits_key
from actstore.store.model.root import read_root
from actstore.store.neurons import neuron_name
from actstore.store.storage.folder import Folder
from actstore.store.storage.listing import is_readable
from actstore.store.storage.lock import own_edit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

FORMAT: Final = 1
KINDS: Final = ("weights", "intervention")
RECORD: Final = "edit.json"
DELTA: Final = "delta.safetensors"


@dataclass(frozen=True)
class EditedRows(Record):
    """The neurons of one layer whose write vectors an edit replaces."""

    layer: int
    module: str
    """Hugging Face path of the layer's output projection."""
    neurons: tuple[int, ...]
    """Ascending; row n of the delta's tensors is theirs."""
    before: str
    """SHA-256 of the rows as they were, in the edit's dtype."""
    after: str

    def check(self, where: str) -> None:
        """As `Record.check`."""
        record_checks.check_number(where, "layer", self.layer, 0, record_checks.MAX_LAYERS)
        for neuron in self.neurons:
            record_checks.check_number(where, "a neuron", neuron, 0, record_checks.MAX_NEURONS)
        if list(self.neurons) != sorted(set(self.neurons)):
            raise FormatError(f"{where}: neurons should ascend, found {str(self.neurons)[:80]}.")


@dataclass(frozen=True)
class EditRecord(Record):
    """What an edit is, of which model, and how it was made."""

    name: str
    kind: str
    """One of `KINDS`."""
    form: str
    """How it was made: suppress, boost, fine, least-norm, knowledge, …"""
    written_by: str
    created: str
    model: str
    model_fingerprint: str
    """Of the model that the edit is for, as it was before."""
    dtype: str
    """In which the rows are held: that in which the model was run."""
    settings: dict[str, Any]
    rows: tuple[EditedRows, ...] = ()
    specification: dict[str, Any] = field(default_factory=dict)
    """Of an intervention."""
    predicted: dict[str, Any] = field(default_factory=dict)
    """What the edit's maker says will happen to logits, where it can say."""
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    """File → (bytes, CRC-32C)."""
    format: int = FORMAT

    def check(self, where: str) -> None:
        """As `Record.check`."""
        record_checks.check_name(where, "name", self.name)
        record_checks.check_one_of(where, "kind", self.kind, KINDS)
        record_checks.check_files(where, "files", self.files)
        record_checks.check_distinct(where, "the layers of rows", [rows.layer for rows in self.rows])

    @property
    def n_neurons(self) -> int:
        """Neurons whose write vectors are replaced."""
        return sum(len(rows.neurons) for rows in self.rows)

    def neuron_names(self) -> list[str]:
        """Their names, such as L3.N17."""
        return [neuron_name(rows.layer, neuron) for rows in self.rows for neuron in rows.neurons]


class RowPair(NamedTuple):
    """The write vectors of one layer's edited neurons, before and after; each [neuron, d_model]."""

    before: Tensor
    after: Tensor


@dataclass(frozen=True, eq=False)
class Edit:
    """An edit in memory."""

    record: EditRecord
    rows: Mapping[int, RowPair]
    """Layer → rows; empty for an intervention."""

    @property
    def name(self) -> str:
        """The name by which people know it."""
        return self.record.name

    def __repr__(self) -> str:
        """As commands name it; the record and its rows, which are pages, have their own."""
        record = self.record
        operations = record.specification.get("operations", ()) if record.specification else ()
        neurons = {name for operation in operations for name in operation.get("neurons", ())}
        n = len(neurons) + sum(len(rows.neurons) for rows in record.rows)
        return f"Edit({self.name!r}: {record.form} of {n:,} neuron{'' if n == 1 else 's'}, {record.kind})"


def row_digest(rows: Tensor) -> str:
    """SHA-256 of the bytes of rows [neuron, d_model]."""
    import torch  # only here: reading a record needs none of it

    return hashlib.sha256(rows.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def edit_names(folder: Folder) -> tuple[str, ...]:
    """The names of a store's edits."""
    return tuple(name for name in stored_names(folder, "edits") if is_readable(folder, edits_key(name, RECORD)))


def check_name(name: str) -> None:
    """Raise `InvalidInputError` unless an edit can have the name."""
    if not name or any(c in name for c in "/\\") or name.startswith("."):
        raise InvalidInputError(f"An edit needs a name that can be a folder's, found {name!r}. Check `name`.")


def write_edit(folder: Folder, edit: Edit, *, replace: bool = False) -> EditRecord:
    """Keep an edit in a store, its record last; the record as written. `InvalidInputError` where the name is taken.

    `ReadOnlyError` while another process writes an edit of the name.
    """
    check_name(edit.name)
    if (what := _other_model(folder, edit.record)) is not None:
        raise InvalidInputError(f"This is {what}. Keep it in a store of that model, not in {folder}.")
    with own_edit(folder, edit.name):
        key = edits_key(edit.name, RECORD)
        if folder.exists(key):
            if not replace:
                raise InvalidInputError(
                    f"{folder} already has an edit {edit.name!r}. Choose another `name`, or replace it with `force=True`."
                )
            folder.delete(key)
        record = dataclasses.replace(edit.record, files=_write_rows(folder, edit))
        write_names(folder, "edits", edit.name)
        folder.write_json(key, with_checksum(json.loads(json.dumps(record.to_json()))))
    return record


def _write_rows(folder: Folder, edit: Edit) -> dict[str, tuple[int, str]]:
    """Write the rows of an edit of weights: file → (bytes, CRC-32C)."""
    from safetensors.torch import save

    if not edit.rows:
        return {}
    tensors = {
        f"layer-{layer}.{side}": getattr(pair, side).detach().cpu().contiguous()
        for layer, pair in sorted(edit.rows.items())
        for side in RowPair._fields
    }
    data = save(tensors)
    folder.write(edits_key(edit.name, DELTA), data)
    return {DELTA: (len(data), checksum(data))}


def read_record(folder: Folder, name: str | None = None) -> EditRecord:
    """The record of a store's edit by name, or of the edit whose own folder `folder` is.

    `NotFoundError` where there is none, `FormatError` for one of a newer format.
    """
    key = _key(name, RECORD)
    try:
        value = folder.read_json(key)
    except NotFoundError:
        known = "" if name is None else f" Its edits are: {', '.join(edit_names(folder)) or 'none'}."
        what = (
            "an edit's folder, such as STORE/edits/NAME, which holds edit.json,"
            if name is None
            else f"an edit {name!r}"
        )
        raise NotFoundError(f"Expected {what} at {folder}, and there is none.{known}") from None
    if not isinstance(value.get("format"), int) or value["format"] > FORMAT:
        raise FormatError(
            f"{folder}/{key} has format {value.get('format')}; this actstore reads edits up to {FORMAT}. Update actstore."
        )
    verify_checksum(value, f"{folder}/{key}")
    record = EditRecord.from_json(value, f"{folder}/{key}")
    foreign = _other_model(folder, record) if name is not None else None
    if name not in (None, record.name):
        foreign = f"the record of another edit, {record.name!r}"
    if foreign is not None:
        raise FormatError(f"{folder}/{key} is {foreign}.", "Make the edit again, or restore it from a copy.")
    return record


def _other_model(folder: Folder, record: EditRecord) -> str | None:
    """What to say of an edit whose model is another than that of the store it lies in; None where it is the same."""
    try:
        model = read_root(folder)
    except NotFoundError:
        return None  # a folder of edits without a store
    if record.model_fingerprint == model.fingerprint:
        return None
    return (
        f"an edit of another model, {record.model} (fingerprint {record.model_fingerprint[:12]}…), than the store's, "
        f"{model.name} (fingerprint {model.fingerprint[:12]}…)"
    )


def read_edit(folder: Folder | str | Path, name: str | None = None) -> Edit:
    """An edit with its rows, every byte checked; errors as of `read_record`, and `FormatError` for damaged rows."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = folder if isinstance(folder, Folder) else Folder(folder)
    record = read_record(folder, name)
    if not record.rows:
        return Edit(record, {})
    key = _key(name, DELTA)
    data = bytes(folder.read(key))
    if (len(data), checksum(data)) != tuple(record.files.get(DELTA, ())):
        raise FormatError(f"{folder}/{key} is damaged: it is not what edit.json says.", "Make the edit again.")
    try:
        tensors = load(data)
        pairs = {
            rows.layer: RowPair(tensors[f"layer-{rows.layer}.before"], tensors[f"layer-{rows.layer}.after"])
            for rows in record.rows
        }
    except KeyError as error:
        raise FormatError(f"{folder}/{key} lacks the tensor {error}.", "Make the edit again.") from None
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise FormatError(
            f"{folder}/{key} is damaged: {' '.join(str(error).split())}.", "Make the edit again."
        ) from None
    for rows in record.rows:
        shapes = [tuple(side.shape) for side in pairs[rows.layer]]
        dtypes = {str(side.dtype).removeprefix("torch.") for side in pairs[rows.layer]}
        is_pair = shapes[0] == shapes[1] and len(shapes[0]) == 2 and dtypes == {record.dtype}
        if not is_pair or shapes[0][0] != len(rows.neurons):
            raise FormatError(
                f"{folder}/{key} is damaged: the rows of layer {rows.layer} are {shapes[0]} and {shapes[1]} "
                f"{min(dtypes)}, expected those of {len(rows.neurons)} neurons in {record.dtype}.",
                "Make the edit again.",
            )
    return Edit(record, pairs)


def delete_edit(folder: Folder, name: str) -> None:
    """Remove a store's edit, whatever its state; what a killed removal left goes too.

    `NotFoundError` where there is none, `ReadOnlyError` while another process writes it.
    """
    prefix = edits_key(name, "").rstrip("/")
    try:
        read_record(folder, name)
    except NotFoundError:
        if name not in folder.names("edits") and not _is_indexed(folder, name):
            raise
    except FormatError:
        pass
    with own_edit(folder, name):
        folder.delete(edits_key(name, RECORD))  # first, and for good: a kill leaves no edit, or all of it
        folder.delete(prefix)
    write_names(folder, "edits")


def _is_indexed(folder: Folder, name: str) -> bool:
    """Whether the store's index lists an edit: one whose removal was killed before the index was written, or a whole one."""
    if "/" in name or not name.strip("."):
        return False  # of no edit, whatever a damaged index lists
    try:
        return name in (indexed_names(folder, "edits") or ())
    except FormatError:
        return False


def _key(name: str | None, file: str) -> str:
    return file if name is None else edits_key(name, file)
