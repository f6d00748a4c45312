"""Which storage a location is opened with: the one table of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from actstore.store.storage.fsspec import FsspecStorage
from actstore.store.storage.local import LocalStorage
from actstore.store.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from actstore.store.storage.protocol import Storage

SCHEMES: Final[dict[str, type[Storage]]] = {
    "": LocalStorage,
    "file": LocalStorage,
    "local": LocalStorage,
    "memory": MemoryStorage,
}
"""What stands before "://" in a location → its storage. Every other scheme is opened by `FsspecStorage`."""


def open_storage(location: str, *, read_only: bool, sync: bool = True) -> Storage:
    """The storage at a path or URL; `InvalidInputError` where none can be opened there."""
    scheme, separator, _ = location.partition("://")
    return SCHEMES.get(scheme if separator else "", FsspecStorage)(location, read_only=read_only, sync=sync)
