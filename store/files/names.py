"""Which captures, graphs, edits and explanations a store has: what lies in their folders, or else what an index lists.

What can be listed is the truth. `captures.json` and its like, one per kind, are for readers of a storage that cannot list.
A name is put there before its record is written, so that an index may say too much, never too little: a reader passes over
names without a record. Every writer of a record writes the index of its kind anew from what it lists, under the lock of the
root: so one is put right that lacks what an earlier version wrote, or by `store.repair()`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from actstore.store.errors import FormatError, NotFoundError, UnlistableError
from actstore.store.files.records import verify_checksum, with_checksum
from actstore.store.layout import names_key
from actstore.store.storage.lock import own_root

if TYPE_CHECKING:
    from actstore.store.storage.folder import Folder

KINDS: Final = ("captures", "graphs", "edits", "explanations")
"""The folders of a store whose names readers ask for."""


def stored_names(folder: Folder, kind: str) -> list[str]:
    """The names in the folder `kind`, sorted, with a record or without; `NotFoundError` where nothing says which there are."""
    try:
        return listed_names(folder, kind)
    except (UnlistableError, PermissionError):
        names = indexed_names(folder, kind)
    if names is None:
        if kind != "captures" and indexed_names(folder, "captures") is not None:
            return []  # a store that has had an index from its first capture on, and never one of these
        raise NotFoundError(
            f"{folder} cannot be listed, and it has no {names_key(kind)} that says which {kind} there are: an earlier version "
            "of actstore wrote it. Name what you want to read, or run `store.repair()` where the store can be written."
        )
    return names


def listed_names(folder: Folder, kind: str) -> list[str]:
    """The names in the folder `kind`, as the storage lists them."""
    return [name for name in folder.names(kind) if name != "zarr.json"]


def indexed_names(folder: Folder, kind: str) -> list[str] | None:
    """The names in the index of `kind`, sorted; None where there is no index, `FormatError` where it is damaged."""
    key = names_key(kind)
    try:
        value = folder.read_json(key)
    except NotFoundError:
        return None
    verify_checksum(value, f"{folder}/{key}")
    names = value.get("names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or "checksum" not in value:
        raise FormatError(f"{folder}/{key} is damaged: it should hold a list of names.", "Run `store.repair()`.")
    return sorted(names)


def write_names(folder: Folder, kind: str, *names: str) -> None:
    """Bring the index of `kind` up to what is listed, and `names`, whose records are to be written next."""
    with own_root(folder):
        expected = sorted({*listed_names(folder, kind), *names})
        try:
            found = indexed_names(folder, kind)
        except FormatError:
            found = None
        if found != expected:
            folder.write_json(names_key(kind), with_checksum({"names": expected}))


def unlisted_names(folder: Folder, kind: str) -> list[str]:
    """The names that an index lacks, which a reader that cannot list would not see; none where there is no index.

    `FormatError` where it is damaged.
    """
    found = indexed_names(folder, kind)
    return [] if found is None else sorted({*listed_names(folder, kind)} - {*found})
