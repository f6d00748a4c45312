"""What every storage promises, as one class of tests that each storage's own test file subclasses."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from actstore.store.errors import InvalidInputError, NotFoundError, ReadOnlyError
from actstore.store.reader import Store
from actstore.store.storage.batch import Batch
from actstore.store.storage.folder import Folder
from actstore.store.verify import verify_capture

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from actstore.store.storage.protocol import Storage

UNUSUAL_KEYS = (
    "a b/c d",
    "å/日本/é",
    "captures/s/values",
    "mlp.post/0/c/0/0",
    "percent%20/%2F",
    "plus+and&equals=",
    "braces{1}/{}",
    "quote'\"s",
    "tilde~/-dash/_under",
    "dots../..x",
    ".hidden/.key",
    "l" * 200,
)


class StorageContract:
    """Subclass it in `test_*.py` with a fixture `location`: a new place on every call, at which nothing is yet."""

    storage: type[Storage]
    """What `open_storage` must choose."""
    is_shared = True
    """Whether another process can open what this one wrote."""
    is_conditional = True
    """Whether the storage replaces bytes under the condition that they are still the expected ones."""

    @pytest.fixture
    def folder(self, location: str) -> Folder:
        """The storage, open for writing."""
        return Folder(location, read_only=False)

    def test_the_location_chooses_the_storage(self, folder: Folder) -> None:
        assert type(folder.storage) is self.storage

    def test_what_is_written_is_read(self, folder: Folder) -> None:
        every_byte = bytes(range(256)) * 5
        folder.write("a/b/c", every_byte)
        assert folder.read("a/b/c") == every_byte
        assert bytes(folder.view("a/b/c")) == every_byte
        source = folder.source("a/b/c")
        assert (source.nbytes, bytes(source.read(3, 700))) == (1280, every_byte[3:700])
        source.will_need()
        folder.write("a/b/c", bytearray(b"other"))
        assert folder.read("a/b/c") == b"other"
        folder.write("a/b/c", memoryview(b"view"))
        assert Folder(folder.location).read("a/b/c") == b"view"

    @pytest.mark.parametrize(
        ("start", "stop", "expected"),
        [
            (None, None, b"0123456789"),
            (2, 5, b"234"),
            (None, 3, b"012"),
            (7, None, b"789"),
            (8, 99, b"89"),
            (4, 4, b""),
        ],
    )
    def test_ranges(self, folder: Folder, start: int | None, stop: int | None, expected: bytes) -> None:
        folder.write("key", b"0123456789")
        assert folder.read("key", start, stop) == expected

    def test_an_empty_object(self, folder: Folder) -> None:
        folder.write("nothing", b"")
        assert folder.exists("nothing")
        assert folder.read("nothing") == b""
        assert bytes(folder.view("nothing")) == b""
        assert folder.source("nothing").nbytes == 0

    def test_a_missing_key_is_named(self, folder: Folder) -> None:
        folder.write("a/b", b"x")
        for key in ("c", "a", "a/b/c"):
            for read in (folder.read, folder.view, folder.source):
                with pytest.raises(NotFoundError) as caught:
                    read(key)
                assert str(caught.value) == f"{folder} has no {key}."
            assert not folder.exists(key)

    def test_names_and_sizes(self, folder: Folder) -> None:
        assert folder.names("a") == []
        assert list(folder.sizes()) == []
        folder.write("a/z", b"123")
        folder.write("a/b/c", b"12345")
        folder.write("d", b"")
        assert folder.names("a") == ["b", "z"]
        assert folder.names("") == ["a", "d"]
        assert sorted(folder.sizes()) == [("a/b/c", 5), ("a/z", 3), ("d", 0)]
        assert sorted(folder.sizes("a")) == [("a/b/c", 5), ("a/z", 3)]

    @pytest.mark.parametrize("key", UNUSUAL_KEYS)
    def test_unusual_keys(self, folder: Folder, key: str) -> None:
        folder.write("other", b"1234")
        folder.write(key, b"123")
        assert folder.exists(key)
        assert folder.read(key) == b"123"
        assert sorted(folder.sizes()) == sorted([(key, 3), ("other", 4)])
        parent, _, name = key.rpartition("/")
        assert folder.names(parent) == ([name] if parent else sorted([name, "other"]))
        folder.delete(key)
        assert [name for name, _ in folder.sizes()] == ["other"]

    def test_deleting_takes_everything_below(self, folder: Folder) -> None:
        for key in ("a", "b/c", "b/d/e", "bb"):
            folder.write(key, b"x")
        folder.delete("a")
        folder.delete("b")
        folder.delete("never there")
        assert [key for key, _ in folder.sizes()] == ["bb"]

    def test_deleting_the_empty_key_takes_all(self, folder: Folder) -> None:
        folder.write("a", b"x")
        folder.write("b/c", b"x")
        folder.delete("")
        assert list(folder.sizes()) == []

    def test_a_failed_write_leaves_the_old_bytes(self, folder: Folder) -> None:
        folder.write("a/key", b"old")
        with pytest.raises(TypeError):
            folder.write("a/key", object())  # type: ignore[arg-type]
        assert folder.read("a/key") == b"old"
        assert folder.names("a") == ["key"]

    def test_an_open_source_keeps_what_it_opened(self, folder: Folder) -> None:
        """A reader that has a shard open does not see half of the old block and half of the new."""
        folder.write("key", b"old" * 5000)
        view, source = folder.view("key"), folder.source("key")
        folder.write("key", b"new" * 5000)
        assert (bytes(view[:3]), bytes(source.read(0, 3))) == (b"old", b"old")
        assert bytes(folder.view("key")[:3]) == b"new"

    def test_a_writer_publishes_on_close(self, folder: Folder) -> None:
        writer = folder.writer("a/table")
        writer.write(b"12")
        assert not folder.exists("a/table")
        assert writer.tell() == 2
        writer.write(b"34")
        writer.close()
        writer.close()
        assert folder.read("a/table") == b"1234"
        assert folder.names("a") == ["table"]

    def test_an_abandoned_writer_leaves_the_old_bytes(self, folder: Folder) -> None:
        folder.write("a/table", b"old")
        writer = folder.writer("a/table")
        writer.write(b"new")
        writer.abandon()
        writer.close()
        assert folder.read("a/table") == b"old"
        assert folder.names("a") == ["table"]

    def test_a_writer_left_by_an_exception_publishes_nothing(self, folder: Folder) -> None:
        """Half a table under its final name would pass for a finished one."""

        def write_half() -> None:
            with folder.writer("a/table") as writer:
                writer.write(b"half")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_half()
        assert not folder.exists("a/table")
        assert folder.names("a") == []

    def test_a_forgotten_writer_publishes_nothing(self, folder: Folder) -> None:
        writer = folder.writer("a/table")
        writer.write(b"half")
        del writer
        assert not folder.exists("a/table")
        assert folder.names("a") == []

    def test_a_writer_takes_a_parquet_table(self, folder: Folder) -> None:
        table = pa.table({"token": np.arange(1000)})
        with folder.writer("t.parquet") as file:
            pq.write_table(table, file)
        assert pq.read_table(pa.BufferReader(folder.read("t.parquet"))).equals(table)

    def test_json_keeps_its_order_and_its_letters(self, folder: Folder) -> None:
        folder.write_json("record.json", {"z": 1, "a": [None, "é"]})
        assert folder.read_json("record.json") == {"z": 1, "a": [None, "é"]}
        assert list(folder.read_json("record.json")) == ["z", "a"]
        assert "é".encode() in folder.read("record.json")

    def test_zarr_sees_the_same_keys(self, folder: Folder) -> None:
        array = zarr.create_array(store=folder.zarr, name="group/array", shape=(3,), dtype="int32")
        array[...] = [1, 2, 3]
        assert folder.exists("group/array/zarr.json")
        folder.write("group/copy/zarr.json", folder.read("group/array/zarr.json"))
        folder.write("group/copy/c/0", folder.read("group/array/c/0"))
        reader = Folder(folder.location)
        copied = zarr.open_array(store=reader.zarr, path="group/copy", mode="r")
        assert np.asarray(copied[...]).tolist() == [1, 2, 3]

    def test_creating_replaces_nothing(self, folder: Folder) -> None:
        folder.create("a/key", b"first")
        with pytest.raises(FileExistsError):
            folder.create("a/key", b"second")
        assert folder.read("a/key") == b"first"
        folder.write("a/key", b"third")
        folder.delete("a/key")
        folder.create("a/key", bytearray(b"fourth"))
        assert folder.read("a/key") == b"fourth"
        assert folder.names("a") == ["key"]

    def test_of_many_creators_one_succeeds(self, folder: Folder) -> None:
        if not self.is_conditional:
            return

        def create(number: int) -> list[int]:
            try:
                Folder(folder.location, read_only=False).create("claims/7", b"%d" % number)
            except FileExistsError:
                return []
            return [number]

        with ThreadPoolExecutor(8) as pool:
            (winner,) = [number for created in pool.map(create, range(16)) for number in created]
        assert folder.read("claims/7") == b"%d" % winner

    def test_what_is_not_expected_is_not_swapped(self, folder: Folder) -> None:
        folder.create("claims/7", b"first")
        if not self.is_conditional:
            with pytest.raises(InvalidInputError, match="cannot be written to by several processes"):
                folder.swap("claims/7", b"second", b"first")
            return
        assert not folder.swap("claims/7", b"second", b"other")
        assert not folder.swap("claims/7", b"second", b"first, and more")
        assert not folder.swap("claims/7", b"second", b"")
        assert not folder.swap("claims/8", b"second", b"")
        assert not folder.swap("claims/7/below", b"second", b"")
        assert not folder.swap("claims", b"second", b"")
        assert folder.read("claims/7") == b"first"
        assert folder.swap("claims/7", bytearray(b"second"), memoryview(b"first"))
        assert folder.read("claims/7") == b"second"
        assert folder.swap("claims/7", b"", b"second")
        assert folder.swap("claims/7", b"third", b"")
        folder.delete("claims/7")
        assert not folder.swap("claims/7", b"fourth", b"third")
        assert folder.names("claims") == []

    def test_of_many_swappers_one_succeeds(self, folder: Folder) -> None:
        """Round after round, each from what the round before left: none is lost, and none counts twice."""
        if not self.is_conditional:
            return
        folder.create("claims/7", b"dead")

        def swap(number: int) -> list[int]:
            data = b"%d.%d" % (round_number, number)
            return [number] * Folder(folder.location, read_only=False).swap("claims/7", data, before)

        with ThreadPoolExecutor(8) as pool:
            for round_number in range(4):
                before = folder.read("claims/7")
                (winner,) = [number for swapped in pool.map(swap, range(8)) for number in swapped]
                assert folder.read("claims/7") == b"%d.%d" % (round_number, winner)

    def test_what_is_deleted_is_not_swapped_back(self, folder: Folder) -> None:
        if not self.is_conditional:
            return
        with ThreadPoolExecutor(2) as pool:
            for number in range(10):
                folder.create("claims/7", b"%d" % number)
                swapped = pool.submit(folder.swap, "claims/7", b"new", b"%d" % number)
                pool.submit(folder.delete, "claims/7").result()
                swapped.result()
                assert not folder.exists("claims/7")

    def test_a_batch_is_there_when_it_is_synced(self, folder: Folder) -> None:
        folder.write("a/0", b"old")
        with ThreadPoolExecutor(2) as pool:
            batch = Batch(pool)
            for number in range(20):
                with folder.writer(f"a/{number}", batch) as writer:
                    writer.write(b"new")
            batch.sync()
            assert {bytes(folder.read(f"a/{number}")) for number in range(20)} == {b"new"}
        assert len(folder.names("a")) == 20

    def test_leftovers_are_no_keys(self, folder: Folder) -> None:
        folder.write("a/b", b"x")
        folder.remove_leftovers("a")
        folder.remove_leftovers("nothing")
        assert list(folder.sizes()) == [("a/b", 1)]

    def test_a_folder_opened_for_reading_writes_nothing(self, folder: Folder) -> None:
        folder.write("a", b"old")
        reader = Folder(folder.location)
        writes: list[Callable[[], object]] = [
            lambda: reader.write("a", b"new"),
            lambda: reader.create("b", b"new"),
            lambda: reader.swap("a", b"new", b"old"),
            lambda: reader.writer("a"),
            lambda: reader.remove_leftovers(""),
            lambda: reader.delete("a"),
            lambda: reader.write_json("a", {}),
        ]
        for write in writes:
            with pytest.raises(ReadOnlyError, match="opened for reading"):
                write()
        with pytest.raises(ValueError, match="read-only"):
            zarr.create_array(store=reader.zarr, name="array", shape=(3,), dtype="int32")
        assert list(folder.sizes()) == [("a", 3)]

    def test_opening_makes_nothing(self, folder: Folder) -> None:
        assert folder.names("") == []

    def test_a_local_path_is_where_the_bytes_are(self, folder: Folder) -> None:
        folder.write("a/b", b"bytes")
        path = folder.local_path("a/b")
        assert path is None or path.read_bytes() == b"bytes"
        assert (path is None) == (folder.local_path() is None)

    def test_free_bytes_are_known_where_there_is_a_disk(self, folder: Folder) -> None:
        free = folder.free_nbytes()
        assert (free is None) if folder.local_path() is None else (free is not None and free > 0)

    def test_pickling(self, folder: Folder) -> None:
        """A folder is pickled by where it is; one that no other process can open refuses."""
        folder.write("a", b"x")
        assert copy.copy(folder) is folder
        assert copy.deepcopy(folder) is folder
        if not self.is_shared:
            with pytest.raises(InvalidInputError, match="lives in the memory of this process"):
                pickle.dumps(folder)
            return
        again = pickle.loads(pickle.dumps(folder))
        assert (again.read("a"), again.read_only) == (b"x", False)
        assert pickle.loads(pickle.dumps(Folder(folder.location))).read_only

    def test_a_whole_store(self, location: str, planting: Callable[..., dict[int, NDArray[np.float32]]]) -> None:
        """Written and read with nothing but its location told: planned, filled, summed up, verified, queried."""
        values = planting(location)
        store = Store(location)
        capture = store.capture()
        assert capture.is_complete
        assert store.captures == ("corpus",)
        for layer, rows in values.items():
            for neuron in (0, len(rows) - 1):
                np.testing.assert_array_equal(capture.activations(layer, neuron), rows[neuron])
        assert len(store.neuron(1, 39).exemplars(6)) == 6
        assert store.sql("select count(*) n from tokens join documents using (document)")["n"].to_pylist() == [135]
        assert verify_capture(capture) == []

    def test_a_damaged_store(self, location: str, planting: Callable[..., dict[int, NDArray[np.float32]]]) -> None:
        planting(location)
        folder = Folder(location, read_only=False)
        key = "captures/corpus/values/mlp.post/1/c/0/2"
        data = bytearray(folder.read(key))
        data[len(data) // 2] ^= 1
        folder.write(key, data)
        (damage,) = verify_capture(Store(location).capture())
        assert (damage.capture, damage.layer, damage.block) == ("corpus", 1, 2)
