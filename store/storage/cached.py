"""A folder of which each small file is fetched once, however often it is read: for whoever reads all of a store on a server."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from zarr.storage import WrapperStore

from actstore.store.storage.folder import Folder
from actstore.store.storage.pieces import MemorySource

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype

    from actstore.store.storage.pieces import Source

LARGEST_NBYTES: Final = 1 << 23
"""Files of more than this are not kept."""
KEPT_NBYTES: Final = 1 << 28
"""Bytes that are kept; beyond it, the files go that were not read for longest."""


class CachedFolder(Folder):
    """The same folder, for reading; it takes a file, once read whole, for what is there from then on."""

    def __init__(self, folder: Folder, *, nbytes: int = KEPT_NBYTES) -> None:
        """Keep at most `nbytes` of the files of `folder`."""
        super().__init__(folder)
        self._direct, self.storage = folder, folder.storage
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._room, self._changing = nbytes, Lock()
        self._zarr = _CachedZarr(folder.zarr, self)

    @property
    def direct(self) -> Folder:
        """The folder itself, for files that are read once."""
        return self._direct

    @property
    def zarr(self) -> Store:
        """The same keys, as Zarr opens arrays among them."""
        return self._zarr

    def read(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        """As of `Folder`."""
        data = self.kept(key)
        if data is not None:
            return data if not start and stop is None else data[start or 0 : stop]
        data = super().read(key, start, stop)
        if not start and (stop is None or len(data) < stop):
            self.keep(key, data)
        return data

    def view(self, key: str) -> bytes:
        """As of `Folder`."""
        return self.read(key)

    def source(self, key: str, *, tail: int | None = None) -> Source:
        """As of `Folder`."""
        data = self.kept(key)
        if data is not None:
            return MemorySource(data)
        source = super().source(key, tail=tail)
        if source.nbytes_held == source.nbytes:
            self.keep(key, bytes(source.read(0, source.nbytes)))
        return source

    def kept(self, key: str) -> bytes | None:
        """The bytes of a file that is kept."""
        with self._changing:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def keep(self, key: str, data: bytes) -> None:
        """Keep the bytes of a file, if it is small."""
        if len(data) > LARGEST_NBYTES:
            return
        with self._changing:
            self._room += len(self._kept.pop(key, b"")) - len(data)
            self._kept[key] = data
            while self._room < 0:
                self._room += len(self._kept.popitem(last=False)[1])


class _CachedZarr(WrapperStore[Any]):
    """Zarr's view of the same."""

    def __init__(self, store: Store, folder: CachedFolder) -> None:
        super().__init__(store)
        self._folder = folder

    def _with_store(self, store: Store) -> _CachedZarr:
        return type(self)(store, self._folder)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """The bytes under `key`, or a range of them; None where there are none."""
        if byte_range is not None:
            return await super().get(key, prototype, byte_range)
        kept = self._folder.kept(key)
        if kept is not None:
            return prototype.buffer.from_bytes(kept)
        found = await super().get(key, prototype)
        if found is not None:
            self._folder.keep(key, found.to_bytes())
        return found
