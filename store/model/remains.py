"""What a folder holds whose root, or whose capture's record, is not there: the rest of what was lost, or a beginning.

A store is made in this order: the plan of its first capture, tokenizer, weights, table of neurons, root, the capture's record,
blocks. What comes later proves that what comes before it was there, and must not be written over. What proves nothing was left
by a first capture that was killed, and may be overwritten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from actstore.store.errors import FormatError, NotFoundError, UnlistableError
from actstore.store.layout import (
    BLOCK_ARRAYS,
    LOCK_NAME,
    bundles_prefix,
    capture_key,
    committed_key,
    edits_key,
    explanations_key,
    graphs_key,
    names_key,
)
from actstore.store.storage.listing import is_readable

if TYPE_CHECKING:
    from actstore.store.storage.folder import Folder

_FINISHED: Final = ("neurons.parquet", "prompts.parquet", "queries.parquet")

_BEFORE_ROOT: Final = ("tokenizer", "weights", "neurons.parquet")
"""What a first capture writes at the root before the root's own record."""

_OWN: Final = frozenset({"captures", LOCK_NAME, "zarr.json", *_BEFORE_ROOT})


def part_of_lost_capture(folder: Folder, capture: str) -> str | None:
    """The key of something that is written only after a capture's record; None where there is nothing of the kind.

    Where keys cannot be listed, that of a finished capture's index, which readers of such a storage go by.
    """
    prefix = capture_key(capture)
    try:
        names = set(folder.names(prefix))
    except (UnlistableError, PermissionError):
        return key if is_readable(folder, key := committed_key(capture)) else None
    if finished := sorted(names.intersection(_FINISHED)):
        return f"{prefix}/{finished[0]}"
    if "blocks" in names and (blocks := folder.names(f"{prefix}/blocks")):
        return f"{prefix}/blocks/{blocks[0]}"
    if "bundles" in names and (bundles := folder.names(bundles_prefix(capture))):
        return f"{bundles_prefix(capture)}/{bundles[0]}"
    for array in sorted(names.intersection((*BLOCK_ARRAYS, "statistics"))):
        for key, _ in folder.sizes(f"{prefix}/{array}"):
            if "/c/" in key or array == "statistics":
                return key
    return None


def part_of_lost_store(folder: Folder) -> str | None:
    """The key of something that is written only after a store's root; None where there is nothing of the kind."""
    try:
        names = folder.names("")  # mostly of a folder in which nothing is, and nothing more has to be listed
    except (UnlistableError, PermissionError):
        return key if is_readable(folder, key := names_key("captures")) else None
    records = [graphs_key(name, "graph.json") for name in (folder.names("graphs") if "graphs" in names else [])]
    records += [edits_key(name, "edit.json") for name in (folder.names("edits") if "edits" in names else [])]
    explanations = folder.names("explanations") if "explanations" in names else []
    records += [explanations_key(name, "record.json") for name in explanations]
    for key in records:
        if folder.exists(key):
            return key
    for name in _captures(folder) if "captures" in names else []:
        key = f"{capture_key(name)}/zarr.json"
        try:
            attributes = folder.read_json(key).get("attributes")
        except NotFoundError:
            attributes = None
        except FormatError:
            return key
        if isinstance(attributes, dict) and attributes.get("actstore_capture") is not None:
            return key
        if (part := part_of_lost_capture(folder, name)) is not None:
            return part
    return None


def is_begun(folder: Folder) -> bool:
    """Whether a capture was begun in the folder: each has a lock, from before anything else of it.

    False where keys cannot be listed: nothing is written there.
    """
    try:
        return any(folder.exists(f"{capture_key(name)}/{LOCK_NAME}") for name in _captures(folder))
    except (UnlistableError, PermissionError):
        return False


def unexpected_entry(folder: Folder) -> str | None:
    """The name of something that no first capture leaves in a folder without a root; None where there is none."""
    names = folder.names("")  # before it is asked what was begun: another process may be at it
    if is_begun(folder):
        names = [name for name in names if name not in _OWN]
    elif not any(folder.names(capture_key(name)) for name in _captures(folder)):
        # Another process has made it, and not its lock yet; or one whose disk was full could remove the capture, and no more.
        mere = {"captures", LOCK_NAME, *(["zarr.json"] if _is_mere_group(folder) else [])}
        names = [name for name in names if name not in mere]
    return names[0] if names else None


def remove_beginning(folder: Folder) -> None:
    """Remove what first captures that were killed have left outside their own folders; the root is owned, and not there."""
    for name in folder.names(""):
        if name in _BEFORE_ROOT:
            folder.delete(name)


def remove_begun(folder: Folder, capture: str) -> None:
    """Remove a capture in a folder on a local disk that is no store yet, and where it is the only one the folder too.

    The caller owns both it and the root. Whatever stops the removal leaves a beginning, or an empty folder: the capture, whose
    lock says that something was begun, goes after what it has left beside it.
    """
    path = folder.local_path()
    assert path is not None
    key, is_only = capture_key(capture), _captures(folder) == [capture]
    if is_only:
        remove_beginning(folder)
    for name in folder.names(key):
        if name != LOCK_NAME:
            folder.delete(f"{key}/{name}")
    folder.delete(key)
    if not is_only:
        return
    # A folder that is not empty, as another capture has just been begun there, is an OSError, and stays.
    (path / "captures" / "zarr.json").unlink(missing_ok=True)
    (path / "captures").rmdir()
    if not set(folder.names("")) - {"zarr.json", LOCK_NAME}:
        (path / "zarr.json").unlink(missing_ok=True)
        (path / LOCK_NAME).unlink(missing_ok=True)
        path.rmdir()


def _is_mere_group(folder: Folder) -> bool:
    """Whether zarr.json is what Zarr makes above its first array, and says nothing."""
    try:
        return not folder.read_json("zarr.json").get("attributes")
    except (NotFoundError, FormatError):
        return False


def _captures(folder: Folder) -> list[str]:
    return [name for name in folder.names("captures") if name != "zarr.json"]
