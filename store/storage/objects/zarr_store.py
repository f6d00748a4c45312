"""Zarr's view of an object store: Zarr's own store over the same driver, with our errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from zarr.storage import ObjectStore

from actstore.store.storage.objects.errors import sentences

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

    from actstore.store.storage.objects.connect import Driver


class ObjectZarr(ObjectStore[Any]):
    """The keys of an `ObjectStorage`, for Zarr.

    Zarr asks for every group above each array that it creates, and creates those that are missing: two requests per level and
    array. What this process has so created, or found, is not asked for again.
    """

    def __init__(self, driver: Driver, location: str, *, read_only: bool = False) -> None:
        """Read, and write unless `read_only`, by `driver`; errors name `location`."""
        super().__init__(driver, read_only=read_only)
        self._location = location
        self._groups: dict[str, Buffer] = {}
        """Keys of metadata that Zarr has seen to be there → what it would have put there."""

    def forget(self, prefix: str) -> None:
        """Take nothing for granted at and below `prefix`, which is to be deleted."""
        for key in [key for key in self._groups if not prefix or key == prefix or key.startswith(f"{prefix}/")]:
            del self._groups[key]

    def with_read_only(self, read_only: bool = False) -> Self:
        """The same store, to read only or to write too."""
        return type(self)(self.store, self._location, read_only=read_only)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """The bytes under `key`, or a range of them; None where there are none."""
        if byte_range is None and key in self._groups:
            return self._groups[key]
        with sentences(self._location):
            return await super().get(key, prototype, byte_range)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Ranges under several keys."""
        with sentences(self._location):
            return await super().get_partial_values(prototype, key_ranges)

    async def exists(self, key: str) -> bool:
        """Whether there are bytes under `key`."""
        with sentences(self._location):
            return await super().exists(key)

    async def set(self, key: str, value: Buffer) -> None:
        """Replace what is under `key`."""
        with sentences(self._location, "written"):
            await super().set(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write under `key` where there is nothing."""
        if key not in self._groups:
            with sentences(self._location, "written"):
                await super().set_if_not_exists(key, value)
            self._groups[key] = value

    async def delete(self, key: str) -> None:
        """Remove `key`."""
        self.forget(key)
        with sentences(self._location, "written"):
            await super().delete(key)

    async def delete_dir(self, prefix: str) -> None:
        """Remove everything below `prefix`."""
        self.forget(prefix.rstrip("/"))
        with sentences(self._location, "written"):
            await super().delete_dir(prefix)

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:  # type: ignore[override]
        """The names directly below `prefix`."""
        with sentences(self._location, "listed"):
            async for name in super().list_dir(prefix):
                yield name

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:  # type: ignore[override]
        """Every key below `prefix`."""
        with sentences(self._location, "listed"):
            async for key in super().list_prefix(prefix):
                yield key

    async def getsize(self, key: str) -> int:
        """Bytes under `key`."""
        with sentences(self._location):
            return int(await super().getsize(key))
