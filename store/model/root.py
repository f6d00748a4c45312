"""A store's root: its format, its model, its tokenizer, its table of neurons. Written once, by the first capture."""

from __future__ import annotations

import datetime
import json
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from actstore.store.errors import FormatError, InvalidInputError, NotFoundError
from actstore.store.files.checksums import header_nbytes, read_checksums
from actstore.store.files.parquet import read_metadata, read_table, undamaged, write_table
from actstore.store.files.records import ModelRecord, verify_checksum, with_checksum
from actstore.store.files.shards import checksum
from actstore.store.files.table_columns import group_rows, table_checksum
from actstore.store.layout import (
    FORMAT,
    TOKENIZER_KEY,
    VOCABULARY_KEY,
    table_key,
    weights_key,
)
from actstore.store.model.root_attribute import ATTRIBUTE, RESTORE, ROOT_KEY, read_root_attribute
from actstore.store.neurons import neuron_names
from actstore.store.storage.folder import Folder
from actstore.store.storage.lock import own_root
from actstore.store.storage.strict_json import MAX_NBYTES
from actstore.store.tokens import UNKNOWN, UNKNOWN_TEXT
from actstore.store.version import version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_HEADER_NBYTES: Final = 1 << 16

TOP_TOKENS: Final = {
    f"{side}_{column}": pa.list_(kind)
    for side in ("top", "bottom")
    for column, kind in (("tokens", pa.int32()), ("texts", pa.string()), ("products", pa.float32()))
}
"""Columns of the root's table of neurons: the tokens that a neuron's write vector promotes and suppresses most."""


def written_by() -> str:
    """The program and its version, for the records."""
    return f"actstore {version()}"


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def write_root(folder: Folder, model: ModelRecord) -> None:
    """Make the folder a store of `model`; written last, after weights and tokenizer, and once.

    It is bound to what stands beside it then. `InvalidInputError` where the folder has a root already.
    """
    attributes = with_checksum(
        {
            "format": FORMAT,
            "written_by": written_by(),
            "created": now(),
            "id": uuid.uuid4().hex,
            "model": model.to_json(),
            "files": _beside_root(folder),
        }
    )
    root = {"zarr_format": 3, "node_type": "group", "attributes": {ATTRIBUTE: attributes}}
    data = (json.dumps(root, ensure_ascii=False, indent=1) + "\n").encode()
    try:
        folder.create(ROOT_KEY, data)
    except FileExistsError:
        if is_store(folder):
            raise InvalidInputError(
                f"{folder} is a store already: its root is written once. Name another path."
            ) from None
        folder.write(ROOT_KEY, data)  # in place of the group that Zarr makes above its first array


def _beside_root(folder: Folder) -> dict[str, str]:
    """Key → checksum of the tables at the root, and of the parts of the weights, whose own checksums cover all their bytes."""
    tables = [key for key in (table_key(None, "neurons"), VOCABULARY_KEY) if folder.exists(key)]
    checksums: dict[str, str | None] = {key: checksum(folder.view(key)) for key in tables}
    for name in folder.names("weights"):
        if (part := name.removesuffix(".safetensors")) != name:
            key = weights_key(part)
            first = folder.read(key, 0, _HEADER_NBYTES)  # mostly all of the header, and one request of a server
            n_header = header_nbytes(first[:8], MAX_NBYTES)
            checksums[key] = read_checksums(first if n_header <= len(first) else folder.read(key, 0, n_header))
    return {key: found for key, found in checksums.items() if found is not None}


def is_store(folder: Folder) -> bool:
    """Whether the folder is a store, of whatever format; `FormatError` where it is one whose root is damaged or lost."""
    try:
        return read_root_attribute(folder) is not None
    except NotFoundError:
        return False


@dataclass(frozen=True)
class RootRecord:
    """What a store's root says."""

    model: ModelRecord
    id: str = ""
    """By which captures know it; empty in roots of earlier versions."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Key → checksum of what the root was written with: of tables by their bytes, of weights those in their own metadata."""


