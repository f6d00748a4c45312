"""Metadata that say anything at all, their checksums made anew: readers, `info`, `verify`, `stats` and `sql` answer or refuse.

No traceback, no hang, no more memory than a small store takes, and no other value in silence. `metadata_faults` damages and
asks in a process of its own, whose memory is limited: what a size in a record makes a library ask for is then an error, and
not the end of the tests.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numcodecs import Zstd

from actstore.store.capture.commits import read_commit
from actstore.store.capture.statistics.capture_statistics import read_block_statistics
from actstore.store.errors import FormatError
from actstore.store.files.parquet import read_table, write_table
from actstore.store.files.records import with_checksum
from actstore.store.files.shards import checksum
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder
from actstore.store.verify import verify_capture

if TYPE_CHECKING:
    from collections.abc import Callable

FAULTS = Path(__file__).with_name("metadata_faults.py")
SEED = 20260101


@pytest.fixture
def a_copy(whole_store: Path, tmp_path: Path) -> Path:
    """A copy of the store of every kind."""
    return Path(shutil.copytree(whole_store, tmp_path / "store"))


def run_faults(store: Path, first: int, n: int) -> list[dict[str, Any]]:
    """What went wrong with mutations `first` to `first + n - 1`."""
    done = subprocess.run(
        [sys.executable, str(FAULTS), str(store), str(SEED), str(first), str(n)],
        capture_output=True, text=True, check=False, cwd=store.parent,
    )  # fmt: skip
    # Where a library ends the process, the last line says at which mutation.
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
    answer: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_metadata_that_say_anything(a_copy: Path) -> None:
    assert run_faults(a_copy, 0, 15) == []


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 2000, 500))
def test_metadata_that_say_anything_at_length(a_copy: Path, first: int) -> None:
    assert run_faults(a_copy, first, 500) == []


def reseal(store: Path, capture: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a capture's record, and give it the checksum of what it says now."""
    path = store / f"captures/{capture}/zarr.json"
    group = json.loads(path.read_text())
    record = group["attributes"]["actstore_capture"]
    change(record)
    group["attributes"]["actstore_capture"] = with_checksum(record)
    path.write_text(json.dumps(group))


def replace_block_file(store: Path, name: str, data: bytes) -> None:
    """A file of the first block of the unfinished capture, with the commit record that belongs to it."""
    folder = Folder(store, read_only=False)
    record = read_commit(folder, Store(store).capture("unfinished").record, 0)
    record.shards[name] = (len(data), checksum(data))
    folder.write(f"captures/unfinished/{name}", data)
    folder.write_json("captures/unfinished/blocks/0.json", record.with_checksum().to_json())


def test_a_billion_blocks_are_refused_before_they_are_counted(cli: Callable[..., Any], a_copy: Path) -> None:
    reseal(a_copy, "corpus", lambda record: record["plan"].update(n_blocks=10**9))
    for command, status in {"info": 0, "verify": 1, "stats": 2}.items():  # the first two go on with what else there is
        done = cli(command, a_copy)
        assert done.status == status
        assert "n_blocks should lie between 1 and 6, found 1000000000" in done.out + done.err


def test_a_billion_blocks_with_as_many_windows_are_damage(a_copy: Path) -> None:
    many = {"n_blocks": 10**9, "n_windows": 10**9}
    reseal(a_copy, "corpus", lambda record: record["plan"].update(many))
    found = verify_capture(Store(a_copy).capture("corpus"))
    assert any("it has 6 rows, expected 1000000000" in damage.what for damage in found)
    missing = [damage for damage in found if "missing" in damage.what and damage.key.startswith("blocks/")]
    assert 0 < len(missing) <= 1001
    assert "999,999,997 in all" in missing[-1].what


def test_a_bomb_is_not_decompressed(a_copy: Path) -> None:
    bomb = bytes(Zstd(level=1).encode(bytes(1 << 28)))
    assert len(bomb) < 100_000
    replace_block_file(a_copy, "blocks/0.statistics.safetensors.zst", bomb)
    capture = Store(a_copy).capture("unfinished")
    with pytest.raises(
        FormatError, match=r"says that it decompresses to 268,435,456 bytes, expected [\d,]{6,9} at most"
    ):
        read_block_statistics(capture.folder, capture.record, 0)
    assert [damage.key for damage in verify_capture(capture)] == ["blocks/0.statistics.safetensors.zst"]


def test_rows_that_take_no_bytes_are_not_read(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "store", read_only=False)
    write_table(folder, "a.parquet", pa.table({"x": pa.array([7] * 2_000_000, pa.int32())}))
    assert pq.read_metadata(tmp_path / "store/a.parquet").num_rows == 2_000_000
    with pytest.raises(FormatError, match=r"a\.parquet is damaged: [\d,]+ bytes are said to hold 2,000,000 rows"):
        read_table(folder, "a.parquet")


def test_windows_that_point_elsewhere_are_refused(a_copy: Path) -> None:
    folder = Folder(a_copy, read_only=False)
    key = "captures/corpus/windows.parquet"
    whole = read_table(folder, key)
    for column, wrong in {
        "block": 2**30,
        "n_slots": -4,
        "n_inputs": -1,
        "document": 4,
        "slot_start": 5,
        "labels": [9],
    }.items():
        values = whole[column].to_pylist()
        values[-1] = wrong
        at = whole.column_names.index(column)
        write_table(
            folder, key, whole.set_column(at, whole.schema.field(at), pa.array(values, whole.schema.field(at).type))
        )
        with pytest.raises(FormatError, match=r"windows\.parquet is damaged: "):
            _ = Store(a_copy).capture("corpus").used_slots


def test_a_capture_under_another_name_is_refused(a_copy: Path) -> None:
    reseal(a_copy, "unfinished", lambda record: record.update(name="corpus"))
    with pytest.raises(
        FormatError, match="is the record of a capture 'corpus', which lies in the folder of 'unfinished'"
    ):
        Store(a_copy).capture("unfinished")


def test_a_header_of_terabytes_is_refused(a_copy: Path) -> None:
    from actstore.store.model.weights import count_rows, read_weights

    path = a_copy / "weights/unembedding.safetensors"
    path.write_bytes((1 << 42).to_bytes(8, "little") + path.read_bytes()[8:])
    for read in (
        lambda: count_rows(Folder(a_copy), "unembedding", "weight"),
        lambda: read_weights(Folder(a_copy), "unembedding"),
    ):
        with pytest.raises(
            FormatError, match=r"its header should have at most [\d,]+ bytes, and says 4,398,046,511,112"
        ):
            read()
