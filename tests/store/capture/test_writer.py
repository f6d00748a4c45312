import dataclasses
import errno
import os
import threading
from collections import UserDict

import numpy as np
import pytest

from actstore.store.capture.commits import committed_blocks, read_commit
from actstore.store.capture.statistics.capture_statistics import CaptureStatistics
from actstore.store.capture.writer import CaptureWriter, create_capture
from actstore.store.errors import CaptureError, FormatError
from actstore.store.files.block_arrays import block_arrays
from actstore.store.layout import (
    block_answers_key,
    block_statistics_key,
    commit_key,
    gate_sign_key,
    shard_key,
    values_key,
)
from actstore.store.reader import Store, read_capture
from actstore.store.storage.folder import Folder
from actstore.store.storage.memory import MemoryStorage
from actstore.store.verify import verify_capture
from actstore.store.verify_blocks import check_block


@pytest.fixture
def record(record, request):
    """Of a capture whose blocks are bundled, where the test's parameter says so."""
    return dataclasses.replace(record, identity=record.identity_of(), bundled=getattr(request, "param", False))


EITHER = pytest.mark.parametrize("record", [False, True], indirect=True, ids=["files", "bundled"])


@pytest.fixture
def folder(somewhere, record):
    folder = Folder(somewhere, read_only=False)
    create_capture(folder, record)
    return folder


def arrays_of(record, number):
    return {spec.key: np.full((spec.rows, spec.columns), number, spec.dtype) for spec in block_arrays(record)}


def fill(folder, record, n_blocks, on_commit=lambda block: None, first=0):
    with CaptureWriter(folder, record, n_threads=2, overlap=True) as writer:
        writer.on_commit = on_commit
        for block in range(first, n_blocks):
            writer.submit(block, arrays_of(record, block), CaptureStatistics.empty(record), began=0.0)


def test_creating_makes_no_block(folder, record):
    assert read_capture(folder, "corpus") == dataclasses.replace(record, identity=record.identity_of())
    assert committed_blocks(folder, "corpus") == []


@pytest.mark.parametrize(
    ("precision", "names"),
    [
        ("exact", {"values", "gate_sign"}),
        ("half", {"values", "gate_sign"}),
        ("int8", {"values", "gate_sign", "scale"}),
        ("sparse", {"values", "gate_sign", "threshold", "dropped"}),
        ("none", {"gate_sign"}),
    ],
)
def test_a_precision_has_its_arrays(record, precision, names):
    changed = type(record).from_json(record.to_json() | {"precision": precision}, "")
    assert {spec.key.split("/")[2] for spec in block_arrays(changed)} == names


@EITHER
def test_a_block_appears_with_its_commit_record_and_not_before(folder, record):
    seen = []
    with CaptureWriter(folder, record, n_threads=2, overlap=True) as writer:
        writer.on_commit = lambda block: seen.append((block, committed_blocks(folder, "corpus")))
        for block in range(3):
            writer.submit(block, arrays_of(record, block), CaptureStatistics.empty(record), began=0.0)
            # The latest is encoded while the next is filled; the one before it is on its way to the disk, and may be there.
            assert committed_blocks(folder, "corpus") in (list(range(block - 1)), list(range(block)))
            assert [number for number, _ in seen] == list(range(block - 1))
    assert [number for number, _ in seen] == [0, 1, 2]
    assert all(committed[: block + 1] == list(range(block + 1)) for block, committed in seen)
    assert all(check_block(folder, read_capture(folder, "corpus"), block).damage == [] for block in range(3))


@EITHER
def test_the_commit_record_lists_every_shard(folder, record):
    with CaptureWriter(folder, record, n_threads=1, overlap=True) as writer:
        writer.submit(2, arrays_of(record, 1), CaptureStatistics.empty(record), began=0.0)
    commit = read_commit(folder, read_capture(folder, "corpus"), 2)
    expected = {shard_key(spec.key, 2) for spec in block_arrays(record)}
    expected.add("captures/corpus/blocks/2.statistics.safetensors.zst")
    assert {f"captures/corpus/{key}" for key in commit.shards} == expected
    for key, (nbytes, _) in commit.shards.items():
        assert len(folder.read(f"captures/corpus/{key}")) == nbytes


