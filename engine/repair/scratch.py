"""Files made beside a store, to be compared with its own before they take their place."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from actstore.store.layout import capture_key
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PREFIX: Final = ".repair-"
_PIECE: Final = 1 << 24
"""Bytes that are copied at once."""


@contextmanager
def scratch_folder(folder: Folder, capture: str) -> Iterator[Folder]:
    """An empty folder, gone afterwards, on the disk of a capture that the caller owns; what killed repairs left goes too."""
    clear_leftovers(folder, capture)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=folder.local_path(capture_key(capture))) as scratch:
        yield Folder(scratch, read_only=False, sync=False)


def leftovers(folder: Folder, capture: str) -> list[Path]:
    """The folders beside a capture that belong to a repair, which was killed or is going on."""
    path = folder.local_path(capture_key(capture))
    return [] if path is None else list(path.glob(f"{_PREFIX}*"))


def clear_leftovers(folder: Folder, capture: str) -> None:
    """Remove what killed repairs have left beside a capture that the caller owns."""
    for path in leftovers(folder, capture):
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def temporary_folder() -> Iterator[Folder]:
    """An empty folder for small files, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as scratch:
        yield Folder(scratch, read_only=False, sync=False)


def copy_file(source: Folder, target: Folder, key: str) -> None:
    """Put the file under `key` in its place, where it appears whole or not at all."""
    pieces = source.source(key, tail=None)
    with target.writer(key) as file:
        for start in range(0, pieces.nbytes, _PIECE):
            file.write(pieces.read(start, min(start + _PIECE, pieces.nbytes)))
