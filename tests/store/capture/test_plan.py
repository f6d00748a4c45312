import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import planted_stores
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from actstore.store.capture.plan import Plan, PlannedWindow, PlanWriter
from actstore.store.capture.plan_files import read_plan_files
from actstore.store.errors import FormatError, NotFoundError
from actstore.store.files.records import PlanRecord
from actstore.store.layout import PADDING, SPECIAL
from actstore.store.storage.folder import Folder


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path, read_only=False)


def some(length, kept):
    """A window's kept positions: all but some in the middle."""
    return np.delete(np.arange(length, dtype=np.int32), slice(3, 3 + length - kept))


def test_round_trip(folder, planned):
    record, windows = planned(folder, lengths=(20, 30, 40, 9, 7), kept=lambda n: some(n, n - 2))
    plan = Plan(folder, "corpus", record)
    assert (record.n_blocks, record.n_windows, record.n_tokens) == (2, 5, 106 - 10)
    assert plan.fingerprint() == record.fingerprint
    done = 0
    for block in range(record.n_blocks):
        here = plan.block(block)
        n = len(here.windows["window"])
        mine = windows[done : done + n]
        assert here.windows["window"].tolist() == list(range(done, done + n))
        assert here.windows["document"].tolist() == [w.document for w in mine]
        assert here.labels.tolist() == [list(w.labels) for w in mine]
        np.testing.assert_array_equal(here.inputs, np.concatenate([w.ids for w in mine]))
        np.testing.assert_array_equal(here.position, np.concatenate([w.kept for w in mine]))
        np.testing.assert_array_equal(here.modality, np.concatenate([w.modality for w in mine]))
        assert here.batches() == [slice(0, 1), slice(1, n)]
        done += n
    assert done == len(windows)


def test_every_slot_is_a_token_or_padding(folder, planned):
    record, windows = planned(folder, lengths=(20, 30, 40, 9, 7))
    plan = Plan(folder, "corpus", record)
    table = plan.table("windows").to_pylist()
    ids, position, window = (plan.array(f"tokens/{name}") for name in ("ids", "position", "window"))
    modality, inputs = plan.array("tokens/modality"), plan.array("inputs/ids")
    assert len(ids) == record.n_blocks * record.block_slots
    belongs = np.full(len(ids), -1)
    for row, planned_window in zip(table, windows, strict=True):
        slots = slice(row["slot_start"], row["slot_start"] + row["n_slots"])
        assert (belongs[slots] == -1).all()
        belongs[slots] = row["window"]
        assert row["slot_start"] // record.block_slots == (slots.stop - 1) // record.block_slots == row["block"]
        np.testing.assert_array_equal(ids[slots], planned_window.ids[planned_window.kept])
        np.testing.assert_array_equal(position[slots], planned_window.kept)
        read = inputs[row["input_start"] : row["input_start"] + row["n_inputs"]]
        np.testing.assert_array_equal(read, planned_window.ids)
    np.testing.assert_array_equal(belongs, window)
    np.testing.assert_array_equal(belongs == -1, modality == PADDING)
    np.testing.assert_array_equal(belongs == -1, ids == -1)
    assert (modality[[row["slot_start"] for row in table]] == SPECIAL).all()


def test_the_same_plan_has_the_same_fingerprint(tmp_path, planned):
    first, second = (planned(Folder(tmp_path / name, read_only=False))[0] for name in "ab")
    assert first == second


def test_another_plan_has_another_fingerprint(tmp_path, planned):
    whats = [{}, {"seed": 1}, {"lengths": (20, 30)}, {"special_first": False}, {"kept": lambda n: some(n, n - 1)}]
    records = [planned(Folder(tmp_path / str(i), read_only=False), **what)[0] for i, what in enumerate(whats)]
    assert len({record.fingerprint for record in records}) == len(whats)


ARRAYS = ["inputs/ids", "tokens/ids", "tokens/position", "tokens/window", "tokens/modality"]


def without_checksums(folder, array):
    """The array as earlier versions wrote it."""
    key = f"captures/corpus/{array}/zarr.json"
    metadata = folder.read_json(key)
    metadata["attributes"] = {}
    folder.write_json(key, metadata)


