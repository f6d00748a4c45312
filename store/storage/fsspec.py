"""Storages that fsspec opens by URL: `hf://`, and whatever obstore does not know."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from zarr.core.sync import sync
from zarr.storage import FsspecStore

from actstore.store.errors import InvalidInputError, StorageError
from actstore.store.storage.zarr_storage import ZarrStorage, reading

if TYPE_CHECKING:
    from collections.abc import Mapping

    from actstore.store.storage.pieces import Bytes


class FsspecStorage(ZarrStorage):
    """The objects below a URL."""

    def __init__(
        self, location: str, *, read_only: bool, sync: bool = True, options: Mapping[str, Any] | None = None
    ) -> None:
        """Open the URL; `InvalidInputError` where it is none, or its driver is not installed, or takes no such `options`.

        `sync` changes nothing: what a server has accepted, it keeps.
        """
        store = _open(location, read_only, options)
        super().__init__(location, store)
        self._store = store

    def create(self, key: str, data: Bytes) -> None:
        """Put an object where there is none; whether another process may do so at the same moment is its driver's affair."""
        if self.exists(key):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), key)
        try:
            sync(self._store.fs._pipe_file(self._path(key), bytes(data), mode="create"))
        except (TypeError, NotImplementedError):  # a driver that only replaces
            self.write(key, data)

    def swap(self, key: str, data: Bytes, expected: Bytes) -> bool:
        """Never: `InvalidInputError`, as fsspec has no conditional writes."""
        raise InvalidInputError(
            f"{self.location} cannot be written to by several processes: its driver replaces nothing under a condition. Keep "
            "the store in a folder, or at an s3://, gs:// or az:// location."
        )

    def _path(self, key: str) -> str:
        root = self._store.path.rstrip("/")
        return f"{root}/{key}" if root else key

    def exists(self, key: str) -> bool:
        """Whether there is such an object: Zarr's own `exists` takes the prefix of other objects for one too."""
        try:
            with reading(self.location):
                information = sync(self._store.fs._info(self._path(key)))
            return bool(information["type"] == "file")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return False


def _open(location: str, read_only: bool, options: Mapping[str, Any] | None) -> FsspecStore:
    try:
        return FsspecStore.from_url(location, read_only=read_only, storage_options=dict(options or {}))
    except ImportError as error:
        missing = error.__cause__.name if isinstance(error.__cause__, ImportError) else error.name
        package = f" (`pip install {missing}`)" if missing else ""
        reason = " ".join(str(error).split()).rstrip(".")
        raise InvalidInputError(f"{location} needs a package that is not installed{package}: {reason}.") from None
    except ValueError as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise InvalidInputError(f"{location} is no URL that can be opened: {reason}.") from None
    except OSError as error:  # a driver that connects at once, such as FTP's, and names no file
        reason = " ".join((error.strerror or str(error) or type(error).__name__).split()).rstrip(".")
        raise StorageError(
            f"{location} cannot be opened: {reason}. Check the address, and that its server runs."
        ) from None
