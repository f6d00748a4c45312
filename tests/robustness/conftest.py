"""A store with one file of every kind that the format knows, planted without a model: to be damaged, file by file."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import planted_stores
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from actstore.kernels.suffix_trie.api import Nodes
from actstore.store.capture.patches import PATCHES, PatchesWriter
from actstore.store.capture.plan import Plan, PlannedWindow, PlanWriter
from actstore.store.capture.questions.answers import ANSWERS, write_answers
from actstore.store.capture.statistics.neuron_table import write_finished
from actstore.store.capture.statistics.running import RunningStatistics
from actstore.store.capture.writer import CaptureWriter, create_capture
from actstore.store.edits import Edit, EditedRows, EditRecord, RowPair, row_digest, write_edit
from actstore.store.files.records import PlanRecord
from actstore.store.graphs.writer import GraphRecord, GraphWriter
from actstore.store.layout import IMAGE, block_answers_key
from actstore.store.model.root import write_neurons, write_root, write_tokenizer
from actstore.store.model.weights import write_weights
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from types import ModuleType

    from actstore.store.files.records import CaptureRecord


@pytest.fixture(scope="session")
def planting() -> ModuleType:
    """The builders of planted stores: `plant`, `fill`, `plan_windows`, `capture_record`, `Planted`, …"""
    return planted_stores


def _fill(folder: Folder, record: CaptureRecord, files: dict[str, bytes]) -> None:
    """Random values in every block, `files` committed with the first."""
    record = create_capture(folder, record)
    plan = Plan(folder, record.name, record.plan, record.plan_files)
    rng = np.random.default_rng(7)
    with CaptureWriter(folder, record, n_threads=1, overlap=False) as writer:
        for block in range(record.plan.n_blocks):
            n = len(plan.block(block).position)
            values = {i: rng.standard_normal((width, n), np.float32) for i, width in enumerate(planted_stores.WIDTHS)}
            arrays, statistics = planted_stores.fill(record, plan, block, values)
            writer.submit(block, arrays, statistics, began=0.0, files=files if block == 0 else {})
    running = RunningStatistics(folder, record)
    running.advance()
    write_finished(folder, record, running.total)


def _plan(folder: Folder, name: str, rows: Iterable[dict[str, Any]], windows: list[PlannedWindow]) -> PlanRecord:
    """One block of windows, one to a document."""
    writer = PlanWriter(folder, name, planted_stores.BLOCK_SLOTS, {})
    for row in rows:
        writer.add_document(row)
    writer.add_block([windows])
    n_tokens = sum(len(window.kept) for window in windows)
    return PlanRecord(
        writer.close(()), "given", "c" * 64, "t" * 64, {}, (), (), len(windows), len(windows), n_tokens,
        planted_stores.BLOCK_SLOTS, 1,
    )  # fmt: skip


def _plant_questions(folder: Folder) -> None:
    """Two queries of two prompts each, with the model's answers, as `actstore attribute` leaves them."""
    rows = [
        {
            "source": "q.jsonl:1", "sha256": "0" * 64, "n_tokens": 5, "query": f"q{i // 2}", "prompt": i % 2, "text": f"t{i}",
            "answer": "AB"[i % 2], "target": 3 + i % 2, "options": ["A", "B"], "option_tokens": [3, 4], "n_cut": 0,
        }
        for i in range(4)
    ]  # fmt: skip
    last = np.array([4], np.int32)
    windows = [PlannedWindow(i, np.arange(5, dtype=np.int32) + i, last, np.array([1], np.uint8), ()) for i in range(4)]
    plan = _plan(folder, "questions", rows, windows)
    record = planted_stores.capture_record("questions", plan, planted_stores.Planted(gate_sign=False))
    record = dataclasses.replace(record, settings={"command": "attribute"})
    sink = pa.BufferOutputStream()
    shares = [[0.25 * i, 1 - 0.25 * i] for i in range(4)]
    pq.write_table(pa.table([list(range(4)), shares], schema=ANSWERS), sink)
    _fill(folder, record, {block_answers_key("questions", 0): sink.getvalue().to_pybytes()})
    write_answers(Store(folder).capture("questions"))