@pytest.mark.parametrize("array", ARRAYS)
def test_the_fingerprint_covers_every_array(folder, planned, array):
    record, _ = planned(folder)
    without_checksums(folder, array)
    stored = zarr.open_array(store=folder.zarr, path=f"captures/corpus/{array}", mode="r+")
    for at in (0, 5, stored.shape[0] - 1):
        original = stored[at]
        stored[at] = original + 1
        assert Plan(folder, "corpus", record).fingerprint() != record.fingerprint, f"element {at}"
        stored[at] = original
    assert Plan(folder, "corpus", record).fingerprint() == record.fingerprint


@pytest.mark.parametrize("has_checksums", [True, False])
@pytest.mark.parametrize("array", ARRAYS)
def test_a_missing_chunk_is_an_error(folder, planned, array, has_checksums):
    """And never the fill value, also where an earlier version wrote no checksums."""
    record, _ = planned(folder)
    if not has_checksums:
        without_checksums(folder, array)
    folder.delete(f"captures/corpus/{array}/c/0")
    for selection in (slice(None), slice(2, 5), slice(3, None), ...):
        with pytest.raises(FormatError, match=rf"captures/corpus/{array} is damaged: chunk 0 is missing"):
            Plan(folder, "corpus", record).array(array, selection)


def test_a_chunk_of_the_fill_value_alone_may_be_left_out(folder):
    """The ids of a model that reads pixels are all -1, and Zarr wrote no chunk of them, nor a checksum in earlier versions."""
    writer = PlanWriter(folder, "corpus", 64, {})
    writer.add_document({"source": "", "sha256": "", "n_tokens": 0})
    every = np.arange(60, dtype=np.int32)
    writer.add_block([[PlannedWindow(0, np.full(60, -1, np.int32), every, np.ones(60, np.uint8), ())]])
    fingerprint = writer.close(())
    record = PlanRecord(fingerprint, "", "", "", {}, (), (), 1, 1, 60, 64, 1)
    assert not folder.exists("captures/corpus/inputs/ids/c/0")
    assert set(Plan(folder, "corpus", record).array("inputs/ids").tolist()) == {-1}
    without_checksums(folder, "inputs/ids")
    without_checksums(folder, "tokens/ids")
    assert set(Plan(folder, "corpus", record).array("inputs/ids").tolist()) == {-1}


@pytest.mark.parametrize("array", ARRAYS)
def test_a_plan_array_of_another_capture_is_an_error(tmp_path, planned, array):
    """Whole and with its own checksums, it is not the one that the capture's record lists."""
    folder, other = (Folder(tmp_path / name, read_only=False) for name in "ab")
    record, _ = planned(folder)
    planned(other, seed=1, lengths=(20, 30, 40, 9, 8))
    files = plan_files(folder, record)
    for name in ("zarr.json", "c/0"):
        key = f"captures/corpus/{array}/{name}"
        folder.write(key, other.read(key))
    with pytest.raises(FormatError, match="its metadata are not those that were written there"):
        Plan(folder, "corpus", record, files).array(array)


def plan_files(folder, record):
    return read_plan_files(folder, planted_stores.capture_record("corpus", record, planted_stores.Planted()))


@pytest.mark.parametrize("table", ["windows", "documents"])
def test_a_table_of_another_capture_is_an_error(tmp_path, planned, table):
    folder, other = (Folder(tmp_path / name, read_only=False) for name in "ab")
    record, _ = planned(folder, lengths=(20, 30, 40, 9, 7))
    planned(other, lengths=(20, 30, 40, 7, 9))
    files = plan_files(folder, record)
    assert Plan(folder, "corpus", record, files).table(table).num_rows > 0
    if table == "documents":  # of which both have the same
        rewrite(other, table, lambda row: row.update(source="elsewhere"))
    folder.write(f"captures/corpus/{table}.parquet", other.read(f"captures/corpus/{table}.parquet"))
    with pytest.raises(FormatError, match=rf"{table}.parquet is damaged: checksum mismatch"):
        Plan(folder, "corpus", record, files).table(table)


