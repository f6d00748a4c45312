"""How to ask for one key in storages that cannot say which they have, as a static web host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore.store.errors import NotFoundError

if TYPE_CHECKING:
    from actstore.store.storage.folder import Folder


def is_readable(folder: Folder, key: str) -> bool:
    """Whether there are bytes under `key`, found by reading the first of them, which every storage can."""
    try:
        folder.read(key, 0, 1)
    except NotFoundError:
        return False
    return True
