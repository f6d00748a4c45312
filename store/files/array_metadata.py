"""The metadata of a Zarr array, read before Zarr believes them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import zarr
from zarr.core.array import AsyncArray
from zarr.core.sync import sync
from zarr.storage import MemoryStore, StorePath

from actstore.store.errors import FormatError, NotFoundError

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer

    from actstore.store.storage.folder import Folder


BUNDLED: Final[dict[str, Any]] = {"name": "actstore.bundle", "configuration": {"key": "bundles/{block}"}}
"""Zarr's word for bytes that do not lie under their keys: other programs refuse the array, and take no block for empty."""


class NewArray:
    """A Zarr array that is made in memory, and put into a store where nothing is: every object in one request of a server.

    Zarr itself would look for what is there, for every group above, and write the metadata again with each change.
    """

    def __init__(self, key: str, **form: Any) -> None:
        """`form` as of `zarr.create_array`."""
        self.key = key
        self._objects: dict[str, Buffer] = {}
        self.array: zarr.Array[Any] = zarr.create_array(store=MemoryStore(self._objects), name=key, **form)

    def put_chunks(self, folder: Folder) -> None:
        """Write the chunks that there are, and forget them."""
        chunks = [key for key in self._objects if not key.endswith("zarr.json")]
        for key in chunks:
            folder.write(key, memoryview(self._objects.pop(key).as_buffer_like()))

    def put(self, folder: Folder, *, bundled: bool = False) -> None:
        """Write the groups above it that are missing, but the root's, then chunks, then the metadata.

        `bundled`: say in these that its shards lie in bundles.
        """
        metadata = self._objects.pop(f"{self.key}/zarr.json")
        # On a disk, looking costs nothing, and a file that is written to no purpose is synced all the same.
        is_on_disk = folder.local_path() is not None
        for key, group in [*self._objects.items()]:
            if key.endswith("/zarr.json") and not (is_on_disk and folder.exists(key)):
                sync(folder.zarr.set_if_not_exists(key, group))
        self.put_chunks(folder)
        if bundled:
            value = json.loads(metadata.to_bytes())
            folder.write_json(f"{self.key}/zarr.json", value | {"storage_transformers": [BUNDLED]})
        else:
            folder.write(f"{self.key}/zarr.json", memoryview(metadata.as_buffer_like()))


def open_array(folder: Folder, key: str) -> zarr.Array[Any]:
    """The Zarr array under `key`, for slicing; `NotFoundError` where there is none, `FormatError` where it cannot be one."""
    try:
        # Zarr would read it however long or deep it is, and ask for the metadata of its older formats besides.
        metadata = folder.read_json(f"{key}/zarr.json")
        if metadata.get("storage_transformers") == [BUNDLED]:  # which is what `folder` does when it reads a shard
            metadata["storage_transformers"] = []
        array = zarr.Array(AsyncArray.from_dict(StorePath(folder.zarr, key), metadata))
    except (FileNotFoundError, NotFoundError):
        raise NotFoundError(f"{folder} has no array {key}.") from None
    except FormatError as error:
        raise FormatError(f"The metadata of {folder}/{key} cannot be read: {error}") from None
    except Exception as error:  # whatever Zarr makes of metadata that are none
        if isinstance(error, OSError) and error.errno is not None:
            raise  # an error of the disk or the network
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise FormatError(f"The metadata of {folder}/{key} cannot be read: {reason}.") from None
    if not isinstance(metadata.get("attributes", {}), dict):  # Zarr fails only when one of them is asked for
        raise FormatError(f"The metadata of {folder}/{key} cannot be read: its attributes are no JSON object.")
    if any(n < 0 or n >> 62 for n in array.shape) or any(n < 1 or n >> 62 for n in array.chunks):
        raise FormatError(
            f"The metadata of {folder}/{key} are damaged: its shape is {array.shape}, in chunks of {array.chunks}."
        )
    return array
