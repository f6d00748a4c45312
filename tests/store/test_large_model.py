"""The statistics of a 7B-sized model, 32 layers of 11,008 neurons, from blocks that are made up as they come."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from actstore.kernels.pack.api import Columns, pack
from actstore.store import layout
from actstore.store.capture.plan import PlannedWindow, PlanWriter
from actstore.store.capture.statistics.capture_statistics import CaptureStatistics
from actstore.store.capture.statistics.neuron_table import write_finished
from actstore.store.capture.statistics.running import RunningStatistics
from actstore.store.capture.writer import CaptureWriter, create_capture
from actstore.store.files.records import CaptureRecord, LayerRecord, ModelRecord, PlanRecord
from actstore.store.model import root
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder

LAYERS, NEURONS, SLOTS = 32, 11_008, 256


def fill(path: Path, n_blocks: int) -> None:
    """A finished capture of statistics only; block b of layer l is a rotation of one random batch."""
    folder = Folder(path, read_only=False)
    layers = tuple(LayerRecord(i, NEURONS, f"layers.{i}", True, i, "decoder", None) for i in range(LAYERS))
    root.write_root(
        folder, ModelRecord("synthetic", "llama", "causal", 4096, 32_000, "float16", "none", ("mlp.post",), layers, {})
    )
    plan = PlanWriter(folder, "corpus", SLOTS, {})
    plan.add_document({"source": "synthetic", "sha256": "", "n_tokens": n_blocks * SLOTS})
    everywhere, text = np.arange(SLOTS, dtype=np.int32), np.full(SLOTS, layout.TEXT, np.uint8)
    for _ in range(n_blocks):
        plan.add_block([[PlannedWindow(0, everywhere, everywhere, text, ())]])
    record = CaptureRecord(
        "corpus", root.now(), root.written_by(), "none", "float16", "none",
        {"mlp.post": {str(i): NEURONS for i in range(LAYERS)}}, (), None, 10, {},
        PlanRecord(
            plan.close(()), "synthetic", "", "", {}, (), (), 1, plan.n_windows, plan.n_tokens, SLOTS, n_blocks
        ),
    )  # fmt: skip
    record = create_capture(folder, record)
    batch = np.random.default_rng(0).standard_normal((SLOTS, NEURONS), np.float32).astype(np.float16)
    with CaptureWriter(folder, record, n_threads=1, overlap=False) as writer:
        for block in range(n_blocks):
            columns = Columns(everywhere, everywhere, [0, SLOTS], [[0]], np.ones(SLOTS), block * SLOTS)  # type: ignore[arg-type]
            statistics = CaptureStatistics.empty(record)
            statistics.label_tokens += SLOTS
            for layer in range(LAYERS):
                pack(np.roll(batch, layer + block, axis=0), columns, None, statistics.sites["mlp.post", layer])
            writer.submit(block, {}, statistics, 0.0)
    running = RunningStatistics(folder, record)
    running.advance()
    write_finished(folder, record, running.total)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    peaks = []
    for n_blocks in (2, 8):
        command = [sys.executable, __file__, str(tmp_path / str(n_blocks)), str(n_blocks)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    assert peaks[1] < 1.05 * peaks[0], peaks
    table = Store(Folder(tmp_path / "8")).capture("corpus").neurons()
    assert table.num_rows == LAYERS * NEURONS
    assert set(table["count"].to_pylist()) == {8 * SLOTS}
    batch = np.random.default_rng(0).standard_normal((SLOTS, NEURONS), np.float32).astype(np.float16)
    expected = np.tile(batch.max(0).astype(np.float32), LAYERS)
    np.testing.assert_array_equal(table["top_value"].to_numpy(), expected)
    np.testing.assert_allclose(table["mean"].to_numpy(), np.tile(batch.mean(0, dtype=np.float64), LAYERS), rtol=1e-9)


if __name__ == "__main__":
    fill(Path(sys.argv[1]), int(sys.argv[2]))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
