"""Storage in the memory of this process, for tests and estimates."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Final

from actstore.store.errors import InvalidInputError
from actstore.store.storage.fsspec import FsspecStorage

if TYPE_CHECKING:
    from actstore.store.storage.pieces import Bytes

_changing: Final = Lock()
"""Held by whoever creates, swaps or deletes: threads are all who can."""


class MemoryStorage(FsspecStorage):
    """fsspec's memory file system: one for the whole process, so that a store is found again by its URL."""

    def address(self) -> str:
        """None that another process could open: `InvalidInputError`."""
        raise InvalidInputError(
            f"{self.location} lives in the memory of this process, and another cannot open it. Keep the store in a folder."
        )

    def create(self, key: str, data: Bytes) -> None:
        """Write where there is nothing."""
        with _changing:
            super().create(key, data)

    def swap(self, key: str, data: Bytes, expected: Bytes) -> bool:
        """Replace what is under `key` where that is still `expected`; whether it was."""
        with _changing:
            is_expected = self.exists(key) and self.read(key, None, None) == expected
            if is_expected:
                self.write(key, data)
            return is_expected

    def delete(self, key: str) -> None:
        """Remove `key`, and every key below it."""
        with _changing:
            super().delete(key)