def test_a_file_of_the_plan_that_the_record_does_not_list_is_an_error(folder, planned):
    record, _ = planned(folder)
    files = plan_files(folder, record)
    assert set(files) == {*ARRAYS, "windows.parquet", "documents.parquet"}
    del files["tokens/ids"]
    with pytest.raises(FormatError, match="does not list tokens/ids"):
        Plan(folder, "corpus", record, files).array("tokens/ids")


def rewrite(folder, table, change):
    """Change a row of a table without changing its row groups."""
    key = f"captures/corpus/{table}.parquet"
    file = pq.ParquetFile(pa.BufferReader(folder.read(key)))
    with folder.writer(key) as target, pq.ParquetWriter(target, file.schema_arrow) as writer:
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group).to_pylist()
            change(rows[0])
            writer.write_table(pa.Table.from_pylist(rows, schema=file.schema_arrow))


@pytest.mark.parametrize(
    "column", ["window", "document", "block", "batch", "input_start", "n_inputs", "slot_start", "n_slots", "labels"]
)
def test_the_fingerprint_covers_the_windows_table(folder, planned, column):
    record, _ = planned(folder)
    rewrite(folder, "windows", lambda row: row.update({column: [1] if column == "labels" else row[column] + 1}))
    with suppress(FormatError):  # of what cannot be where the windows lie
        assert Plan(folder, "corpus", record).fingerprint() != record.fingerprint


@pytest.mark.parametrize("column", ["document", "source", "sha256", "n_tokens", "language"])
def test_the_fingerprint_covers_the_documents_table(folder, planned, column):
    record, _ = planned(folder)
    rewrite(folder, "documents", lambda row: row.update({column: 7 if isinstance(row[column], int) else "7"}))
    assert Plan(folder, "corpus", record).fingerprint() != record.fingerprint


def test_the_fingerprint_covers_settings_and_labels(folder, planned):
    record, _ = planned(folder)
    changed = json.loads(json.dumps(record.to_json()))
    changed["settings"]["block_slots"] = 128
    assert Plan(folder, "corpus", type(record).from_json(changed, "")).fingerprint() != record.fingerprint
    changed = json.loads(json.dumps(record.to_json()))
    changed["labels"][0][1] = "de"
    assert Plan(folder, "corpus", type(record).from_json(changed, "")).fingerprint() != record.fingerprint


def test_a_block_is_a_row_group(folder, planned):
    """So that a block's windows are read without the whole table."""
    record, _ = planned(folder)
    file = pq.ParquetFile(pa.BufferReader(folder.read("captures/corpus/windows.parquet")))
    assert file.num_row_groups == record.n_blocks
    for group in range(record.n_blocks):
        assert set(file.read_row_group(group)["block"].to_pylist()) == {group}


def test_more_documents_than_a_row_group(folder):
    """Documents are written in groups of 4,096; windows may come long after."""
    writer = PlanWriter(folder, "corpus", 64, {})
    numbers = [writer.add_document({"source": f"d{i}", "sha256": "", "n_tokens": i}) for i in range(5000)]
    ids = np.arange(3, dtype=np.int32)
    writer.add_block([[PlannedWindow(4999, ids, ids, np.ones(3, np.uint8), ())]])
    writer.close(())
    assert numbers == list(range(5000))
    documents = pq.read_table(pa.BufferReader(folder.read("captures/corpus/documents.parquet")))
    assert documents["document"].to_pylist() == numbers
    assert documents["source"][4999].as_py() == "d4999"


