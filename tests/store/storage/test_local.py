"""The local disk keeps the contract of storages, and what only a disk can do."""

from __future__ import annotations

import errno
import io
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import zarr
from storage_contract import StorageContract

from actstore.store.errors import InvalidInputError
from actstore.store.storage.folder import Folder
from actstore.store.storage.local import LocalStorage

if TYPE_CHECKING:
    from collections.abc import Callable

    from recorded_disk import RecordedDisk

pytestmark = pytest.mark.usefixtures("waits_for_the_disk")


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

    class Full(io.BytesIO):
        def flush(self) -> None:
            raise OSError(28, "No space left on device")

    writer._partial.file.close()  # type: ignore[attr-defined]
    writer._partial.file = Full()  # type: ignore[attr-defined]
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
    (path,) = (tmp_path / "a").iterdir()
    assert re.fullmatch(rf"\.key\.{os.getpid()}-[0-9a-f]{{16}}\.partial", path.name)
    writer.abandon()


def test_two_writers_of_one_key_do_not_share_a_file(tmp_path: Path) -> None:
    """Each publishes what it wrote itself; the last one counts."""
    folder = Folder(tmp_path, read_only=False)
    first, second = folder.writer("key"), folder.writer("key")
    first.write(b"first")
    second.write(b"second")
    second.close()
    first.close()
    assert folder.read("key") == b"first"
    assert folder.names("") == ["key"]


LEFTOVERS = ("key.partial", "zarr.82dfa495fb2f48d4875d708f695f258b.partial", ".key.4194304-0123456789abcdef.partial")


@pytest.mark.parametrize("name", LEFTOVERS)
def test_temporary_files_are_neither_listed_nor_sized(tmp_path: Path, name: str) -> None:
    folder = Folder(tmp_path, read_only=False)
    folder.write("a/key", b"123")
    (tmp_path / "a" / name).write_bytes(b"half")
    (tmp_path / "a" / "folder.partial").mkdir()
    assert folder.names("a") == ["folder.partial", "key"]
    assert list(folder.sizes()) == [("a/key", 3)]


def test_leftovers_are_removed_where_nothing_writes_them(tmp_path: Path) -> None:
    """Never the file of a living writer, nor what lies in a folder with a lock of its own."""
    folder = Folder(tmp_path, read_only=False)
    folder.write("captures/x/values/0/c/0/0", b"kept")
    writer = folder.writer("captures/x/values/0/c/0/1")
    living = [
        *(tmp_path / "captures/x/values/0/c/0").glob(".1.*"),
        tmp_path / f"captures/x/.key.{os.getppid()}-0123456789abcdef.partial",
        tmp_path / "captures/x/inner/.key.4194304-0123456789abcdef.partial",
    ]
    (tmp_path / "captures/x/inner").mkdir()
    (tmp_path / "captures/x/inner/writer.lock").touch()
    (tmp_path / "captures/x/writer.lock").touch()
    dead = [tmp_path / "captures/x" / name for name in LEFTOVERS]
    dead += [tmp_path / "captures/x/values/0/c/0" / name for name in LEFTOVERS]
    dead.append(tmp_path / f"captures/x/values/.key.{os.getpid()}-0123456789abcdef.partial")
    beside = tmp_path / "captures" / LEFTOVERS[0]
    for path in (*living[1:], *dead, beside):
        path.write_bytes(b"half")
    folder.remove_leftovers("captures/x")
    assert [path.exists() for path in living] == [True] * 3
    assert [path for path in dead if path.exists()] == []
    assert beside.exists()
    writer.close()
    assert folder.names("captures/x/values/0/c/0") == ["0", "1"]


def test_whatever_writes_is_safe_from_a_power_cut(tmp_path: Path, recorded_disk: RecordedDisk) -> None:
    folder = Folder(tmp_path / "new" / "store", read_only=False)
    folder.write("a/b/key", b"x")
    folder.write("a/b/key", b"y")
    folder.create("a/c/new", b"z")
    with folder.writer("table") as writer:
        writer.write(b"rows")
    array = zarr.create_array(store=folder.zarr, name="d/array", shape=(4,), chunks=(2,), dtype="int32", overwrite=True)
    array[...] = [1, 2, 3, 4]
    array.append([5, 6])
    names = {path.relative_to(tmp_path / "new/store").as_posix() for path in recorded_disk.renamed}
    assert names >= {"a/b/key", "a/c/new", "table", "d/array/zarr.json", "d/array/c/0", "d/array/c/2"}
    recorded_disk.check()