@pytest.mark.parametrize("overlap", [False, True])
def test_a_block_is_released_when_it_is_written_and_not_before(folder, record, overlap):
    """What one block's encoders still read must not be what the next block is collected in."""
    released = []

    def release(block):
        key = shard_key(values_key("corpus", "mlp.post", 0), block)
        released.append((block, folder.exists(key), block in committed_blocks(folder, "corpus")))

    with CaptureWriter(folder, record, n_threads=1, overlap=overlap) as writer:
        assert writer.n_blocks_in_use == 1 + overlap
        for block in range(3):
            statistics = CaptureStatistics.empty(record)
            writer.submit(block, arrays_of(record, 0), statistics, 0.0, release=lambda block=block: release(block))
            assert [number for number, *_ in released] == list(range(block + 1 - overlap))
    assert released == [(block, True, False) for block in range(3)]


def check_only_the_first_is_submitted(folder, record, may_go_on, *, overlap):
    """Of three blocks, the second waits until the disk may go on; then all are committed."""
    submitted = []

    def submit_three(writer):
        for block in range(3):
            writer.submit(block, arrays_of(record, block), CaptureStatistics.empty(record), began=0.0)
            submitted.append(block)

    with CaptureWriter(folder, record, n_threads=2, overlap=overlap) as writer:
        filler = threading.Thread(target=submit_three, args=(writer,))
        filler.start()
        filler.join(0.3)
        assert submitted == [0]
        may_go_on.set()
        filler.join()
    assert committed_blocks(folder, "corpus") == [0, 1, 2]


def test_at_most_two_blocks_are_in_memory(folder, record, monkeypatch):
    """Who is faster waits: submitting a block returns only when the one before it is on disk."""
    may_write = threading.Event()
    write = MemoryStorage.write

    def slow_write(self, key, data):
        if "/c/0/" in key:
            may_write.wait()
        write(self, key, data)

    monkeypatch.setattr(MemoryStorage, "write", slow_write)

    check_only_the_first_is_submitted(folder, record, may_write, overlap=True)


@pytest.mark.parametrize(
    ("full_for", "record"),
    [
        ("values/mlp.post/1/c/0/2", False),
        ("blocks/2.statistics.safetensors.zst", False),
        ("blocks/2.json", False),
        ("bundles/2", True),
        ("blocks/2.json", True),
    ],
    indirect=["record"],
)
def test_a_full_disk_keeps_what_was_committed(folder, record, monkeypatch, full_for):
    write = MemoryStorage.write

    def full(self, key, data):
        if key.endswith(full_for):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, key, data)

    monkeypatch.setattr(MemoryStorage, "write", full)
    with pytest.raises(CaptureError) as caught:
        fill(folder, record, 4)
    assert str(caught.value) == (
        f"The disk of {folder} is full: block 2 of capture 'corpus' could not be written. Everything committed before it "
        "stays readable; make room, and run the same again, a capture with `resume=True`."
    )
    assert committed_blocks(folder, "corpus") == [0, 1]
    assert check_block(folder, read_capture(folder, "corpus"), 1).damage == []


def test_a_disk_that_is_full_for_what_follows_a_commit(folder, record):
    """The statistics are checkpointed now and then once a block is committed."""

    def checkpoint(block):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CaptureError, match="is full"):
        fill(folder, record, 2, on_commit=checkpoint)
    assert committed_blocks(folder, "corpus") == [0]


@EITHER
def test_an_interruption_commits_nothing_half_done(folder, record):
    def interrupt(block):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(folder, record, 3, on_commit=interrupt)
    assert committed_blocks(folder, "corpus") == [0]


@EITHER
@pytest.mark.parametrize("overlap", [False, True])
def test_what_is_on_disk_when_a_commit_record_is_written(tmp_path, record, overlap, recorded_disk):
    """In a power cut, a commit record may be there only with all that it vouches for, and the folders on the way to it."""
    folder = Folder(tmp_path / "store", read_only=False)
    create_capture(folder, record)
    with CaptureWriter(folder, record, n_threads=2, overlap=overlap) as writer:
        for block in range(3):
            answers = {block_answers_key("corpus", block): b"y"}
            writer.submit(block, arrays_of(record, block), CaptureStatistics.empty(record), 0.0, answers)
    records = [path for path in recorded_disk.renamed if path.parent.name == "blocks" and path.suffix == ".json"]
    assert [path.name for path in records] == ["0.json", "1.json", "2.json"]
    for path in records:
        safe = recorded_disk.safe_before(path)
        commit = read_commit(folder, read_capture(folder, "corpus"), int(path.stem))
        files, folders = set(commit.shards), {"values/mlp.post/0/c/0"}
        if record.bundled:
            files, folders = {f"bundles/{path.stem}"}, {"bundles"}
        assert {tmp_path / "store/captures/corpus" / key for key in files | folders} <= safe
        assert tmp_path / "store" in safe
    recorded_disk.check()


