"""What belongs to a store as a whole, copied: tokenizer, weights, table of neurons, and the root's record last."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore.store.errors import FormatError, InvalidInputError, NotFoundError
from actstore.store.files.checksums import header_nbytes, read_checksums
from actstore.store.files.parquet import read_metadata
from actstore.store.layout import LOCK_NAME, TOKENIZER_KEY, VOCABULARY_KEY, capture_key, table_key, weights_key
from actstore.store.model.remains import part_of_lost_store
from actstore.store.model.root import is_store, read_root_record
from actstore.store.storage.listing import is_readable
from actstore.store.storage.lock import own_root
from actstore.store.transfer.ranges import damaged, of_table, of_weights, whole
from actstore.store.transfer.transfer import File

if TYPE_CHECKING:
    from collections.abc import Iterator

    from actstore.store.model.root import RootRecord
    from actstore.store.storage.folder import Folder
    from actstore.store.transfer.transfer import Transfer

_KEY = "zarr.json"
_NEURONS = table_key(None, "neurons")


def check_root_of(source: Folder, target: Folder, root: RootRecord) -> None:
    """Raise `InvalidInputError` unless a copy of the store `source` can be made, or completed, at `target`.

    Nothing may be there, or the same store, or what a copy that was stopped has left.
    """
    if is_store(target):
        there = read_root_record(target)
        is_same = bool(root.id) and (there.id, there.model.fingerprint) == (root.id, root.model.fingerprint)
        if not is_same and target.read(_KEY) != source.read(_KEY):
            raise InvalidInputError(
                f"{target} holds another store than {source}: its root is {_named(there)}, expected {_named(root)}. Name "
                "another `dst`, or delete the store that is there."
            )
        return
    for name in _unexpected(target, root):
        raise InvalidInputError(
            f"{target} is a folder with other content ({name}, …). Name a new place for the copy as `dst`."
        )


def _named(root: RootRecord) -> str:
    return f"{root.id[:12]}… of {root.model.name}" if root.id else f"of {root.model.name}, without an id"


def _unexpected(target: Folder, root: RootRecord) -> Iterator[str]:
    """What lies in a folder without a root that no stopped copy of the store of `root` leaves there."""
    if (part := part_of_lost_store(target)) is not None:
        yield part
    folders = {"tokenizer": {TOKENIZER_KEY, VOCABULARY_KEY}, "weights": {weights_key(part) for part in _parts(root)}}
    for name in target.names(""):
        if name in folders:
            yield from (key for key, _ in target.sizes(name) if key not in folders[name])
        elif name == "captures":
            # One that was begun has its lock, or its plan.
            yield from (key for one in target.names(name) if not _is_begun(target, key := capture_key(one)))
        elif name not in (LOCK_NAME, _KEY, _NEURONS, "captures.json"):
            yield name


def _is_begun(target: Folder, key: str) -> bool:
    return key == capture_key(_KEY) or not {*target.names(key)} - {LOCK_NAME, _KEY, "inputs", "tokens"}


def _parts(root: RootRecord) -> tuple[str, ...]:
    """The parts of the weights that a store may have; roots of earlier versions do not list them."""
    return root.model.weights or (*(f"layer-{one.layer}" for one in root.model.layers), "unembedding", "final_norm")


def copy_root(transfer: Transfer, root: RootRecord) -> None:
    """Copy what belongs to the store as a whole; nothing where the target has its root already.

    Parts of the weights that an earlier copy has written whole are not copied again.
    """
    source, target = transfer.source, transfer.target
    with own_root(target):
        if is_store(target):
            return
        data = source.read(_KEY)
        if read_root_record(source) != root:
            raise damaged(source, _KEY, "it is another than before")
        group = File(f"captures/{_KEY}", is_optional=True)
        transfer.copy([group, *_table_files(source, root), *_weight_files(source, target, root)])
        try:
            target.create(_KEY, data)
        except FileExistsError:
            target.write(_KEY, data)  # in place of the group that Zarr makes above its first array
        transfer.count(len(data))


def _table_files(source: Folder, root: RootRecord) -> Iterator[File]:
    """The root's tables and the tokenizer; each may be left out of a store, unless the root says that it is there."""
    for key in (_NEURONS, VOCABULARY_KEY):
        expected = root.files.get(key)
        ranges = of_table(source, key) if expected is None else whole(expected)
        yield File(key, ranges, is_optional=expected is None)
    if not is_readable(source, TOKENIZER_KEY):
        return
    try:
        checksum = read_metadata(source, VOCABULARY_KEY).get(b"tokenizer", b"").decode()
    except NotFoundError:
        checksum = ""
    yield File(TOKENIZER_KEY, whole(checksum)) if checksum else File(TOKENIZER_KEY)


def _weight_files(source: Folder, target: Folder, root: RootRecord) -> Iterator[File]:
    for part in _parts(root):
        key = weights_key(part)
        bound_to = root.files.get(key)
        if bound_to is None or not _is_written(source, target, key, bound_to):
            yield File(key, of_weights(source, part, bound_to), is_optional=part not in root.model.weights)


def _is_written(source: Folder, target: Folder, key: str, bound_to: str) -> bool:
    """Whether a part of the weights is at the target whole: of that size, and with these checksums. Files appear whole."""
    try:
        there, here = target.source(key), source.source(key)
        n_header = header_nbytes(bytes(there.read(0, 8)), there.nbytes)
        return there.nbytes == here.nbytes and read_checksums(bytes(there.read(0, n_header))) == bound_to
    except (NotFoundError, FormatError, ValueError, EOFError):
        return False
