"""Eight processes read a capture while it is filled: none fails, and every number any of them reads is right."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from reading_loop import expected

from actstore.store.capture.statistics.neuron_table import write_finished
from actstore.store.capture.statistics.running import RunningStatistics
from actstore.store.capture.writer import CaptureWriter
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from types import ModuleType

PROGRAM = Path(__file__).parents[1] / "support" / "reading_loop.py"
N_READERS = 8


def fill(planting: ModuleType, path: Path, n_blocks: int) -> None:
    """Plan and fill a capture, block by block in an order of its own, then finish it, as the engine does."""
    folder = Folder(path, read_only=False)
    what = planting.Planted(lengths=(32, 32) * n_blocks)
    record, plan = planting.begin(folder, "corpus", what)
    running = RunningStatistics(folder, record)
    with CaptureWriter(folder, record, n_threads=1, overlap=True) as writer:
        writer.running = running
        for block in np.random.default_rng(0).permutation(n_blocks).tolist():
            slots = np.arange(64) + 64 * block
            values = {
                layer: expected(layer, np.arange(width)[:, None], slots[None])
                for layer, width in enumerate(planting.WIDTHS)
            }
            arrays, statistics = planting.fill(record, plan, block, values)
            writer.submit(block, arrays, statistics, began=0.0)
    running.advance()
    write_finished(folder, record, running.total)


def read_beside(planting: ModuleType, tmp_path: Path, n_blocks: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of readings of every reader."""
    monkeypatch.setattr("actstore.store.capture.statistics.running.CHECKPOINT_BLOCKS", 8)
    end = tmp_path / "end"
    command = [sys.executable, str(PROGRAM), str(tmp_path / "store"), str(N_READERS), str(end)]
    # Not in the checkout, where the folder kernels/ would be a top-level module.
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as readers:
        try:
            fill(planting, tmp_path / "store", n_blocks)
        finally:
            end.touch()
        out, err = readers.communicate()
    assert readers.returncode == 0, err
    found = re.findall(r"reader \d: (\d+) readings, \d+ different, (\d+) blocks", out)
    assert [blocks for _, blocks in found] == [str(n_blocks)] * N_READERS, out + err
    return [int(n) for n, _ in found]


def test_eight_readers_beside_a_writer(planting: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_beside(planting, tmp_path, 24, monkeypatch)


@pytest.mark.slow
def test_eight_readers_beside_a_writer_for_long(
    planting: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert min(read_beside(planting, tmp_path, 400, monkeypatch)) > 3
