"""What a `reorder` that was killed has left in a store: a capture is put back in its place, and what lies beside goes."""

from __future__ import annotations

import shutil
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from actstore.store.capture.record import read_capture
from actstore.store.errors import FormatError
from actstore.store.layout import capture_key
from actstore.store.storage.folder import Folder
from actstore.store.storage.lock import own

if TYPE_CHECKING:
    from pathlib import Path

SCRATCH: Final = ".reorder"
"""The folder beside captures in which new ones are written, each in a store of its own."""
ASIDE: Final = "before"
"""Where a capture lies for a moment, as in a store of its own, on file systems that cannot exchange two folders."""


def path_of(folder: Folder, key: str) -> Path:
    """Where a key of a store on a local disk is."""
    path = folder.local_path(key)
    assert path is not None
    return path


def put_back(folder: Folder, only: str | None = None) -> list[str]:
    """Put captures back, or `only` one, that a kill has left aside, where a file system takes two steps; their names.

    `ReadOnlyError` where another process is between these steps.
    """
    names = []
    for root in sorted(path_of(folder, SCRATCH).glob(f"*/{ASIDE}")):
        name, aside = root.parent.name, Folder(root, read_only=False)
        here, there = (path_of(one, capture_key(name)) for one in (folder, aside))
        if not there.is_dir() or only not in (None, name):
            continue
        with own(aside, name):  # its lock went with it: whoever is between the two steps still has it
            if there.is_dir() and not here.exists():
                there.rename(here)
                names.append(name)
    return names


def remains(folder: Folder, only: str | None = None) -> list[str]:
    """The captures, or `only` one, beside which a `reorder` has written, which was killed or is going on."""
    names = sorted(path.name for path in path_of(folder, SCRATCH).glob("*") if path.is_dir())
    return [name for name in names if only in (None, name)]


def clear_remains(folder: Folder, name: str) -> bool:
    """Remove what a killed `reorder` has left beside a capture; False where the capture cannot be read.

    What was left may then be all that there is of it. `ReadOnlyError` where another process is writing the capture, which may
    be the `reorder` itself.
    """
    try:
        is_there = read_capture(folder, name) is not None
    except FormatError:
        is_there = False
    if is_there:
        with own(folder, name):
            remove_scratch(folder, name)
    return is_there


def remove_scratch(folder: Folder, name: str) -> None:
    """Remove what lies beside a capture that the caller owns, and the folder around it if nothing else is there."""
    path = path_of(folder, f"{SCRATCH}/{name}")
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):  # another capture is in the making there, or nothing was
        path.parent.rmdir()
