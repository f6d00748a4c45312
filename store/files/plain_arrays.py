"""Plain Zarr arrays of a store, plan arrays and finished statistics, every chunk of which is checked when it is read.

The array's own metadata hold the CRC-32C of each chunk's values. What array they belong to is bound twice over: the digest of
shape, dtype and checksums stands in the capture's record, or beside them, computed with the capture's identity. An array of
an earlier version has neither: it is read as it is, but for chunks that are missing.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import BloscCodec
from zarr.core.array import AsyncArray
from zarr.core.buffer import cpu
from zarr.storage import MemoryStore, StorePath

from actstore.store.errors import FormatError
from actstore.store.files.array_metadata import NewArray, open_array
from actstore.store.layout import FAST, missing_value
from actstore.store.storage.listing import is_readable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from zarr.core.buffer import Buffer

    from actstore.store.storage.folder import Folder

CHECKSUMS: Final = "checksums"
"""Attribute: CRC-32C of the values of every chunk, those beyond the array's end left out, chunks in C order."""
DIGEST: Final = "digest"
"""Attribute: `array_digest` with the identity of the capture whose statistic it is."""


def chunk_checksum(values: NDArray[Any]) -> str:
    """CRC-32C, in eight hexadecimal digits, of the values of a chunk in C order, little-endian."""
    whole = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return f"{google_crc32c.value(whole.tobytes()):08x}"


def array_digest(
    key: str,
    shape: Sequence[int],
    chunks: Sequence[int],
    dtype: np.dtype[Any],
    attributes: dict[str, Any],
    identity: str = "",
) -> str:
    """What tells an array from every other: SHA-256, 32 digits, of its place, form, attributes and checksums.

    `identity` is that of the capture it belongs to. A capture's name in `key` is left out: the identity has it.
    """
    parts = key.split("/")
    name = "/".join(parts[2:]) if parts[0] == "captures" else key
    described = {name: value for name, value in attributes.items() if name != DIGEST}
    form = [identity, name, [*shape], [*chunks], dtype.name, described]
    return hashlib.sha256(json.dumps(form, sort_keys=True).encode()).hexdigest()[:32]


def write_array(
    folder: Folder,
    key: str,
    values: NDArray[Any],
    dimensions: Sequence[str],
    attributes: dict[str, Any] | None = None,
    chunks: tuple[int, ...] | None = None,
    identity: str = "",
) -> None:
    """Write a plain array whole where nothing is, with its checksums, bound to the `identity` of its capture."""
    chunks = chunks or tuple(max(1, min(n, 1 << 20)) for n in values.shape)
    checked = {**(attributes or {}), CHECKSUMS: [chunk_checksum(values[at]) for at in _chunks(values.shape, chunks)]}
    new = NewArray(
        key,
        shape=values.shape,
        chunks=chunks,
        dtype=values.dtype,
        fill_value=missing_value(values.dtype),
        compressors=BloscCodec(typesize=values.dtype.itemsize, **FAST.metadata),
        dimension_names=tuple(dimensions),
        attributes=checked | {DIGEST: array_digest(key, values.shape, chunks, values.dtype, checked, identity)},
    )
    if values.size:
        new.array[...] = values
    new.put(folder)


