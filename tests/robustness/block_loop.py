"""A process that writes and reads block after block, and prints now and then what it holds: anonymous memory, open files.

Run as a program: STORE, how many blocks. Prints a JSON list of [phase, block, bytes, descriptors].
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from actstore.store import arrays, root
from actstore.store.folder import Folder
from actstore.store.plans import Plan
from actstore.store.reader import Store
from actstore.store.statistics import RunningStatistics, write_finished
from actstore.store.writer import CaptureWriter, create_capture

MAPPED = 32
"""Shards that stay mapped here, fewer than a few blocks have."""


def held() -> tuple[int, int]:
    """Bytes of anonymous memory and open file descriptors of this process."""
    gc.collect()
    (kilobytes,) = re.findall(r"^RssAnon:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(kilobytes) * 1024, len(os.listdir("/proc/self/fd"))


def load_planting() -> Any:
    path = Path(__file__).parents[1] / "store" / "conftest.py"
    spec = importlib.util.spec_from_file_location("planted_for_blocks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def main(path: str, n_blocks: int) -> None:
    planting, marks = load_planting(), []
    gc.freeze()  # the libraries' own objects, which would be looked through again and again
    folder = Folder(path, read_only=False)
    what = planting.Planted(lengths=(32, 32) * n_blocks)
    root.write_neurons(folder, planting.model_record(), None)
    root.write_root(folder, planting.model_record())
    plan_record, _ = planting.plan_windows(folder, "corpus", what)
    record = planting.capture_record("corpus", plan_record, what)
    create_capture(folder, record)
    plan = Plan(folder, "corpus", plan_record)
    running = RunningStatistics(folder, record)
    values = {i: np.ones((width, 64), np.float32) for i, width in enumerate(planting.WIDTHS)}
    with CaptureWriter(folder, record, n_threads=2, overlap=True) as writer:
        writer.on_commit = lambda block: running.advance(checkpoint=True)
        for block in range(n_blocks):
            filled, statistics = planting.fill(record, plan, block, values)
            writer.submit(block, filled, statistics.encode, began=0.0)
            if block % 10 == 9:
                marks.append(("write", block, *held()))
    write_finished(folder, record, running.total)
    arrays.MAPPED_SHARDS = MAPPED  # type: ignore[misc]
    store = Store(path)
    capture = store.capture()
    for block in range(n_blocks):
        for layer in (0, 1):
            assert capture.block_values(layer, block).shape[1] == 64
            assert capture.gate_signs(layer, block).any() in (True, False)
        fresh = Store(path).capture()
        assert fresh.block_row(1, 7, block)[5] == 1
        if block % 10 == 9:
            marks.append(("read", block, *held()))
    for turn in range(8):
        assert len(store.neuron(1, turn).activations()) == 64 * n_blocks
        marks.append(("whole", turn, *held()))
    gc.unfreeze()
    print(json.dumps(marks))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
