"""`actstore.copy`: a store from one location to another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actstore.store.arguments import argument
from actstore.store.calls import checked
from actstore.store.storage.folder import Folder
from actstore.store.transfer.copy import CopyReport, copy_store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

__all__ = ["CopyReport", "copy"]


@checked
def copy(
    src: str | Path,
    dst: str | Path,
    *,
    captures: Sequence[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    to_storage_options: Mapping[str, Any] | None = None,
    sync: bool = True,
    on_block: Callable[[int, int], None] | None = None,
) -> CopyReport:
    """Copy a store between any two locations, paths or URLs, each file once, held against its checksum on the way.

    Whatever stops it leaves at `dst` a store that can be read, or a beginning that nobody takes for one; the same call goes on,
    and copies what is missing there. Of a capture that is being written, what is committed is copied. Claims and locks of
    whoever writes at `src` stay there.

    - `captures`: only these, and their graphs; edits and what belongs to the store as a whole come along.
    - `storage_options`, `to_storage_options`: what opens `src` and `dst` beyond what the environment says.
    - `sync`: wait for the disk, so that nothing is lost in a power cut.
    - `on_block`: told after each block how many are at `dst`, and how many there will be.

    Errors: `InvalidInputError` where `dst` has another store, or anything else; `FormatError` where a file is not what its
    record says: it, and what it belongs to, is not copied; `StorageError` where a server cannot be reached; `ReadOnlyError`
    while another process writes at `dst`; `CaptureError` where the disk is full, or the copy was interrupted.

    >>> actstore.copy("gpt2.actstore", "s3://bucket/gpt2.actstore")
    """
    options = argument("storage_options", storage_options, dict[str, Any] | None)
    to_options = argument("to_storage_options", to_storage_options, dict[str, Any] | None)
    source = Folder(src, storage_options=options)
    target = Folder(dst, read_only=False, sync=argument("sync", sync, bool), storage_options=to_options)
    names = argument("captures", captures, tuple[str, ...] | None)
    return copy_store(source, target, names, on_block or (lambda done, total: None))
