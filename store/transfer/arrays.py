"""Plain Zarr arrays, copied chunk by chunk: each is held against the checksum in the array's metadata."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from actstore.store.errors import NotFoundError
from actstore.store.files.plain_arrays import PlainArray
from actstore.store.layout import groups_above
from actstore.store.transfer.ranges import damaged
from actstore.store.transfer.transfer import File

if TYPE_CHECKING:
    from collections.abc import Iterable

    from actstore.store.storage.batch import Batch
    from actstore.store.transfer.transfer import Transfer


@dataclass(frozen=True)
class Array:
    """A plain array to be copied; `digest` and `identity` are as of `PlainArray`."""

    key: str
    digest: str = ""
    identity: str = ""
    is_optional: bool = False
    """Whether it need not be there."""


def copy_array(transfer: Transfer, described: Array) -> None:
    """Copy an array, its metadata included; `FormatError` where it is not what the record of its capture says."""
    source, target, key = transfer.source, transfer.target, described.key
    try:
        array = PlainArray(source, key, digest=described.digest, identity=described.identity)
    except NotFoundError:
        if described.is_optional:
            return
        raise damaged(source, f"{key}/zarr.json", "it is missing") from None

    def copy_chunk(chunk: tuple[int, str], batch: Batch) -> None:
        number, chunk_key = chunk
        try:
            data = source.read(chunk_key)
        except NotFoundError:
            data = None
        array.check_chunk(number, data)
        if data is not None:
            transfer.write(chunk_key, data, batch)
        elif target.exists(chunk_key):  # of another array that was begun there: here it would be read
            target.delete(chunk_key)

    transfer.each(copy_chunk, enumerate(array.chunk_keys()))
    transfer.copy([File(f"{key}/zarr.json")])


def group_files(keys: Iterable[str]) -> list[File]:
    """The metadata of the groups around some arrays of one capture, which readers without actstore need."""
    return [File(f"{group}/zarr.json", is_optional=True) for group in groups_above(keys)]
