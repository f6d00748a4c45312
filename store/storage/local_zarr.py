"""Zarr's view of a local folder: it reads as Zarr's own local store does, and writes as everything else here."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Self

from zarr.storage import LocalStore

from actstore.store.storage.disk import is_temporary

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from zarr.core.buffer import Buffer

    from actstore.store.storage.disk import Disk


class LocalZarr(LocalStore):
    """The keys of a `LocalStorage`, for Zarr."""

    def __init__(self, disk: Disk, *, read_only: bool = False) -> None:
        """Read and write below the root of `disk`."""
        super().__init__(disk.root, read_only=read_only)
        self._disk = disk

    def with_read_only(self, read_only: bool = False) -> Self:
        """The same store, to read only or to write too."""
        return type(self)(self._disk, read_only=read_only)

    async def _set(self, key: str, value: Buffer, exclusive: bool = False) -> None:
        if not self._is_open:
            await self._open()
        await asyncio.to_thread(self._write, key, value, exclusive)

    def set_sync(self, key: str, value: Buffer) -> None:
        """Replace what is under `key`."""
        self._ensure_open_sync()
        self._write(key, value, exclusive=False)

    def _write(self, key: str, value: Buffer, exclusive: bool) -> None:
        self._check_writable()
        self._disk.write(self.root / key, memoryview(value.as_buffer_like()), new=exclusive)

    async def delete(self, key: str) -> None:
        """Remove `key`, and everything below it."""
        await asyncio.to_thread(self.delete_sync, key)

    def delete_sync(self, key: str) -> None:
        """Remove `key`, and everything below it."""
        self._check_writable()
        self._disk.delete(self.root / key)

    async def delete_dir(self, prefix: str) -> None:
        """Remove everything below `prefix`."""
        await asyncio.to_thread(self.delete_sync, prefix)

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """The names directly below `prefix`, those of temporary files left out."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for path in (self.root / prefix).iterdir():
                if not is_temporary(path):
                    yield path.name
