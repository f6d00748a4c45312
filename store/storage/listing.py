"""Storages that cannot say which keys they have, as a static web host: what they raise, and how to ask for one key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore.store.errors import NotFoundError, StorageError

if TYPE_CHECKING:
    from actstore.store.storage.folder import Folder


class UnlistableError(StorageError):
    """Keys were to be listed in a storage that can only read those it is asked for."""


def is_readable(folder: Folder, key: str) -> bool:
    """Whether there are bytes under `key`, found by reading the first of them, which every storage can."""
    try:
        folder.read(key, 0, 1)
    except NotFoundError:
        return False
    return True