def test_a_block_is_released_before_the_disk_has_it(tmp_path, record, monkeypatch):
    """The next block is computed in its buffers meanwhile; `drain` waits."""
    folder, may_sync = Folder(tmp_path, read_only=False), threading.Event()
    create_capture(folder, record)
    fsync, released, told = os.fsync, [], []

    def slow_fsync(descriptor):
        may_sync.wait()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", slow_fsync)
    with CaptureWriter(folder, record, n_threads=1, overlap=False) as writer:
        writer.on_commit = told.append
        writer.submit(0, arrays_of(record, 0), CaptureStatistics.empty(record), 0.0, release=lambda: released.append(0))
        assert (released, told, committed_blocks(folder, "corpus")) == ([0], [], [])
        may_sync.set()
        writer.drain()
        assert (told, committed_blocks(folder, "corpus")) == ([0], [0])


def test_at_most_one_block_waits_for_the_disk(tmp_path, record, monkeypatch):
    folder, may_sync = Folder(tmp_path, read_only=False), threading.Event()
    create_capture(folder, record)
    fsync = os.fsync

    def slow_fsync(descriptor):
        may_sync.wait()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", slow_fsync)

    check_only_the_first_is_submitted(folder, record, may_sync, overlap=False)


@pytest.mark.parametrize(
    ("number", "reason", "remedy"),
    [(errno.ENOSPC, "is full", "make room"), (errno.EIO, "fails (Input/output error)", "check the disk")],
)
@pytest.mark.parametrize(
    ("failing", "record"),
    [("values/mlp.post/1/c/0/1", False), ("blocks", False), ("blocks/1.json", False), ("bundles/1", True)],
    indirect=["record"],
)
def test_a_disk_that_fails_to_sync(tmp_path, record, monkeypatch, failing, number, reason, remedy):
    """A failed sync is never tried again: the system may have dropped the bytes, and would say that all is well."""
    folder, fsync, began = Folder(tmp_path, read_only=False), os.fsync, []
    create_capture(folder, record)
    fill(folder, record, 1)

    def failing_fsync(descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        target = path.removesuffix(".partial").replace("/.", "/").rpartition(".")[0] if ".partial" in path else path
        if target.endswith(f"corpus/{failing}"):
            began.append(target)
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing_fsync)
    with pytest.raises(CaptureError) as caught:
        fill(folder, record, 3, first=1)
    assert str(caught.value) == (
        f"The disk of {folder} {reason}: block 1 of capture 'corpus' could not be written. Everything committed before it "
        f"stays readable; {remedy}, and run the same again, a capture with `resume=True`."
    )
    assert len(began) == 1
    assert committed_blocks(folder, "corpus") == [0]
    assert not list(tmp_path.rglob("*.partial"))


def test_the_statistics_of_layers_are_encoded_by_several_threads(folder, record, statistics_of):
    """And come out as those of a whole block do."""
    meeting = threading.Barrier(2, timeout=20)

    class Meeting(UserDict):
        def __getitem__(self, key):
            meeting.wait()
            return super().__getitem__(key)

    statistics = statistics_of(1)
    with CaptureWriter(folder, record, n_threads=2, overlap=False) as writer:
        together = dataclasses.replace(statistics, sites=Meeting(statistics.sites))
        writer.submit(0, arrays_of(record, 0), together, began=0.0)
    assert folder.read(block_statistics_key("corpus", 0)) == statistics.encode()