def read_root_record(folder: Folder) -> RootRecord:
    """The root; `NotFoundError` where there is no store, `FormatError` for one that is newer, damaged or lost."""
    try:
        attributes = read_root_attribute(folder)
    except NotFoundError:
        raise NotFoundError(
            f"There is no store at {folder}: expected a folder written by `actstore.capture(…)`. Check the path."
        ) from None
    if not isinstance(attributes, dict):
        raise FormatError(f"{folder} is a Zarr hierarchy, but not one written by actstore.")
    version = attributes.get("format")
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= FORMAT:
        raise FormatError(
            f"{folder} has store format {version}, written by {attributes.get('written_by', 'an unknown program')}; this "
            f"actstore reads formats up to {FORMAT}. Update actstore."
        )
    verify_checksum(attributes, f"{folder}/{ROOT_KEY}")
    model = ModelRecord.from_json(attributes.get("model"), f"{folder}/{ROOT_KEY}: model")
    root_id, files = attributes.get("id", ""), attributes.get("files", {})
    if not isinstance(root_id, str) or not isinstance(files, dict):
        raise FormatError(f"{folder}/{ROOT_KEY} is damaged: its id or its files are of another type.", RESTORE)
    return RootRecord(model, root_id, files)


def read_root(folder: Folder) -> ModelRecord:
    """The model of the store; errors as of `read_root_record`."""
    return read_root_record(folder).model


def read_root_id(folder: Folder) -> str:
    """The id of the store's root, by which its captures know it; empty where there is none, or of an earlier version."""
    return read_root_record(folder).id if is_store(folder) else ""


def check_beside_root(folder: Folder, key: str, root: RootRecord) -> None:
    """`FormatError` where a table at the root is not the one that the root was written with; older roots do not say."""
    expected = root.files.get(key)
    if expected is None:
        return
    try:
        found = f"checksum {table_checksum(folder, key)}"
    except NotFoundError:
        found = "nothing"
    if found != f"checksum {expected}":
        raise FormatError(
            f"{folder}/{key} is not what the store's root was written with: expected checksum {expected}, found {found}. "
            "It is damaged, or another store's.",
            "Restore it from a copy.",
        )


def bound_checksums(folder: Folder, part: str) -> str | None:
    """The checksums by which the store's root knows a part of the weights; None in a store of an earlier version.

    `ValueError` where the root knows no such part.
    """
    try:
        root = read_root_record(folder)
    except NotFoundError:
        return None  # a root is written after its weights
    if root.files and weights_key(part) not in root.files:
        raise ValueError("the store was written without it, so that it must be another store's")
    return root.files.get(weights_key(part))


def write_tokenizer(folder: Folder, tokenizer_json: str | None, vocabulary: pa.Table, fingerprint: str) -> None:
    """Write the tokenizer and its vocabulary; `InvalidInputError` where the store has another tokenizer."""
    if folder.exists(VOCABULARY_KEY):
        if read_metadata(folder, VOCABULARY_KEY).get(b"fingerprint") != fingerprint.encode():
            raise InvalidInputError(
                f"{folder} was captured with another tokenizer. One store has one tokenizer: name another store."
            )
        return
    metadata = {"fingerprint": fingerprint}
    if tokenizer_json is not None:
        state = tokenizer_json.encode()
        folder.write(TOKENIZER_KEY, state)
        metadata["tokenizer"] = checksum(state)
    write_table(folder, VOCABULARY_KEY, vocabulary.replace_schema_metadata(metadata))


def read_vocabulary(folder: Folder) -> pa.Table | None:
    """One row per token id: token, piece, text, bytes, special; None for a store of token ids without a tokenizer."""
    try:
        return read_table(folder, VOCABULARY_KEY, ("token", "piece", "text", "bytes", "special"))
    except NotFoundError:
        return None


def read_tokenizer(folder: Folder) -> str | None:
    """The tokenizer as JSON of the library tokenizers; None where there is none, `FormatError` where it is damaged."""
    try:
        state = folder.read(TOKENIZER_KEY)
    except NotFoundError:
        return None
    try:
        expected = read_metadata(folder, VOCABULARY_KEY).get(b"tokenizer", b"").decode()
    except NotFoundError:
        expected = ""
    if expected and checksum(state) != expected:
        raise FormatError(f"{folder}/{TOKENIZER_KEY} is damaged: checksum mismatch.", "Restore it from a copy.")
    with undamaged(folder, TOKENIZER_KEY):
        return state.decode()


