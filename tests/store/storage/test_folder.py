import json
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actstore.store.errors import FormatError, InvalidInputError, NotFoundError, ReadOnlyError
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder
from actstore.store.verify import verify_capture


@pytest.fixture(params=["disk", "memory"])
def location(request, tmp_path):
    """Where a store may lie: a local folder, and an object store's URL. Everything below holds for both."""
    return tmp_path / "deep" / "store" if request.param == "disk" else f"memory://{uuid.uuid4()}/store"


@pytest.fixture
def folder(location):
    return Folder(location, read_only=False)


def test_what_is_written_is_read(folder):
    folder.write("a/b/c", b"0123456789")
    assert folder.read("a/b/c") == b"0123456789"
    assert bytes(folder.view("a/b/c")) == b"0123456789"
    folder.write("a/b/c", bytearray(b"other"))
    assert folder.read("a/b/c") == b"other"
    folder.write("a/b/c", memoryview(b"view"))
    assert Folder(folder.location).read("a/b/c") == b"view"


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [(None, None, b"0123456789"), (2, 5, b"234"), (None, 3, b"012"), (7, None, b"789"), (8, 99, b"89"), (4, 4, b"")],
)
def test_ranges(folder, start, stop, expected):
    folder.write("key", b"0123456789")
    assert folder.read("key", start, stop) == expected


def test_an_empty_object(folder):
    folder.write("nothing", b"")
    assert folder.exists("nothing")
    assert folder.read("nothing") == b""
    assert bytes(folder.view("nothing")) == b""


def test_what_is_not_there_is_named(folder):
    folder.write("a/b", b"x")
    for key in ("c", "a", "a/b/c"):
        for read in (folder.read, folder.view):
            with pytest.raises(NotFoundError) as caught:
                read(key)
            assert str(caught.value) == f"{folder} has no {key}."
    assert not folder.exists("c")


def test_names_and_sizes(folder):
    assert folder.names("a") == []
    assert list(folder.sizes()) == []
    folder.write("a/z", b"123")
    folder.write("a/b/c", b"12345")
    folder.write("d", b"")
    assert folder.names("a") == ["b", "z"]
    assert sorted(folder.names("")) == ["a", "d"]
    assert sorted(folder.sizes()) == [("a/b/c", 5), ("a/z", 3), ("d", 0)]
    assert sorted(folder.sizes("a")) == [("a/b/c", 5), ("a/z", 3)]


def test_delete_takes_everything_below(folder):
    for key in ("a", "b/c", "b/d/e", "bb"):
        folder.write(key, b"x")
    folder.delete("a")
    folder.delete("b")
    folder.delete("never there")
    assert [key for key, _ in folder.sizes()] == ["bb"]


def test_a_writer_publishes_on_close(folder):
    writer = folder.writer("a/table")
    writer.write(b"12")
    assert not folder.exists("a/table")
    assert writer.tell() == 2
    writer.write(b"34")
    writer.close()
    writer.close()
    assert folder.read("a/table") == b"1234"
    assert folder.names("a") == ["table"]


def test_an_abandoned_writer_leaves_the_old_bytes(folder):
    folder.write("a/table", b"old")
    writer = folder.writer("a/table")
    writer.write(b"new")
    writer.abandon()
    writer.close()
    assert folder.read("a/table") == b"old"
    assert folder.names("a") == ["table"]


def test_a_writer_left_by_an_exception_publishes_nothing(folder):
    """Half a table under its final name would pass for a finished one."""

    def write_half():
        with folder.writer("a/table") as writer:
            writer.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert not folder.exists("a/table")
    assert folder.names("a") == []


def test_a_forgotten_writer_publishes_nothing(folder):
    writer = folder.writer("a/table")
    writer.write(b"half")
    del writer
    assert not folder.exists("a/table")
    assert folder.names("a") == []


def test_a_writer_takes_a_parquet_table(folder):
    table = pa.table({"token": np.arange(1000)})
    with folder.writer("t.parquet") as file:
        pq.write_table(table, file)
    assert pq.read_table(pa.BufferReader(folder.read("t.parquet"))).equals(table)


