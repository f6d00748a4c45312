"""A process that writes and reads block after block, and prints now and then what it holds: anonymous memory, open files.

Run as a program: STORE, how many blocks. Prints a JSON list of [phase, block, bytes, descriptors].
"""

from __future__ import annotations

import gc
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import planted_stores

from actstore.store.capture.statistics.neuron_table import write_finished
from actstore.store.capture.statistics.running import RunningStatistics
from actstore.store.capture.writer import CaptureWriter
from actstore.store.files import arrays
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder

OPENED = 32
"""Shards that stay open here, fewer than a few blocks have."""


def held() -> tuple[int, int]:
    """Bytes of anonymous memory and open file descriptors of this process."""
    gc.collect()
    (kilobytes,) = re.findall(r"^RssAnon:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(kilobytes) * 1024, len(os.listdir("/proc/self/fd"))


def main(path: str, n_blocks: int) -> None:
    marks = []
    gc.freeze()  # the libraries' own objects, which would be looked through again and again
    folder = Folder(path, read_only=False)
    what = planted_stores.Planted(lengths=(32, 32) * n_blocks)
    record, plan = planted_stores.begin(folder, "corpus", what)
    running = RunningStatistics(folder, record)
    values = {i: np.ones((width, 64), np.float32) for i, width in enumerate(planted_stores.WIDTHS)}
    with CaptureWriter(folder, record, n_threads=2, overlap=True) as writer:
        writer.running = running
        for block in range(n_blocks):
            filled, statistics = planted_stores.fill(record, plan, block, values)
            writer.submit(block, filled, statistics, began=0.0)
            if block % 10 == 9:
                marks.append(("write", block, *held()))
    write_finished(folder, record, running.total)
    arrays.OPEN_SHARDS = OPENED  # type: ignore[misc]
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
