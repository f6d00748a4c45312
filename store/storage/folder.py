"""A store's bytes by key, wherever they are: what every caller holds.

In front of the storage that `schemes.open_storage` gives, it refuses writing where a store was opened for reading, names
the store in errors, and can be pickled.
"""

from __future__ import annotations

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from actstore.store.arguments import argument
from actstore.store.errors import FormatError, NotFoundError, ReadOnlyError
from actstore.store.storage.schemes import open_storage
from actstore.store.storage.strict_json import MAX_NBYTES, parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from zarr.abc.store import Store as ZarrStore

    from actstore.store.storage.batch import Batch
    from actstore.store.storage.inner_keys import InnerKeys
    from actstore.store.storage.pieces import Bytes, Source
    from actstore.store.storage.protocol import Storage
    from actstore.store.storage.writers import KeyWriter


Item = TypeVar("Item")
Result = TypeVar("Result")

TAIL_NBYTES: Final = 1 << 14
"""What is fetched of an object's end when it is opened: small objects whole, of large ones the index or the footer."""


class Folder:
    """Keys and bytes of one store, at a local path or a URL."""

    def __init__(
        self,
        location: str | Path | Folder,
        *,
        read_only: bool = True,
        sync: bool = True,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Point at `location`; nothing is created until something is written.

        Without `sync`, writing does not wait for the disk: faster, and safe from kills, but not from power cuts.
        `storage_options` are those of a URL's driver: an address, credentials, timeouts, beyond what the environment says; of
        another folder, its own.
        """
        if isinstance(location, Folder):
            storage_options = storage_options or location._options
            location = location.location
        self.location: str = argument("location", location, str | Path)
        self.read_only, self.sync = read_only, sync
        self._options: dict[str, Any] = dict(argument("storage_options", storage_options, dict[str, Any] | None) or {})
        self.storage: Storage = open_storage(self.location, read_only=read_only, sync=sync, options=self._options)
        self._inner_keys: dict[str, InnerKeys] = {}

    def __str__(self) -> str:
        return self.location

    def __reduce__(self) -> tuple[Callable[..., Folder], tuple[str, bool, bool, dict[str, Any]]]:
        """Where it is, and by which options: that is what another process needs."""
        return _reopen, (self.storage.address(), self.read_only, self.sync, self._options)

    def __copy__(self) -> Folder:
        return self  # nothing in it changes but how keys are found

    def __deepcopy__(self, memo: object) -> Folder:
        return self

    @property
    def direct(self) -> Folder:
        """The folder itself, of one that keeps files in memory (`store.storage.cached`)."""
        return self

    @property
    def zarr(self) -> ZarrStore:
        """The same keys, as Zarr opens arrays among them."""
        return self.storage.zarr

    def find_inside(self, prefix: str, keys: InnerKeys | None) -> None:
        """From now on, ask `keys` for what is read below `prefix`; with None, nobody."""
        self._inner_keys.pop(prefix, None)
        if keys is not None:
            self._inner_keys[prefix] = keys

    def inner_keys(self, prefix: str) -> InnerKeys | None:
        """What is asked for keys below `prefix`; None where each of them is an object of its own."""
        return self._inner_keys.get(prefix)

    def _inner_source(self, key: str, tail: int | None) -> Source | None:
        for prefix, keys in list(self._inner_keys.items()):
            if key.startswith(f"{prefix}/"):
                return keys.source(key, tail)
        return None

    def _forget(self, key: str) -> None:
        for prefix, keys in list(self._inner_keys.items()):
            if key.startswith(f"{prefix}/") or f"{prefix}/".startswith(f"{key}/") or not key:
                keys.forget(key)

    def read(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        """The bytes under `key`, or their half-open range; `NotFoundError` where there are none."""
        with self._missing(key):
            inner = self._inner_source(key, None if start is None and stop is None else 0)
            if inner is None:
                return self.storage.read(key, start, stop)
            end = inner.nbytes if stop is None else min(stop, inner.nbytes)
            return bytes(inner.read(min(start or 0, end), end))

    def view(self, key: str) -> Bytes:
        """The bytes under `key` without copying them where the disk allows; `NotFoundError` where there are none."""
        with self._missing(key):
            inner = self._inner_source(key, None)
            return self.storage.view(key) if inner is None else inner.read(0, inner.nbytes)

    def source(self, key: str, *, tail: int | None = TAIL_NBYTES) -> Source:
        """The bytes under `key`, to read pieces of; `NotFoundError` where there are none.

        `tail`: number of bytes at the end that are needed first, None for whoever reads all of them. From a server they come
        with the first request, and each other piece takes one of its own.
        """
        with self._missing(key):
            return self._inner_source(key, tail) or self.storage.source(key, tail)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """What `function`, which reads, gives for each item, in order: several at once where the storage waits for a server."""
        if self.storage.concurrency == 1:
            yield from map(function, items)
            return
        with ThreadPoolExecutor(self.storage.concurrency, thread_name_prefix="actstore-read") as pool:
            yield from pool.map(function, items)

    def write(self, key: str, data: Bytes) -> None:
        """Replace what is under `key`, so that a reader sees the old bytes or the new, never a part."""
        self._check_writable()
        self.storage.write(key, data)
        self._forget(key)

    def create(self, key: str, data: Bytes) -> None:
        """Write under `key` where there is nothing, else `FileExistsError`; of two that try at once, one succeeds.

        Where fsspec opens the store, that depends on its driver, and both may.
        """
        self._check_writable()
        self.storage.create(key, data)

    def swap(self, key: str, data: Bytes, expected: Bytes) -> bool:
        """Replace what is under `key` where that is still `expected`; whether it was. Of two that try at once, one succeeds.

        Keys that are swapped are not to be changed by `write` at the same time. `InvalidInputError` where the storage has no
        conditional writes.
        """
        self._check_writable()
        return self.storage.swap(key, data, expected)

    def writer(self, key: str, batch: Batch | None = None) -> KeyWriter:
        """A binary file whose bytes appear under `key` when it is closed, unless it is left by an exception.

        With a `batch`, closing it need not wait for the disk: its bytes appear at the latest when `batch.sync` returns.
        """
        self._check_writable()
        return self.storage.writer(key, batch)

    def exists(self, key: str) -> bool:
        """Whether there are bytes under `key`."""
        with contextlib.suppress(FileNotFoundError):
            return self._inner_source(key, 0) is not None or self.storage.exists(key)
        return False

    def delete(self, key: str) -> None:
        """Remove `key`, and everything below it; nothing happens where there is nothing."""
        self._check_writable()
        self.storage.delete(key)
        self._forget(key)

    def clear(self, prefix: str, names: Collection[str]) -> None:
        """Remove everything below `names` of a prefix; a server is asked once where nothing is there."""
        self._check_writable()
        for name in self.names(prefix):
            if name in names:
                self.delete(f"{prefix}/{name}")

    def remove_leftovers(self, prefix: str) -> None:
        """Remove the temporary files of killed writers below `prefix`, which the caller must own for writing."""
        self._check_writable()
        self.storage.remove_leftovers(prefix)

    def names(self, prefix: str) -> list[str]:
        """The names directly below `prefix`, sorted."""
        return self.storage.names(prefix)

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Every key below `prefix` that is an object of its own, with its size in bytes."""
        return self.storage.sizes(prefix)

    def local_path(self, key: str = "") -> Path | None:
        """Where `key`, or the whole store, is on the local disk; None where it is not on one, or inside of another file."""
        is_inner = any(key.startswith(f"{prefix}/") and keys.has(key) for prefix, keys in self._inner_keys.items())
        return None if is_inner else self.storage.local_path(key)

    def free_nbytes(self) -> int | None:
        """Free bytes of the disk that the store is on, or will be; None where that is not known."""
        return self.storage.free_nbytes()

    def read_json(self, key: str) -> dict[str, Any]:
        """The JSON object under `key`; `FormatError` where the bytes are not one."""
        # One byte more than may be there: a longer file is refused without being read.
        value = parse_json(self.read(key, 0, MAX_NBYTES + 1), f"{self.location}/{key}")
        if not isinstance(value, dict):
            raise FormatError(f"{self.location}/{key} should hold a JSON object, found {type(value).__name__}.")
        return value

    def write_json(self, key: str, value: dict[str, Any]) -> None:
        """Write `value` as JSON, keys in the order given."""
        self.write(key, (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode())

    @contextlib.contextmanager
    def _missing(self, key: str) -> Iterator[None]:
        """A key that does not exist is a `NotFoundError` that names the store."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NotFoundError(f"{self.location} has no {key}.") from None

    def _check_writable(self) -> None:
        if self.read_only:
            raise ReadOnlyError(f"{self.location} was opened for reading, and cannot be written to.")


def _reopen(location: str, read_only: bool, sync: bool, storage_options: dict[str, Any]) -> Folder:
    return Folder(location, read_only=read_only, sync=sync, storage_options=storage_options)
