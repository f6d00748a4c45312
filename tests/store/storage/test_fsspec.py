"""Object stores keep the contract of storages: a file system of fsspec that this process registers, so offline."""

from __future__ import annotations

import socket
import uuid
from typing import TYPE_CHECKING, Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from storage_contract import StorageContract

from actstore.store.errors import InvalidInputError, StorageError
from actstore.store.storage.folder import Folder
from actstore.store.storage.fsspec import FsspecStorage

if TYPE_CHECKING:
    from collections.abc import Iterator


class ObjectStore(MemoryFileSystem):  # type: ignore[misc]
    """Objects under `objects://`, and a driver with errors of its own."""

    protocol = "objects"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    is_reachable: ClassVar[bool] = True

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("objects://", "memory://")))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """The bytes of an object."""
        if not self.is_reachable:
            raise RuntimeError("\nThe server refuses.\nTry later.")
        return bytes(super().cat_file(path, start, end))


@pytest.fixture(autouse=True)
def objects() -> Iterator[None]:
    """Make `objects://` known to fsspec."""
    fsspec.register_implementation("objects", ObjectStore, clobber=True)
    yield
    ObjectStore.store.clear()


class TestFsspec(StorageContract):
    storage = FsspecStorage
    is_conditional = False

    @pytest.fixture
    def location(self) -> str:
        return f"objects://{uuid.uuid4()}/store"


def test_a_driver_that_fails_is_an_error_that_names_the_location(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder("objects://bucket/store", read_only=False)
    folder.write("key", b"x")
    monkeypatch.setattr(ObjectStore, "is_reachable", False)
    with pytest.raises(OSError) as caught:  # noqa: PT011 (the whole message is compared)
        folder.read("key")
    assert str(caught.value) == "objects://bucket/store cannot be read: RuntimeError: The server refuses."


def test_of_a_large_object_pieces_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder("objects://bucket/large", read_only=False)
    folder.write("key", bytes(range(100)))
    monkeypatch.setattr("actstore.store.storage.zarr_storage.LARGE_NBYTES", 99)
    source = folder.source("key", tail=10)
    assert (source.nbytes, source.nbytes_held) == (100, 0)
    assert bytes(source.read(7, 9)) == b"\x07\x08"
    out = np.empty((2, 2), np.uint8)
    source.read_into(3, out)
    np.testing.assert_array_equal(out, [[3, 4], [5, 6]])
    with pytest.raises(EOFError, match="ends at byte 100"):
        source.read(90, 101)
    assert folder.source("key", tail=None).nbytes_held == 100


@pytest.mark.parametrize(
    "failure", [socket.gaierror(-2, "Name or service not known"), ConnectionRefusedError(111, "Connection refused")]
)
def test_a_server_that_cannot_be_reached_is_named(failure: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **settings: object) -> None:
        raise failure

    monkeypatch.setattr("actstore.store.storage.fsspec.FsspecStore.from_url", fail)
    with pytest.raises(
        StorageError, match=rf"^ftp://host/store cannot be opened: {failure.strerror}\. Check the address"
    ):
        Folder("ftp://host/store")


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"^nonsense://bucket is no URL that can be opened: "):
        Folder("nonsense://bucket")
