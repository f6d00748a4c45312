"""Plain Zarr arrays of a store, written whole: plan arrays and finished statistics."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec

from actstore.store.errors import FormatError, NotFoundError
from actstore.store.layout import FAST, missing_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from actstore.store.storage.folder import Folder


def write_array(
    folder: Folder,
    key: str,
    values: NDArray[Any],
    dimensions: Sequence[str],
    attributes: dict[str, Any] | None = None,
    chunks: tuple[int, ...] | None = None,
) -> None:
    """Write a plain array whole, replacing what was there."""
    array = zarr.create_array(
        store=folder.zarr,
        name=key,
        shape=values.shape,
        chunks=chunks or tuple(max(1, min(n, 1 << 20)) for n in values.shape),
        dtype=values.dtype,
        fill_value=missing_value(values.dtype),
        compressors=BloscCodec(typesize=values.dtype.itemsize, **asdict(FAST)),
        dimension_names=tuple(dimensions),
        attributes=attributes or {},
        overwrite=True,
    )
    if values.size:
        array[...] = values


def open_array(folder: Folder, key: str) -> zarr.Array[Any]:
    """The Zarr array under `key`, for slicing; `NotFoundError` where there is none."""
    try:
        return zarr.open_array(store=folder.zarr, path=key, mode="r")
    except FileNotFoundError:
        raise NotFoundError(f"{folder} has no array {key}.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"The metadata of {folder}/{key} cannot be read: {error}.") from None


def read_array(folder: Folder, key: str, selection: Any = ...) -> NDArray[Any]:
    """A plain array, whole or in part."""
    return read_selection(open_array(folder, key), selection)


def read_selection(array: zarr.Array[Any], selection: Any = ...) -> NDArray[Any]:
    """Part of an opened plain array; `FormatError` where its chunks cannot be decoded."""
    try:
        return np.asarray(array[selection])
    except (ValueError, KeyError, TypeError, RuntimeError, OSError, SystemError) as error:
        # SystemError: numcodecs, of a Blosc header that says a negative size.
        if isinstance(error, OSError) and error.errno is not None:
            raise  # an error of the disk or the network, which says nothing about the chunk
        raise FormatError(f"{array.store_path} is damaged: {' '.join(str(error).split())}.") from None
