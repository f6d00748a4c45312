"""Storage in the memory of this process, for tests and estimates."""

from __future__ import annotations

from actstore.store.errors import InvalidInputError
from actstore.store.storage.fsspec import FsspecStorage


class MemoryStorage(FsspecStorage):
    """fsspec's memory file system: one for the whole process, so that a store is found again by its URL."""

    def address(self) -> str:
        """None that another process could open: `InvalidInputError`."""
        raise InvalidInputError(
            f"{self.location} lives in the memory of this process, and another cannot open it. Keep the store in a folder."
        )
