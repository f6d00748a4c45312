"""Reading one neuron over a whole corpus: the store against a token-major memory map of the same values."""

from __future__ import annotations

import itertools
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import actstore
from actstore.store import layout, root
from actstore.store.folder import Folder
from actstore.store.plans import PlannedWindow, PlanWriter
from actstore.store.records import CaptureRecord, LayerRecord, ModelRecord, PlanRecord
from actstore.store.statistics import CaptureStatistics
from actstore.store.writer import CaptureWriter, create_capture
from benchmarks.registry import Candidate, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

N_NEURONS, WINDOW, BLOCK_WINDOWS = 1536, 256, 64
BLOCK = WINDOW * BLOCK_WINDOWS


def synthetic_block(block: int) -> NDArray[np.float16]:
    """Values shaped like a gated feed-forward's, SiLU(gate) · up with gates mostly shut; [neuron, token]."""
    rng = np.random.default_rng(block % 4)
    gate, up = rng.standard_normal((2, N_NEURONS, BLOCK), np.float32)
    gate -= 1
    return np.roll(gate / (1 + np.exp(-gate)) * up, 977 * block, axis=1).astype(np.float16)


def write_synthetic(path: Path, n_blocks: int, matrix: NDArray[np.float16]) -> None:
    """A store of one layer and `n_blocks` blocks, and the same values in `matrix` [token, neuron]."""
    folder = Folder(path, read_only=False)
    layer = LayerRecord(0, N_NEURONS, "model.layers.0.mlp.down_proj", True, 0, "decoder", None)
    root.write_root(
        folder, ModelRecord("synthetic", "llama", "causal", 512, 256, "float32", "none", ("mlp.post",), (layer,), {})
    )
    plan = PlanWriter(folder, "corpus", BLOCK, {})
    plan.add_document({"source": "synthetic", "sha256": "", "n_tokens": n_blocks * BLOCK})
    everywhere, text = np.arange(WINDOW, dtype=np.int32), np.full(WINDOW, layout.TEXT, np.uint8)
    windows = [PlannedWindow(0, everywhere, everywhere, text, ()) for _ in range(BLOCK_WINDOWS)]
    for _ in range(n_blocks):
        plan.add_block([windows])
    fingerprint = plan.close(())
    record = CaptureRecord(
        "corpus", root.now(), root.written_by(), "none", "float32", "half", {"mlp.post": {"0": N_NEURONS}}, (), None, 0, {},
        PlanRecord(fingerprint, "synthetic", "", "", {}, (), (), 1, plan.n_windows, plan.n_tokens, BLOCK, n_blocks),
    )  # fmt: skip
    create_capture(folder, record)
    statistics = CaptureStatistics.empty(record).encode()
    key = layout.values_key("corpus", "mlp.post", 0)
    with CaptureWriter(folder, record, n_threads=2, overlap=True) as writer:
        for block in range(n_blocks):
            values = synthetic_block(block)
            writer.submit(block, {key: values}, lambda: statistics, 0.0)
            matrix[block * BLOCK : (block + 1) * BLOCK] = values.T


def evict(path: Path) -> None:
    """Drop a file's, or a folder's files', pages from the page cache."""
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


@contextmanager
def synthetic(quick: bool) -> Iterator[tuple[Path, Path, tuple[int, int]]]:
    """A store, a token-major file of the same values, and the file's shape."""
    n_blocks = 8 if quick else 62
    with tempfile.TemporaryDirectory(prefix="actstore-bench-") as name:
        folder, file = Path(name) / "store", Path(name) / "tokens.f16"
        shape = (n_blocks * BLOCK, N_NEURONS)
        matrix = np.memmap(file, np.float16, "w+", shape=shape)
        write_synthetic(folder, n_blocks, matrix)
        matrix.flush()
        mine = actstore.open(folder).neuron(0, 777).activations()
        if not np.array_equal(mine, matrix[:, 777].astype(np.float32)):
            raise AssertionError("the store and the memory map disagree")
        # Pages that are still mapped cannot be evicted.
        del matrix
        yield folder, file, shape


@contextmanager
def prepare_warm(quick: bool) -> Iterator[dict[str, Candidate]]:
    """Both opened before, every byte in the page cache, another neuron each time."""
    with synthetic(quick) as (folder, file, shape):
        capture, matrix = actstore.open(folder).capture(), np.memmap(file, np.float16, "r", shape=shape)
        ours, theirs = itertools.count(3, 7), itertools.count(3, 7)
        yield {
            f"actstore, {shape[0]:,} tokens": Candidate(
                lambda: capture.activations(0, next(ours) % N_NEURONS, dtype=np.float16)
            ),
            MEMMAP: Candidate(lambda: np.array(matrix[:, next(theirs) % N_NEURONS])),
        }


@contextmanager
def prepare_cold(quick: bool) -> Iterator[dict[str, Candidate]]:
    """Both opened anew, nothing in the page cache."""
    with synthetic(quick) as (folder, file, shape):
        os.sync()
        yield {
            f"actstore, {shape[0]:,} tokens": Candidate(
                lambda: actstore.open(folder).capture().activations(0, 777, dtype=np.float16), lambda: evict(folder)
            ),
            MEMMAP: Candidate(
                lambda: np.array(np.memmap(file, np.float16, "r", shape=shape)[:, 777]), lambda: evict(file)
            ),
        }


MEMMAP = "one column of a float16 memmap [token, neuron]"
ROWS = (
    Row("read one neuron, open, in the page cache", prepare_warm, ("tests/store",), repeats=15),
    Row("read one neuron, opened anew, from disk", prepare_cold, ("tests/store",), repeats=5),
)
