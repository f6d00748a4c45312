"""Shards as files of the local disk: few of them open at once, and some of them cut short."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from actstore.store.errors import FormatError
from actstore.store.files import arrays
from actstore.store.files.arrays import BlockArray, BlockArraySpec, create_block_array
from actstore.store.files.shards import encode_shard
from actstore.store.layout import shard_grid, shard_key
from actstore.store.storage.folder import Folder
from actstore.store.storage.pieces import FileSource

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

ROWS, COLUMNS = 40, 64


def _values(block: int) -> NDArray[np.float32]:
    return (np.arange(ROWS * COLUMNS, dtype=np.float32) + block).reshape(ROWS, COLUMNS)


def _write(folder: Folder, key: str, n_blocks: int) -> None:
    create_block_array(folder, BlockArraySpec(key, ROWS, COLUMNS, np.dtype(np.float32), np.nan, "token"), n_blocks)
    for block in range(n_blocks):
        folder.write(shard_key(key, block), encode_shard(_values(block), shard_grid(ROWS, COLUMNS)))


READ = """
import sys
if len(sys.argv) > 2:
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
from actstore.store.files.arrays import BlockArray
from actstore.store.storage.folder import Folder

layers = [BlockArray(Folder(sys.argv[1]), f"layer-{i}") for i in range(2)]
print(sum(float(layer.shard(block).row(neuron)[0]) for neuron in (0, 1) for layer in layers for block in range(150)))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
@pytest.mark.parametrize("limit", [256, 64])
def test_more_shards_are_read_than_files_may_be_open(tmp_path: Path, limit: int) -> None:
    folder = Folder(tmp_path / "arrays", read_only=False)
    _write(folder, "layer-0", 150)
    _write(folder, "layer-1", 150)
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / "arrays"), str(limit)], capture_output=True, text=True,
        cwd=tmp_path, check=False,
    )  # fmt: skip
    expected = 2 * sum(_values(block)[:2, 0].sum() for block in range(150))
    assert (done.returncode, done.stdout) == (0, f"{float(expected)}\n"), done.stderr


def test_where_no_file_can_be_opened_any_more_open_shards_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the rest of a program has most of the files: the limit on shards alone would not help there."""
    _write(Folder(tmp_path, read_only=False), "values", 6)
    array, opened = BlockArray(Folder(tmp_path), "values"), FileSource.__init__

    def refusing(self: FileSource, path: Path) -> None:
        if len(array._open) >= 3:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))
        opened(self, path)

    monkeypatch.setattr(FileSource, "__init__", refusing)
    for block in range(6):
        np.testing.assert_array_equal(array.shard(block).row(2), _values(block)[2])
    assert len(array._open) <= 3


def test_as_many_shards_stay_open_as_the_limit_has_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(Folder(tmp_path, read_only=False), "values", 12)
    monkeypatch.setattr(arrays, "_affordable_shards", lambda: 4)
    array = BlockArray(Folder(tmp_path), "values")
    for block in range(12):
        array.shard(block)
    assert sorted(array._open) == [8, 9, 10, 11]


@pytest.mark.parametrize("read", [lambda shard: shard.row(39), lambda shard: shard.rows()], ids=["row", "rows"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_shard_that_is_cut_short_under_its_reader_is_damaged(
    tmp_path: Path, read: Callable[[Any], object], share: float
) -> None:
    """A mapping would end the process with SIGBUS; whoever runs this test would not see it fail."""
    _write(Folder(tmp_path, read_only=False), "values", 1)
    shard = BlockArray(Folder(tmp_path), "values").shard(0)
    path = tmp_path / shard_key("values", 0)
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.raises(FormatError, match=r"is damaged: it ends at byte \d+\. Run `store\.verify"):
        read(shard)


def test_an_error_of_reading_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(tmp_path, read_only=False)
    folder.write("a", b"0123456789")
    source = folder.source("a")
    assert bytes(source.read(2, 5)) == b"234"

    def broken(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(OSError, match="Input/output error") as failed:
        source.read(2, 5)
    assert failed.value.filename == str(tmp_path / "a")


def test_files_are_closed_with_what_reads_them(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("only Linux lists them")
    _write(Folder(tmp_path, read_only=False), "values", 5)
    gc.collect()  # shards of other tests, held by the errors that these expected
    before = len(os.listdir("/proc/self/fd"))
    array = BlockArray(Folder(tmp_path), "values")
    for block in range(5):
        array.shard(block)
    assert len(os.listdir("/proc/self/fd")) == before + 5
    del array
    assert len(os.listdir("/proc/self/fd")) == before