def test_statistics_are_added_up_while_the_next_block_is_filled(folder, record):
    """Once a block is committed, in a thread of its own, for which whoever submits the next block does not wait."""
    may_add, added, committed = threading.Event(), [], []

    class Running:
        def add(self, commit, statistics):
            committed.append(committed_blocks(folder, "corpus"))
            may_add.wait()
            added.append((commit, statistics.label_tokens[-1]))

    with CaptureWriter(folder, record, n_threads=1, overlap=False) as writer:
        writer.running = Running()
        for block in range(3):
            statistics = CaptureStatistics.empty(record)
            statistics.label_tokens[-1] = block
            writer.submit(block, arrays_of(record, block), statistics, began=0.0)
            if block == 1:
                assert added == []
                may_add.set()  # a third block would wait: at most two blocks' statistics are in memory
        writer.drain()
        assert added == [(read_commit(folder, read_capture(folder, "corpus"), block), block) for block in range(3)]
    assert [blocks[: block + 1] for block, blocks in enumerate(committed)] == [[0], [0, 1], [0, 1, 2]]


@pytest.mark.parametrize("n_blocks", [1, 3])
def test_what_fails_in_adding_up_stops_the_capture(folder, record, n_blocks):
    class Full:
        def add(self, commit, statistics):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill_blocks():
        with CaptureWriter(folder, record, n_threads=1, overlap=False) as writer:
            writer.running = Full()
            for block in range(n_blocks):
                writer.submit(block, arrays_of(record, block), CaptureStatistics.empty(record), began=0.0)

    with pytest.raises(CaptureError, match=rf"^The disk of {folder} is full: block 0 of capture 'corpus' "):
        fill_blocks()
    assert committed_blocks(folder, "corpus") == [0, 1][:n_blocks]


def test_without_sync_nothing_waits_for_the_disk(tmp_path, record, monkeypatch):
    def refuse(descriptor):
        raise AssertionError

    monkeypatch.setattr(os, "fsync", refuse)
    folder = Folder(tmp_path / "store", read_only=False, sync=False)
    create_capture(folder, record)
    fill(folder, record, 3)
    assert committed_blocks(folder, "corpus") == [0, 1, 2]
    assert all(check_block(folder, read_capture(folder, "corpus"), block).damage == [] for block in range(3))


def test_filling_a_block_again_changes_no_byte(somewhere, planting):
    planting(f"{somewhere}/a")
    planting(f"{somewhere}/b", blocks=(2, 0, 1))
    planting(f"{somewhere}/b", blocks=(1, 2, 0))
    once, again = Folder(f"{somewhere}/a"), Folder(f"{somewhere}/b")
    shards = [key for key, _ in once.sizes("captures") if "/c/0/" in key]
    assert len(shards) > 12
    for key in shards:
        assert once.read(key) == again.read(key), key


def test_damage_of_a_block_is_told(folder, record):
    with CaptureWriter(folder, record, n_threads=1, overlap=True) as writer:
        for block in range(3):
            writer.submit(block, arrays_of(record, 3), CaptureStatistics.empty(record), began=0.0)
    folder.delete(shard_key(gate_sign_key("corpus", 1), 0))
    key = "captures/corpus/blocks/1.statistics.safetensors.zst"
    folder.write(key, folder.read(key)[:-1] + b"?")
    key = shard_key(values_key("corpus", "mlp.post", 0), 2)
    folder.write(key, folder.read(key)[:-1])
    damage = [check_block(folder, read_capture(folder, "corpus"), block).damage for block in range(3)]
    assert damage[0] == [("gate_sign/1/c/0/0", "missing")]
    assert damage[1][0][0] == "blocks/1.statistics.safetensors.zst"
    assert damage[1][0][1].startswith("checksum ")
    assert damage[2] == [
        ("values/mlp.post/0/c/0/2", f"{len(folder.read(key))} bytes, expected {len(folder.read(key)) + 1}")
    ]


def test_a_commit_record_of_another_block_is_damage(folder, record):
    with CaptureWriter(folder, record, n_threads=1, overlap=True) as writer:
        writer.submit(0, arrays_of(record, 3), CaptureStatistics.empty(record), began=0.0)
    folder.write(commit_key("corpus", 1), folder.read(commit_key("corpus", 0)))
    with pytest.raises(FormatError, match=r"blocks/1\.json is damaged: its checksum does not match"):
        read_commit(folder, read_capture(folder, "corpus"), 1)


@pytest.mark.parametrize("precision", ["exact", "half", "int8", "sparse", "none"])
def test_every_precision_is_whole(somewhere, planting, precision):
    planting(somewhere, precision=precision)
    assert verify_capture(Store(somewhere).capture()) == []
