"""The metadata of a Zarr array, read before Zarr believes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import zarr
from zarr.core.array import AsyncArray
from zarr.storage import StorePath

from actstore.store.errors import FormatError, NotFoundError

if TYPE_CHECKING:
    from actstore.store.storage.folder import Folder


BUNDLED: Final[dict[str, Any]] = {"name": "actstore.bundle", "configuration": {"key": "bundles/{block}"}}
"""Zarr's word for bytes that do not lie under their keys: other programs refuse the array, and take no block for empty."""


def mark_bundled(folder: Folder, key: str) -> None:
    """Say in the metadata of the array `key` that its shards lie in bundles."""
    folder.write_json(f"{key}/zarr.json", folder.read_json(f"{key}/zarr.json") | {"storage_transformers": [BUNDLED]})


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
