"""Keys whose bytes lie inside of other objects: what is one file in most stores, and a part of one in some."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from actstore.store.storage.pieces import Source


class InnerKeys(Protocol):
    """Finds the bytes of some keys below a prefix inside of other objects; `Folder` asks it before the storage."""

    def has(self, key: str) -> bool:
        """Whether `key` is one that lies in another object, there or not."""

    def source(self, key: str, tail: int | None) -> Source | None:
        """The bytes under `key`, `tail` as for `Folder.source`; None for a key that is an object of its own.

        FileNotFoundError where the key should be in another object, and is not.
        """

    def forget(self, key: str) -> None:
        """Take nothing for granted of the object under `key`, or of those below it: it may have been replaced."""