def test_zarr_leaves_no_temporary_files_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, fdopen = [], Path.open

    def noted(path: Path, *arguments: object, **settings: object) -> object:
        opened.append(path.name)
        return fdopen(path, *arguments, **settings)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", noted)
    folder = Folder(tmp_path, read_only=False)
    zarr.create_array(store=folder.zarr, name="a/array", shape=(2,), dtype="int32")[...] = [1, 2]
    written = [name for name in opened if name.endswith(".partial")]
    assert written
    assert [name for name in written if not re.fullmatch(r"\..*\.\d+-[0-9a-f]{16}\.partial", name)] == []


def test_deleting_is_safe_from_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was deleted first must not come back without what was deleted after it."""
    folder, fsync, synced = Folder(tmp_path, read_only=False), os.fsync, []
    folder.write("a/record", b"x")
    folder.write("a/b/data", b"x")

    def noted(descriptor: int) -> None:
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), (tmp_path / "a/record").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    folder.delete("a/record")
    assert synced == [(f"{tmp_path}/a", False)]
    folder.delete("a")
    assert synced[1:] == [(str(tmp_path), False)]
    folder.delete("nothing")
    assert len(synced) == 2
    folder.write("a/b/data", b"again")
    assert {path for path, _ in synced} >= {str(tmp_path), f"{tmp_path}/a", f"{tmp_path}/a/b"}


@pytest.mark.parametrize("write", ["write", "create", "writer", "zarr", "delete"])
def test_a_failed_sync_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str) -> None:
    folder = Folder(tmp_path, read_only=False)
    folder.write("old", b"old")

    def failing(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    writes: dict[str, Callable[[], object]] = {
        "write": lambda: folder.write("old", b"new"),
        "create": lambda: folder.create("new", b"new"),
        "writer": lambda: folder.writer("old").close(),
        # One file: above an array that has a name, Zarr writes its group too, at the same time, and raises the first error
        # while the other file may still be there.
        "zarr": lambda: zarr.create_array(store=folder.zarr, shape=(2,), dtype="int32"),
        "delete": lambda: folder.delete("old"),
    }
    with pytest.raises(OSError, match="Input/output error"):
        writes[write]()
    if write != "delete":
        assert folder.read("old") == b"old"
        assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".partial")]


def test_a_file_system_that_cannot_sync_folders_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def without_folders(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", without_folders)
    folder = Folder(tmp_path, read_only=False)
    folder.write("a/key", b"x")
    assert folder.read("a/key") == b"x"


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP])
def test_creating_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    folder = Folder(tmp_path, read_only=False)
    folder.create("key", b"first")
    with pytest.raises(FileExistsError):
        folder.create("key", b"second")
    assert folder.read("key") == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


SWAP = """
import sys
from actstore.store.storage.folder import Folder

folder = Folder(sys.argv[1], read_only=False)
print("ready", flush=True)
sys.stdin.read()
for round in range(100):
    before = folder.read("count")
    while not folder.swap("count", b"%d" % (int(before) + 1), before):
        before = folder.read("count")
"""


def test_processes_that_swap_lose_nothing(tmp_path: Path) -> None:
    """Two add one to what is there, a hundred times each."""
    Folder(tmp_path, read_only=False).create("count", b"0")
    command = [sys.executable, "-c", SWAP, str(tmp_path)]
    pipe = subprocess.PIPE
    with (
        subprocess.Popen(command, cwd=tmp_path, stdin=pipe, stdout=pipe) as one,
        subprocess.Popen(command, cwd=tmp_path, stdin=pipe, stdout=pipe) as other,
    ):
        for process in (one, other):
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        for process in (one, other):
            assert process.stdin is not None
            process.stdin.close()
    assert (one.returncode, other.returncode) == (0, 0)
    assert (tmp_path / "count").read_bytes() == b"200"
    assert [path.name for path in tmp_path.iterdir()] == ["count"]


def test_a_long_name_has_a_temporary_name_that_fits(tmp_path: Path) -> None:
    folder, name = Folder(tmp_path, read_only=False), "日" * 85
    folder.write(name, b"x")
    assert folder.read(name) == b"x"


def test_without_sync_the_disk_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise AssertionError

    monkeypatch.setattr(os, "fsync", refuse)
    folder = Folder(tmp_path / "store", read_only=False, sync=False)
    folder.write("a/key", b"x")
    folder.create("new", b"x")
    zarr.create_array(store=folder.zarr, name="b", shape=(2,), dtype="int32")[...] = [1, 2]
    folder.delete("a")
    again = pickle.loads(pickle.dumps(folder))
    again.write("c", b"x")
    assert not again.sync


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
