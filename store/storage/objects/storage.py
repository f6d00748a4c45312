"""Storage on an object store (S3, Google Cloud Storage, Azure), and for reading on an HTTP server."""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

from actstore.store.errors import StorageError, UnlistableError
from actstore.store.storage.objects.connect import MAX_RETRIES, connect
from actstore.store.storage.objects.errors import sentences
from actstore.store.storage.objects.source import ObjectSource, ignores_ranges, is_unsatisfiable
from actstore.store.storage.objects.writer import ObjectWriter
from actstore.store.storage.objects.zarr_store import ObjectZarr
from actstore.store.storage.pieces import MemorySource
from actstore.store.storage.zarr_storage import ZarrStorage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from actstore.store.storage.batch import Batch
    from actstore.store.storage.pieces import Bytes, Source
    from actstore.store.storage.writers import KeyWriter

_DELETED_AT_ONCE: Final = 1000
_ELSEWHERE: Final = "Use the store by a path, or at an s3://, gs:// or az:// location."


class ObjectStorage(ZarrStorage):
    """The objects below a URL: `s3://`, `gs://` or `az://`.

    An object that has the name of a listed folder is no key: some servers and consoles mark folders so.
    """

    concurrency = 16

    def __init__(
        self, location: str, *, read_only: bool, sync: bool = True, options: Mapping[str, Any] | None = None
    ) -> None:
        """Point at the URL; `InvalidInputError` where it is none, or `options` (see `connect`) are not what they must be.

        `sync` changes nothing: what a server has accepted, it keeps.
        """
        self._driver = connect(location, options)
        # A condition is asked once: whether it held the first time, a second answer would not tell.
        self._single = connect(location, options, max_retries=0)
        location = location.rstrip("/")
        self._zarr = ObjectZarr(self._driver, location, read_only=read_only)
        super().__init__(location, self._zarr)

    def read(self, key: str, start: int | None, stop: int | None) -> bytes:
        """Bytes start…stop of an object; an empty range asks whether the object is there."""
        begin = start or 0
        if stop is not None and stop <= begin:
            with sentences(self.location):
                obstore.head(self._driver, _path_of(key))
            return b""
        whole = begin == 0 and stop is None
        ranged: Any = {} if whole else {"range": {"offset": begin} if stop is None else (begin, stop)}
        with sentences(self.location):
            try:
                return bytes(obstore.get(self._driver, _path_of(key), options=ranged).bytes())
            except BaseError as error:
                if is_unsatisfiable(error):
                    return b""
                if not ignores_ranges(error):
                    raise
                return bytes(obstore.get(self._driver, _path_of(key)).bytes())[begin:stop]

    def view(self, key: str) -> Bytes:
        """All bytes of an object, as the driver received them."""
        with sentences(self.location):
            return memoryview(obstore.get(self._driver, _path_of(key)).bytes())

    def source(self, key: str, tail: int | None = None) -> Source:
        """An object of which pieces are read, its last `tail` bytes at once; without `tail`, all of it at once."""
        return (
            MemorySource(self.view(key))
            if tail is None
            else ObjectSource(self._driver, self.location, _path_of(key), tail)
        )

    def write(self, key: str, data: Bytes) -> None:
        """Put an object, in one request."""
        with sentences(self.location, "written"):
            obstore.put(self._driver, key, memoryview(data), use_multipart=False)

    def create(self, key: str, data: Bytes) -> None:
        """Put an object where there is none; the server sees to it that of two one succeeds."""
        if not self._put_if(key, data, "create"):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), key)

    def swap(self, key: str, data: Bytes, expected: Bytes) -> bool:
        """Replace an object that still has the bytes `expected`; whether it had."""
        try:
            with sentences(self.location):
                found = obstore.get(self._driver, _path_of(key))
                if memoryview(found.bytes()) != expected:
                    return False
        except FileNotFoundError:
            return False
        version = {name: found.meta[name] for name in ("e_tag", "version") if found.meta[name] is not None}
        return self._put_if(key, data, version)

    def _put_if(self, key: str, data: Bytes, mode: Any) -> bool:
        """Whether the condition of `mode` held, and the object was put.

        Where the answer to a request is lost, the object says whether it was carried out: it then has these bytes. Whoever
        must not be taken for another puts into them who it is.
        """
        is_unclear = False
        for attempt in range(MAX_RETRIES + 1):
            try:
                with sentences(self.location, "written"):
                    try:
                        obstore.put(self._single, key, memoryview(data), mode=mode)
                    except PreconditionError:
                        return is_unclear and self._holds(key, data)
                    except AlreadyExistsError:
                        if mode == "create":
                            return is_unclear and self._holds(key, data)
                        raise  # two swaps at the same moment: S3 refuses both, or one
            except StorageError as error:
                if attempt == MAX_RETRIES or not error.may_pass:
                    raise
                is_unclear = True
                time.sleep(0.1 * 2**attempt)
            else:
                return True
        raise AssertionError

    def _holds(self, key: str, data: Bytes) -> bool:
        try:
            return bool(self.view(key) == data)
        except FileNotFoundError:
            return False

    def writer(self, key: str, batch: Batch | None = None) -> KeyWriter:
        """An object that is sent while it is written; it appears when it is closed."""
        return ObjectWriter(self._driver, self.location, key)

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        try:
            with sentences(self.location):
                obstore.head(self._driver, _path_of(key))
        except FileNotFoundError:
            return False
        return True

    def delete(self, key: str) -> None:
        """Remove an object, and all below it."""
        self._zarr.forget(key)
        below = [path for path, _ in self.sizes(key)]
        keys = [key, *below] if key and key not in below else below
        with sentences(self.location, "written"):
            for at in range(0, len(keys), _DELETED_AT_ONCE):
                with suppress(FileNotFoundError):  # some servers say that an object was not there
                    obstore.delete(self._driver, keys[at : at + _DELETED_AT_ONCE])

    def names(self, prefix: str) -> list[str]:
        """The names directly below `prefix`, sorted."""
        with sentences(self.location, "listed"):
            found = obstore.list_with_delimiter(self._driver, prefix or None)
        paths = [*found["common_prefixes"], *(meta["path"] for meta in found["objects"])]
        return sorted({path.rpartition("/")[2] for path in paths if path != prefix})

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Every key below `prefix` with its size in bytes, sorted."""
        with sentences(self.location, "listed"):
            found = [
                (meta["path"], meta["size"]) for some in obstore.list(self._driver, prefix or None) for meta in some
            ]
        return iter(sorted((path, nbytes) for path, nbytes in found if path != prefix))


def _path_of(key: str) -> str:
    """A key as the driver takes it; a key that no object can have is one that is not there."""
    if not key or "//" in key:
        raise FileNotFoundError(key)
    return key


class HttpStorage(ObjectStorage):
    """The files below a URL of an HTTP server: read by name, neither listed nor written."""

    def names(self, prefix: str) -> list[str]:
        """Never: `UnlistableError`."""
        raise self._unlistable()

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Never: `UnlistableError`."""
        raise self._unlistable()

    def write(self, key: str, data: Bytes) -> None:
        """Never: `StorageError`."""
        raise self._refusal()

    def _put_if(self, key: str, data: Bytes, mode: Any) -> bool:
        raise self._refusal()

    def swap(self, key: str, data: Bytes, expected: Bytes) -> bool:
        """Never: `StorageError`."""
        raise self._refusal()

    def writer(self, key: str, batch: Batch | None = None) -> KeyWriter:
        """Never: `StorageError`."""
        raise self._refusal()

    def delete(self, key: str) -> None:
        """Never: `StorageError`."""
        raise self._refusal()

    def _refusal(self) -> StorageError:
        return StorageError(f"{self.location} cannot be written: it is read over HTTP. {_ELSEWHERE}")

    def _unlistable(self) -> UnlistableError:
        return UnlistableError(f"{self.location} cannot be listed: a web server lists nothing. {_ELSEWHERE}")
