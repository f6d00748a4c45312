"""Storages that fsspec opens by URL: S3, Google Cloud Storage, Azure, HTTP and the rest."""

from __future__ import annotations

from zarr.core.sync import sync
from zarr.storage import FsspecStore

from actstore.store.errors import InvalidInputError
from actstore.store.storage.zarr_storage import ZarrStorage, reading


class FsspecStorage(ZarrStorage):
    """The objects below a URL."""

    def __init__(self, location: str, *, read_only: bool) -> None:
        """Open the URL; `InvalidInputError` where it is none, or its driver is not installed."""
        store = _open(location, read_only)
        super().__init__(location, store)
        self._store = store

    def exists(self, key: str) -> bool:
        """Whether there is such an object: Zarr's own `exists` takes the prefix of other objects for one too."""
        root = self._store.path.rstrip("/")
        try:
            with reading(self.location):
                information = sync(self._store.fs._info(f"{root}/{key}" if root else key))
            return bool(information["type"] == "file")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return False


def _open(location: str, read_only: bool) -> FsspecStore:
    try:
        return FsspecStore.from_url(location, read_only=read_only)
    except ImportError as error:
        missing = error.__cause__.name if isinstance(error.__cause__, ImportError) else error.name
        package = f" (`pip install {missing}`)" if missing else ""
        reason = " ".join(str(error).split()).rstrip(".")
        raise InvalidInputError(f"{location} needs a package that is not installed{package}: {reason}.") from None
    except ValueError as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise InvalidInputError(f"{location} is no URL that can be opened: {reason}.") from None
