"""What a storage must do: bytes by key, read, replaced whole, listed and deleted.

A new kind of storage is one class of this form in a file of its own, one line in `schemes.SCHEMES`, and one subclass of
the contract test in `tests/support/storage_contract.py`. `ZarrStorage` has all of it for whatever has a Zarr store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from zarr.abc.store import Store as ZarrStore

    from actstore.store.storage.batch import Batch
    from actstore.store.storage.pieces import Bytes, Source
    from actstore.store.storage.writers import KeyWriter


class Storage(Protocol):
    """Bytes by key in one place. Keys are names joined by "/", without `*`, `?` and `[`, which some drivers expand.

    No key ends in `.partial`: storages may call temporary files so, and neither list nor size them.

    Reading a key that does not exist is a `FileNotFoundError`.

    `Folder` stands before every storage: it refuses writing where a store was opened for reading, and words the errors.
    """

    zarr: ZarrStore
    """The same keys, as Zarr opens arrays among them."""

    def __init__(self, location: str, *, read_only: bool, sync: bool = True) -> None:
        """Point at `location`; nothing is created until something is written.

        With `sync`, whatever returns from writing or deleting outlasts a power cut, as far as the storage can see to that.
        """

    def address(self) -> str:
        """The location as another process finds it; `InvalidInputError` where no other process can."""

    def read(self, key: str, start: int | None, stop: int | None) -> bytes:
        """Bytes start…stop under `key`; a range that reaches past the end stops there."""

    def view(self, key: str) -> Bytes:
        """All bytes under `key`, not copied where that is possible."""

    def source(self, key: str) -> Source:
        """The bytes under `key`, to read pieces of."""

    def write(self, key: str, data: Bytes) -> None:
        """Replace what is under `key`: a reader sees the old bytes or the new, never a mixture or a part."""

    def create(self, key: str, data: Bytes) -> None:
        """Write under `key` where there is nothing, else `FileExistsError`: of two that try at once, one succeeds.

        The local disk and object stores keep that for processes too; what fsspec opens does what its driver can.
        """

    def swap(self, key: str, data: Bytes, expected: Bytes) -> bool:
        """Replace what is under `key` where that is still `expected`; whether it was. Of two that try at once, one succeeds.

        True between processes too, against `swap`, `create` and `delete`: keys that are swapped are not to be changed by
        `write` at the same time. `InvalidInputError` where the storage cannot promise it.
        """

    def writer(self, key: str, batch: Batch | None = None) -> KeyWriter:
        """A binary file whose bytes appear under `key` when it is closed, and not before.

        With a `batch`, closing it may return earlier: the bytes appear, and are safe, when `batch.sync` returns.
        """

    def exists(self, key: str) -> bool:
        """Whether there are bytes under `key`; False for the prefix of other keys."""

    def delete(self, key: str) -> None:
        """Remove `key`, and every key below it; nothing happens where there is nothing."""

    def remove_leftovers(self, prefix: str) -> None:
        """Remove what killed writers left below `prefix`; whoever owns it for writing calls this, and nobody else."""

    def names(self, prefix: str) -> list[str]:
        """The names directly below `prefix`, sorted."""

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Every key below `prefix` with its size in bytes."""

    def local_path(self, key: str) -> Path | None:
        """Where `key` is on the local disk, for libraries that read files in place; None for every other storage.

        A storage with local paths is locked by `lock`.
        """

    def free_nbytes(self) -> int | None:
        """Bytes that can still be written; None where that is not known."""