def write_neurons(
    folder: Folder,
    model: ModelRecord,
    norms: Mapping[int, NDArray[np.float32] | Sequence[float]] | None,
    top_tokens: Mapping[int, Mapping[str, pa.Array]] | None = None,
) -> None:
    """Write the root's table of neurons, which follows from the weights alone.

    `norms`: layer → Euclidean norms of the write vectors; `top_tokens`: layer → the columns of `TOP_TOKENS`, null for a layer
    that is left out.
    """
    tables = []
    for layer in model.layers:
        n = layer.neurons
        columns = {
            "layer": pa.array(np.full(n, layer.layer, np.int32)),
            "neuron": pa.array(np.arange(n, dtype=np.int32)),
            "name": pa.array(neuron_names([layer.layer] * n, range(n))),
            "module": pa.array([layer.module] * n).dictionary_encode(),
            "write_norm": pa.array(norms[layer.layer], pa.float32()) if norms else pa.nulls(n, pa.float32()),
        }
        promoted = (top_tokens or {}).get(layer.layer, {})
        columns |= {name: promoted.get(name, pa.nulls(n, kind)) for name, kind in TOP_TOKENS.items()}
        tables.append(pa.table(columns))
    groups = group_rows(layer.neurons for layer in model.layers)
    write_table(folder, table_key(None, "neurons"), pa.concat_tables(tables).unify_dictionaries(), groups)


@contextmanager
def replacing_table(folder: Folder, key: str) -> Iterator[None]:
    """Own the root while the table `key` beside it is written anew inside, and bind it to the root again.

    Where this is interrupted, the table's own checksums remain.
    """
    with own_root(folder):
        _rewrite_files(folder, lambda files: {other: found for other, found in files.items() if other != key})
        yield
        _rewrite_files(folder, lambda files: {**files, key: checksum(folder.view(key))})


def _rewrite_files(folder: Folder, changed: Callable[[dict[str, str]], dict[str, str]]) -> None:
    """Replace what the root says of files beside it; a root of an earlier version, which says nothing, stays as it is."""
    group = folder.read_json(ROOT_KEY)
    attributes = group["attributes"][ATTRIBUTE]
    if attributes.get("files"):
        attributes["files"] = changed(attributes["files"])
        group["attributes"][ATTRIBUTE] = with_checksum(attributes)
        folder.write_json(ROOT_KEY, group)


def read_neurons(folder: Folder) -> pa.Table:
    """The root's table of neurons, one row per neuron, layers ascending; older stores lack the columns `TOP_TOKENS`."""
    key = table_key(None, "neurons")
    check_beside_root(folder, key, read_root_record(folder))
    return read_table(folder, key, ("layer", "neuron", "name", "module", "write_norm"))


class Root:
    """A store without its captures: its model, vocabulary and weights. `actstore.open` gives a `Store`, a subclass."""

    def __init__(self, location: str | Path | Folder) -> None:
        """Open the store at a path or URL; `NotFoundError` where there is none, `FormatError` for a newer one."""
        self.folder = location if isinstance(location, Folder) else Folder(location)
        self.root_record: RootRecord = read_root_record(self.folder)
        self.model: ModelRecord = self.root_record.model

    def __reduce__(self) -> tuple[type[Root], tuple[Folder]]:
        """A store is pickled by its location, and opened again where it is unpickled."""
        return type(self), (self.folder,)

    @cached_property
    def vocabulary(self) -> pa.Table | None:
        """One row per token id: token, piece, text, bytes, special; None where the store has no tokenizer."""
        check_beside_root(self.folder, VOCABULARY_KEY, self.root_record)
        return read_vocabulary(self.folder)

    @cached_property
    def _token_bytes(self) -> list[bytes] | None:
        return self.vocabulary["bytes"].to_pylist() if self.vocabulary is not None else None

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token id stands for; `<17>` where the store has no vocabulary, `<?>` where the id is not known."""
        if token == UNKNOWN:
            return UNKNOWN_TEXT
        by_id = self._token_bytes
        return by_id[token] if by_id is not None and 0 <= token < len(by_id) else f"<{token}>".encode()

    def token_text(self, token: int) -> str:
        """The text of one token; incomplete characters are shown as U+FFFD."""
        return self.token_bytes(token).decode(errors="replace")

    def text(self, tokens: Iterable[int]) -> str:
        """The text of consecutive token ids."""
        return b"".join(self.token_bytes(int(t)) for t in tokens).decode(errors="replace")
