"""A storage over any Zarr store, by Zarr's own interface alone: the base of the storages here."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from zarr.abc.store import OffsetByteRequest, RangeByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from actstore.store.errors import StorageError
from actstore.store.storage.pieces import MemorySource
from actstore.store.storage.protocol import Storage
from actstore.store.storage.writers import CollectingWriter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from zarr.abc.store import Store as ZarrStore

    from actstore.store.storage.batch import Batch
    from actstore.store.storage.pieces import Bytes, Source
    from actstore.store.storage.writers import KeyWriter


LARGE_NBYTES: Final = 1 << 24
"""Objects that are larger, as bundles, are not fetched whole for a piece of them."""


@contextlib.contextmanager
def reading(location: str) -> Iterator[None]:
    """Every driver has its own errors for a server that cannot be reached or refuses: all of them become `StorageError`."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason is given")
        raise StorageError(f"{location} cannot be read: {type(error).__name__}: {reason}") from error


class _RangedSource:
    """Pieces of an object, each read when it is wanted.

    Drivers do not say whether it is still the object that was opened: that is left to the checksums of what is read.
    """

    nbytes_held = 0

    def __init__(self, storage: ZarrStorage, key: str, nbytes: int) -> None:
        self._storage, self._key, self.nbytes = storage, key, nbytes

    def read(self, start: int, stop: int) -> bytes:
        """Bytes start…stop; `EOFError` where there are fewer."""
        data = self._storage.read(self._key, start, stop) if stop > start else b""
        if len(data) < stop - start:
            raise EOFError(f"it ends at byte {start + len(data)}")
        return data

    def read_into(self, start: int, out: NDArray[Any]) -> None:
        """Fill the contiguous `out` with the bytes from `start`; `EOFError` where there are fewer."""
        out.reshape(-1).view(np.uint8)[:] = np.frombuffer(self.read(start, start + out.nbytes), np.uint8)

    def will_need(self) -> None:
        """Nothing: drivers are not told."""


class ZarrStorage(Storage):
    """What every storage does where it has nothing faster."""

    concurrency = 1

    def __init__(self, location: str, zarr: ZarrStore) -> None:
        self.location = location
        self.zarr = zarr

    def address(self) -> str:
        """The location itself."""
        return self.location

    def read(self, key: str, start: int | None, stop: int | None) -> bytes:
        """Bytes start…stop under `key`; a `StorageError` that names the location where the driver fails."""
        byte_range = OffsetByteRequest(start or 0) if stop is None else RangeByteRequest(start or 0, stop)
        with reading(self.location):
            buffer = sync(self.zarr.get(key, default_buffer_prototype(), byte_range))
        if buffer is None:
            raise FileNotFoundError(key)
        return buffer.to_bytes()

    def view(self, key: str) -> Bytes:
        """All bytes under `key`."""
        return self.read(key, None, None)

    def source(self, key: str, tail: int | None) -> Source:
        """All bytes under `key`, fetched at once; of a large object whose end is wanted first, each piece when it is read."""
        if tail is not None and (nbytes := self._nbytes(key)) > LARGE_NBYTES:
            return _RangedSource(self, key, nbytes)
        return MemorySource(self.read(key, None, None))

    def _nbytes(self, key: str) -> int:
        with reading(self.location):
            return sync(self.zarr.getsize(key))

    def write(self, key: str, data: Bytes) -> None:
        """Replace what is under `key`; object stores put objects whole."""
        sync(self.zarr.set(key, default_buffer_prototype().buffer.from_bytes(bytes(data))))

    def create(self, key: str, data: Bytes) -> None:
        """Write where there is nothing: of two processes at the same moment, both may find nothing."""
        if self.exists(key):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), key)
        self.write(key, data)

    def writer(self, key: str, batch: Batch | None = None) -> KeyWriter:
        """A file that is collected in memory."""
        return CollectingWriter(key, self.write)

    def exists(self, key: str) -> bool:
        """Whether there are bytes under `key`."""
        return sync(self.zarr.exists(key))

    def delete(self, key: str) -> None:
        """Remove `key`, and every key below it."""
        if self.exists(key):
            sync(self.zarr.delete(key))
        sync(self.zarr.delete_dir(key))

    def remove_leftovers(self, prefix: str) -> None:
        """Nothing: objects are put whole, without temporary ones."""

    def names(self, prefix: str) -> list[str]:
        """The names directly below `prefix`, sorted."""

        async def collect() -> list[str]:
            return sorted([name async for name in self.zarr.list_dir(prefix)])

        return sync(collect())

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Every key below `prefix` with its size in bytes."""

        async def collect() -> list[str]:
            return [key async for key in self.zarr.list_prefix(prefix)]

        for key in sync(collect()):
            yield key, sync(self.zarr.getsize(key))

    def local_path(self, key: str) -> Path | None:
        """None: there are no files."""
        return None

    def free_nbytes(self) -> int | None:
        """None: object stores do not say."""
        return None
