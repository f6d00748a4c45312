"""The local disk keeps the contract of storages, and what only a disk can do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from storage_contract import StorageContract

from actstore.store.errors import InvalidInputError
from actstore.store.storage.folder import Folder
from actstore.store.storage.local import LocalStorage

if TYPE_CHECKING:
    from pathlib import Path


class TestLocal(StorageContract):
    storage = LocalStorage

    @pytest.fixture
    def location(self, tmp_path: Path) -> str:
        return str(tmp_path / "deep" / "store")


class TestFileUrl(StorageContract):
    storage = LocalStorage

    @pytest.fixture
    def location(self, tmp_path: Path) -> str:
        return f"file://{tmp_path}/deep/store"


def test_a_full_disk_leaves_the_old_bytes(tmp_path: Path) -> None:
    folder = Folder(tmp_path, read_only=False)
    folder.write("key", b"old")
    writer = folder.writer("key")
    writer.write(b"more than the disk holds")

    class Full:
        file = writer._file

        def close(self) -> None:
            self.file.close()
            raise OSError(28, "No space left on device")

    writer._file = Full()  # type: ignore[assignment]
    with pytest.raises(OSError, match="No space left"):
        writer.close()
    assert folder.read("key") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_text("x")
    with pytest.raises(InvalidInputError) as caught:
        Folder(tmp_path / "model.bin")
    assert str(caught.value) == f"A store is a folder, but {tmp_path / 'model.bin'} is a file. Name another path."


def test_pointing_at_a_folder_makes_nothing(tmp_path: Path) -> None:
    Folder(tmp_path / "store", read_only=False)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_published_yet_is_a_partial_file(tmp_path: Path) -> None:
    writer = Folder(tmp_path, read_only=False).writer("a/key")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["key.partial"]
    writer.abandon()


def test_free_bytes_of_a_folder_that_is_not_there_yet_are_those_of_its_disk(tmp_path: Path) -> None:
    free = Folder(tmp_path / "deep" / "store").free_nbytes()
    assert free is not None
    assert free > 0
    assert list(tmp_path.iterdir()) == []


def test_json_is_readable_by_people(tmp_path: Path) -> None:
    Folder(tmp_path, read_only=False).write_json("record.json", {"a": 1, "b": {"c": 2}})
    assert (tmp_path / "record.json").read_text(encoding="utf-8").splitlines() == [
        "{", ' "a": 1,', ' "b": {', '  "c": 2', " }", "}",
    ]  # fmt: skip