def test_json_keeps_its_order_and_its_letters(folder):
    folder.write_json("record.json", {"z": 1, "a": [None, "é"]})
    assert folder.read_json("record.json") == {"z": 1, "a": [None, "é"]}
    assert list(folder.read_json("record.json")) == ["z", "a"]
    assert "é".encode() in folder.read("record.json")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "should hold JSON, but"),
        (b"{", "should hold JSON, but"),
        (b"\xff\xfe", "should hold JSON, but"),
        (b"[" * 100_000, "should hold JSON, but"),
        (b"[1]", "should hold a JSON object, found list"),
        (b"null", "should hold a JSON object, found NoneType"),
    ],
)
def test_what_is_no_json_object_is_refused(folder, data, message):
    folder.write("record.json", data)
    with pytest.raises(FormatError, match=message):
        folder.read_json("record.json")


def test_a_folder_opened_for_reading_writes_nothing(folder):
    folder.write("a", b"old")
    reader = Folder(folder.location)
    for write in (lambda: reader.write("a", b"new"), lambda: reader.writer("a"), lambda: reader.delete("a")):
        with pytest.raises(ReadOnlyError, match="opened for reading"):
            write()
    assert folder.read("a") == b"old"


def test_pointing_at_a_folder_makes_nothing(location, tmp_path):
    Folder(location, read_only=False)
    assert list(tmp_path.iterdir()) == []


def test_a_whole_store(location, planting):
    """Written and read with nothing but its location told: planned, filled, summed up, verified, asked."""
    values = planting(location)
    store = Store(str(location))
    capture = store.capture()
    assert capture.is_complete
    assert store.captures == ("corpus",)
    for layer, rows in values.items():
        for neuron in (0, len(rows) - 1):
            np.testing.assert_array_equal(capture.activations(layer, neuron), rows[neuron])
    assert len(store.neuron(1, 39).exemplars(6)) == 6
    assert store.sql("select count(*) n from tokens join documents using (document)")["n"].to_pylist() == [135]
    assert verify_capture(capture) == []


def test_a_damaged_store(location, planting):
    planting(location)
    folder = Folder(location, read_only=False)
    key = "captures/corpus/values/mlp.post/1/c/0/2"
    data = bytearray(folder.read(key))
    data[len(data) // 2] ^= 1
    folder.write(key, data)
    (damage,) = verify_capture(Store(str(location)).capture())
    assert (damage.capture, damage.layer, damage.block) == ("corpus", 1, 2)


# On a disk.


def test_a_failed_write_leaves_the_old_bytes(tmp_path):
    folder = Folder(tmp_path, read_only=False)
    folder.write("a/key", b"old")
    with pytest.raises(TypeError):
        folder.write("a/key", object())
    assert folder.read("a/key") == b"old"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["key"]


def test_a_full_disk_leaves_the_old_bytes(tmp_path):
    folder = Folder(tmp_path, read_only=False)
    folder.write("key", b"old")
    writer = folder.writer("key")
    writer.write(b"more than the disk holds")

    class Full:
        file = writer._file

        def close(self):
            self.file.close()
            raise OSError(28, "No space left on device")

    writer._file = Full()
    with pytest.raises(OSError, match="No space left"):
        writer.close()
    assert folder.read("key") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_file_is_no_store(tmp_path):
    (tmp_path / "model.bin").write_text("x")
    with pytest.raises(InvalidInputError) as caught:
        Folder(tmp_path / "model.bin")
    assert str(caught.value) == f"A store is a folder, but {tmp_path / 'model.bin'} is a file. Name another path."


def test_a_view_outlives_its_replacement(tmp_path):
    """A reader that holds a shard open keeps what it opened when the block is written again."""
    folder = Folder(tmp_path, read_only=False)
    folder.write("key", b"old" * 5000)
    view = folder.view("key")
    folder.write("key", b"new" * 5000)
    assert bytes(view[:3]) == b"old"
    assert bytes(folder.view("key")[:3]) == b"new"


def test_json_is_readable_by_people(tmp_path):
    Folder(tmp_path, read_only=False).write_json("record.json", {"a": 1, "b": {"c": 2}})
    text = (tmp_path / "record.json").read_text(encoding="utf-8")
    assert text.count("\n") > 3
    assert json.loads(text) == {"a": 1, "b": {"c": 2}}