def _plant_images(folder: Folder) -> None:
    """Two images of four patches."""
    rows = [{"source": f"{i}.png", "sha256": "0" * 64, "n_tokens": 4, "image": f"{i}.png"} for i in range(2)]
    every = np.arange(4, dtype=np.int32)
    windows = [PlannedWindow(i, every + 9, every, np.full(4, IMAGE, np.uint8), ()) for i in range(2)]
    plan = _plan(folder, "images", rows, windows)
    table = PatchesWriter(folder, "images")
    corners = {name: np.linspace(0, 1, 8, dtype=np.float32) for name in ("left", "top", "right", "bottom")}
    places = {"tile": np.zeros(8, np.int16), "row": np.tile([0, 0, 1, 1], 2), "column": np.tile([0, 1], 4)}
    where = {"window": np.repeat([0, 1], 4), "position": np.tile(np.arange(4), 2), "token": np.arange(8)}
    columns = where | places | corners
    table.add_block({f.name: pa.array(columns[f.name].astype(f.type.to_pandas_dtype())) for f in PATCHES})
    record = planted_stores.capture_record("images", plan, planted_stores.Planted(gate_sign=False))
    _fill(folder, dataclasses.replace(record, patches_sha256=table.close()), {})


def _plant_graphs(folder: Folder) -> None:
    """Two neurons' graphs, each of two nodes."""
    plan_fingerprint = Store(folder).capture("corpus").record.plan.fingerprint
    record = GraphRecord(
        "graphs", "corpus", "actstore 0", "f" * 64, "t" * 64, "corpus", plan_fingerprint, "mlp.post", {}, n_neurons=2
    )
    column = np.tile([-1, 0], 2).astype(np.int32)
    probability = np.array([0.25, 0.75, 0.5, 1], np.float32)
    depth, whole = np.tile([0, 1], 2).astype(np.uint8), np.arange(4, dtype=np.int32)
    nodes = Nodes(
        np.array([0, 2, 4]), column, whole + 3, depth, np.ones(4, bool), probability, probability, whole, whole
    )
    writer = GraphWriter(folder, record)
    writer.add([0, 1], [1, 2], nodes, maximum=2.5, n_events=[2, 2], status=["", ""])
    writer.close()


def _plant_edit(folder: Folder) -> None:
    """Two write vectors of layer 1, doubled."""
    before = torch.arange(16, dtype=torch.float32).reshape(2, 8)
    rows = EditedRows(1, "layers.1.mlp.down_proj", (0, 3), row_digest(before), row_digest(2 * before))
    record = EditRecord(
        "double", "weights", "boost", "actstore 0", "2026-01-01", "planted", "f" * 64, "float32", {}, (rows,)
    )
    write_edit(folder, Edit(record, {1: RowPair(before, 2 * before)}))


@pytest.fixture(scope="session")
def every_kind(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, bytes]:
    """Every file of a store that holds one of each kind, by key."""
    path = tmp_path_factory.mktemp("every-kind") / "store"
    folder = Folder(path, read_only=False)
    generator = torch.Generator().manual_seed(0)

    def matrix(rows: int) -> torch.Tensor:
        return torch.randn(rows, 8, generator=generator)

    vectors = [(i, {"write_vectors": matrix(width)}) for i, width in enumerate(planted_stores.WIDTHS)]
    norm = {"weight": torch.ones(8), "epsilon": torch.tensor(1e-6), "centres": torch.tensor(False)}
    parts = write_weights(
        folder, vectors, {"unembedding": {"weight": matrix(len(planted_stores.VOCABULARY))}, "final_norm": norm}
    )
    planted_stores.plant("memory://for-its-vocabulary")
    vocabulary = Store("memory://for-its-vocabulary").vocabulary
    write_tokenizer(folder, (tiny_model / "tokenizer.json").read_text(), vocabulary, "t" * 64)
    write_neurons(folder, planted_stores.model_record(), None)
    write_root(folder, dataclasses.replace(planted_stores.model_record(), weights=parts))
    planted_stores.plant(path)
    planted_stores.plant(path, "unfinished", planted_stores.Planted(seed=5, blocks=(0, 2), finish=False))
    for name, seed in (("bundled", 6), ("another", 7)):
        planted_stores.plant(path, name, planted_stores.Planted(seed=seed, bundled=True))
    _plant_questions(folder)
    _plant_images(folder)
    _plant_graphs(folder)
    _plant_edit(folder)
    return {key: folder.read(key) for key, _ in folder.sizes() if not key.endswith(".lock")}


@pytest.fixture(scope="session")
def whole_store(every_kind: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the store of every kind on disk: a test that damages a file restores it."""
    path = tmp_path_factory.mktemp("to-be-damaged") / "store"
    for key, data in every_kind.items():
        (path / key).parent.mkdir(parents=True, exist_ok=True)
        (path / key).write_bytes(data)
    return path