def _chunks(shape: Sequence[int], chunks: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Where each chunk lies in an array, in C order."""
    for place in np.ndindex(*(-(-n // size) for n, size in zip(shape, chunks, strict=True))):
        yield tuple(slice(i * size, min((i + 1) * size, n)) for i, size, n in zip(place, chunks, shape, strict=True))


class PlainArray:
    """A plain array opened for reading, by any number of threads."""

    def __init__(
        self,
        folder: Folder,
        key: str,
        *,
        digest: str = "",
        identity: str = "",
        may_lack_chunks: Callable[[], bool] = lambda: False,
    ) -> None:
        """Open the array under `key`; `NotFoundError` where there is none, `FormatError` where it is another than expected.

        `digest`: as its capture's record has it; or `identity`, that of its capture. Without both, as in captures of earlier
        versions, chunks are checked where they have checksums. Where they have none, a chunk that is not there is an error,
        unless `may_lack_chunks`: Zarr writes no chunk that has nothing but the fill value.
        """
        self._array = open_array(folder, key)
        self._folder, self._key, self._may_lack_chunks = folder, key, may_lack_chunks
        self.shape, self.dtype = self._array.shape, self._array.dtype
        attributes: dict[str, Any] = dict(self._array.attrs)
        self._checksums: list[str] | None = attributes.get(CHECKSUMS)
        self.digest = array_digest(key, self.shape, self._array.chunks, self.dtype, attributes, identity)
        if digest:
            is_expected = self.digest == digest
        elif identity or DIGEST in attributes:
            is_expected = self.digest == attributes.get(DIGEST)
        else:
            is_expected = True
        n_chunks = self._array.nchunks if self._array.size else 0
        has_checksums = isinstance(self._checksums, list) and len(self._checksums) == n_chunks
        if not is_expected or not (has_checksums or self._checksums is None):
            raise self._damaged("its metadata are not those that were written there")
        self._last: tuple[int, NDArray[Any]] | None = None

    @property
    def has_checksums(self) -> bool:
        """Whether its chunks have checksums: those of earlier versions have none."""
        return self._checksums is not None

    def read(self, selection: Any = ...) -> NDArray[Any]:
        """The array, whole or in part, as a copy; `FormatError` where a chunk does not match its checksum."""
        if isinstance(selection, slice) and len(self.shape) == 1 and selection.step in (None, 1):
            start, stop, _ = selection.indices(self.shape[0])
            return self._read_range(start, max(start, stop))
        whole = self._decoded(...)
        for number, at in enumerate(_chunks(self.shape, self._array.chunks) if whole.size else ()):
            self._check(number, whole[at])
        return whole if selection is ... else np.array(whole[selection])

    def _read_range(self, start: int, stop: int) -> NDArray[Any]:
        """Elements of a one-dimensional array, the chunks that they lie in read and checked whole."""
        size = self._array.chunks[0]
        first, end = start // size, -(-stop // size) if stop > start else start // size
        if first == end:
            return np.empty(0, self.dtype)
        last = self._last  # one block after another reads from the same chunk
        if last is not None and end - first == 1 and last[0] == first:
            return last[1][start - first * size : stop - first * size].copy()
        values = self._decoded(slice(first * size, min(end * size, self.shape[0])))
        for number in range(first, end):
            self._check(number, values[(number - first) * size : (number - first + 1) * size])
        self._last = end - 1, values[(end - 1 - first) * size :].copy()
        part = values[start - first * size : stop - first * size]
        return part if len(part) == len(values) else part.copy()

    def chunk_keys(self) -> list[str]:
        """The keys of all chunks, in C order; Zarr writes no chunk that has nothing but the fill value."""
        return [self._chunk_key(number) for number in range(self._array.nchunks if self._array.size else 0)]

    def check_chunk(self, number: int, data: bytes | None) -> None:
        """Hold the bytes of a chunk, as they are stored, against its checksum; None where there is no such key.

        `FormatError` where they are others; nothing is known of the chunks of an array without checksums.
        """
        if self._checksums is None:
            return
        chunks: dict[str, Buffer] = {}
        if data is not None:
            chunks[self._chunk_key(number)] = cpu.Buffer.from_bytes(data)
        metadata: Any = self._array.metadata
        one = zarr.Array(AsyncArray(metadata, StorePath(MemoryStore(chunks), self._key)))
        at = tuple(
            slice(i * size, min((i + 1) * size, n))
            for i, size, n in zip(self._place(number), self._array.chunks, self.shape, strict=True)
        )
        found = chunk_checksum(self._decoded(at, one))
        if found != self._checksums[number]:
            what = "is missing" if data is None else f"has checksum {found}, expected {self._checksums[number]}"
            raise self._damaged(f"chunk {number} {what}")

    def _decoded(self, selection: Any, array: zarr.Array[Any] | None = None) -> NDArray[Any]:
        try:
            return np.asarray((self._array if array is None else array)[selection])
        except (
            ValueError, LookupError, TypeError, RuntimeError, OSError, SystemError, OverflowError, MemoryError,
        ) as error:  # fmt: skip
            # SystemError: numcodecs, of a Blosc header that says a negative size.
            if isinstance(error, OSError) and error.errno is not None:
                raise  # an error of the disk or the network, which says nothing about the chunk
            raise self._damaged(" ".join(str(error).split()).rstrip(".")) from None

    def _check(self, number: int, values: NDArray[Any]) -> None:
        """Hold a chunk against its checksum; of an array that has none, only that the chunk is there."""
        if self._checksums is not None:
            found = chunk_checksum(values)
            if found != self._checksums[number]:
                what = (
                    "is missing"
                    if self._is_missing(number)
                    else f"has checksum {found}, expected {self._checksums[number]}"
                )
                raise self._damaged(f"chunk {number} {what}")
        elif self._is_fill(values) and self._is_missing(number) and not self._may_lack_chunks():
            raise self._damaged(f"chunk {number} is missing")

    def _is_fill(self, values: NDArray[Any]) -> bool:
        fill = missing_value(self.dtype)
        return bool((np.isnan(values) if self.dtype.kind == "f" else values == fill).all())

    def _place(self, number: int) -> tuple[int, ...]:
        """Where a chunk lies in the grid of chunks."""
        grid = tuple(-(-n // size) for n, size in zip(self.shape, self._array.chunks, strict=True))
        return tuple(int(i) for i in np.unravel_index(number, grid))

    def _chunk_key(self, number: int) -> str:
        return f"{self._key}/{self._array.metadata.encode_chunk_key(self._place(number))}"

    def _is_missing(self, number: int) -> bool:
        return not is_readable(self._folder, self._chunk_key(number))

    def _damaged(self, what: str) -> FormatError:
        return FormatError(
            f"{self._folder}/{self._key} is damaged: {what}.",
            "Run `store.verify()` to find every damage, and restore it from a copy, or capture again.",
        )


class ArrayAppender:
    """A one-dimensional array that is written chunk by chunk; on `close` it has its checksums."""

    def __init__(self, folder: Folder, key: str, dtype: str, dimension: str, chunk: int) -> None:
        """Begin the array under `key`, where nothing is; `chunk` is the number of elements per chunk."""
        self._folder = folder
        self._new = NewArray(
            key,
            shape=(0,),
            chunks=(chunk,),
            dtype=dtype,
            fill_value=missing_value(np.dtype(dtype)),
            compressors=BloscCodec(typesize=np.dtype(dtype).itemsize, **FAST.metadata),
            dimension_names=(dimension,),
        )
        self._dtype, self._chunk = dtype, chunk
        self._pending: list[NDArray[Any]] = []
        self._n_pending = 0
        self._checksums: list[str] = []
        self.length = 0

    def extend(self, values: NDArray[np.integer[Any]]) -> None:
        """Append values; whole chunks are written."""
        self._pending.append(values.astype(self._dtype, copy=False))
        self._n_pending += len(values)
        self.length += len(values)
        if self._n_pending >= self._chunk:
            values_so_far = np.concatenate(self._pending)
            n_chunks = len(values_so_far) // self._chunk * self._chunk
            self._append(values_so_far[:n_chunks])
            self._pending, self._n_pending = [values_so_far[n_chunks:]], len(values_so_far) - n_chunks

    def close(self) -> None:
        """Write what is left, and the metadata with the checksums."""
        if self._n_pending:
            self._append(np.concatenate(self._pending))
        self._new.array.update_attributes({CHECKSUMS: self._checksums})
        self._new.put(self._folder)

    def _append(self, values: NDArray[Any]) -> None:
        self._new.array.append(values)
        self._new.put_chunks(self._folder)
        self._checksums += [chunk_checksum(values[at]) for at in _chunks(values.shape, (self._chunk,))]


def read_array(folder: Folder, key: str, selection: Any = ..., *, identity: str = "") -> NDArray[Any]:
    """A plain array, whole or in part, of the capture of that `identity`."""
    return PlainArray(folder, key, identity=identity).read(selection)
