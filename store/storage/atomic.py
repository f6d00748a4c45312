"""Files outside a store, such as exports and pictures: free space is checked, and they appear whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from actstore.store.errors import InvalidInputError
from actstore.store.storage.disk import remove_temporaries_of, sync_file, sync_folder, temporary_path

if TYPE_CHECKING:
    from collections.abc import Iterator


def check_room(path: Path, nbytes: int, otherwise: str) -> None:
    """Raise `InvalidInputError` where a path's disk has less than `nbytes` free; `otherwise`: the alternative to name."""
    free = shutil.disk_usage(path.parent).free
    if nbytes > free:
        raise InvalidInputError(
            f"{path} takes {nbytes / 1e6:,.1f} MB, and its disk has {free / 1e6:,.1f} MB free. Make room, or {otherwise}."
        )


def sync_tree(folder: Path) -> None:
    """Have the disk keep every file below a folder, before the folder takes the place of another."""
    for place, _, names in os.walk(folder):
        for name in names:
            sync_file(Path(place) / name)
        sync_folder(Path(place))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to that becomes `path` on success, safe from power cuts, and is removed otherwise.

    What a killed process has left of it goes first.

    An `OSError` that names no file, as that of a full disk, names `path` from then on.
    """
    if path.is_dir():  # before anything is written: only the renaming would fail
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    remove_temporaries_of(path)
    partial = temporary_path(path)
    try:
        yield partial
        sync_file(partial)
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def making_folder(path: Path) -> Iterator[Path]:
    """A path at which to make a folder, which becomes `path` on success and is removed otherwise.

    `InvalidInputError` where there is something at `path`: a folder is not replaced, as it may hold what others put there.
    """
    if path.exists():
        raise InvalidInputError(f"{path} exists already. Delete it, or name another folder.")
    partial = temporary_path(path)
    try:
        yield partial
        sync_tree(partial)
        partial.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