def test_arrays_longer_than_their_chunk(folder, monkeypatch):
    monkeypatch.setattr("actstore.store.capture.plan.CHUNK", 100)
    rng = np.random.default_rng(0)
    writer = PlanWriter(folder, "corpus", 64, {})
    writer.add_document({"source": "", "sha256": "", "n_tokens": 0})
    windows = [rng.integers(0, 99, 60).astype(np.int32) for _ in range(9)]
    for ids in windows:
        writer.add_block([[PlannedWindow(0, ids, np.arange(60, dtype=np.int32), np.ones(60, np.uint8), ())]])
    writer.close(())
    inputs = zarr.open_array(str(folder.local_path()), path="captures/corpus/inputs/ids", mode="r")
    np.testing.assert_array_equal(inputs[...], np.concatenate(windows))
    record = PlanRecord("", "", "", "", {}, (), (), 1, 9, 540, 64, 9)
    plan, expected = Plan(folder, "corpus", record), np.concatenate(windows)
    for start, stop in [
        (0, 540),
        (99, 101),
        (100, 200),
        (150, 160),
        (160, 170),
        (530, 540),
        (7, 7),
        (300, 200),
        (-9, None),
    ]:
        np.testing.assert_array_equal(plan.array("inputs/ids", slice(start, stop)), expected[start:stop])
    for chunk in (2, 5):
        data = folder.read(f"captures/corpus/inputs/ids/c/{chunk}")
        folder.delete(f"captures/corpus/inputs/ids/c/{chunk}")
        plan = Plan(folder, "corpus", record)
        with pytest.raises(FormatError, match=f"chunk {chunk} is missing"):
            plan.array("inputs/ids", slice(chunk * 100 + 30, chunk * 100 + 31))
        np.testing.assert_array_equal(plan.array("inputs/ids", slice(0, 200)), expected[:200])
        folder.write(f"captures/corpus/inputs/ids/c/{chunk}", data)


def test_an_abandoned_plan_leaves_no_table(folder):
    writer = PlanWriter(folder, "corpus", 64, {})
    writer.add_document({"source": "", "sha256": "", "n_tokens": 0})
    writer.abandon()
    assert not [key for key, _ in folder.sizes() if "parquet" in key]


@pytest.mark.parametrize("table", ["windows", "documents"])
def test_a_damaged_table_is_named(folder, planned, table):
    record, _ = planned(folder)
    key = f"captures/corpus/{table}.parquet"
    whole = folder.read(key)
    for data in (b"", b"PAR1", whole[:-9], whole[9:], whole[:4] + bytes(len(whole) - 12) + whole[-8:]):
        folder.write(key, data)
        with pytest.raises(FormatError, match=rf"captures/corpus/{table}\.parquet is damaged: "):
            Plan(folder, "corpus", record).table(table)


def test_a_table_of_other_columns_is_damaged(folder, planned):
    record, _ = planned(folder)
    with folder.writer("captures/corpus/windows.parquet") as file:
        pq.write_table(pa.table({"window": [1]}), file)
    with pytest.raises(FormatError, match=r"windows\.parquet is damaged"):
        Plan(folder, "corpus", record).block(0)


def test_what_is_missing_is_named(folder, planned):
    record, _ = planned(folder)
    folder.delete("captures/corpus/tokens/ids")
    folder.delete("captures/corpus/windows.parquet")
    with pytest.raises(NotFoundError, match="has no array captures/corpus/tokens/ids"):
        Plan(folder, "corpus", record).array("tokens/ids")
    with pytest.raises(NotFoundError, match=r"has no captures/corpus/windows\.parquet"):
        Plan(folder, "corpus", record).block(0)


@pytest.mark.parametrize("location", ["disk", "memory"])
def test_one_plan_serves_many_threads(tmp_path, planned, location):
    """pyarrow's ParquetFile does not: threads that shared one crashed the process, or found the table damaged."""
    where = tmp_path if location == "disk" else f"memory://{tmp_path.name}"
    record, _ = planned(Folder(where, read_only=False), lengths=(20, 30, 40, 9, 7) * 40)
    plan = Plan(Folder(where), "corpus", record)
    expected = plan.table("windows"), plan.table("documents")
    plan = Plan(Folder(where), "corpus", record)
    start = threading.Barrier(8)

    def read(thread: int) -> bool:
        start.wait()
        same = True
        for turn in range(40):
            same &= plan.table("windows").equals(expected[0]) and plan.table("documents").equals(expected[1])
            block = (thread + turn) % record.n_blocks
            same &= plan.block(block).block == block
        return same

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))
