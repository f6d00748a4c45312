"""Captures in which neurons do what a test says, with special tokens, several blocks and any precision."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import planted_stores as stores
import pyarrow as pa

from actstore.store import layout
from actstore.store.capture.plan import Plan, PlannedWindow, PlanWriter
from actstore.store.capture.statistics.neuron_table import write_finished
from actstore.store.capture.statistics.running import RunningStatistics
from actstore.store.capture.writer import CaptureWriter, create_capture
from actstore.store.files.records import PlanRecord
from actstore.store.model import root
from actstore.store.reader import Capture, Store
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

SPECIAL_TOKEN = 0
WORDS = ["<s>", *(f" w{i}" for i in range(1, 100))]
Rule = "Callable[[NDArray[np.int32]], NDArray[np.float32]]"
"""The activations of a neuron over one window, of its tokens; the first is special."""


def make_windows(n: int, longest: int = 60, n_tokens: int = 14, seed: int = 0) -> list[NDArray[np.int32]]:
    """Windows of random tokens, each after a special one."""
    rng = np.random.default_rng(seed)
    return [
        np.concatenate([[SPECIAL_TOKEN], rng.integers(1, n_tokens, rng.integers(1, longest))]).astype(np.int32)
        for _ in range(n)
    ]


def plant_capture(
    where: str | Path,
    windows: Sequence[NDArray[np.int32]],
    layers: Sequence[Sequence[Any]],
    *,
    precision: str = "exact",
    dtype: str = "float32",
    block_slots: int = 512,
    positions: str = "all",
    overlap: int = 0,
    commit: int | None = None,
    name: str = "corpus",
) -> Capture:
    """A capture of `layers` of rules over windows; of a window's first `overlap` text tokens only the ids are kept."""
    folder = Folder(where, read_only=False)
    settings = {"block_slots": block_slots, "positions": positions}
    writer = PlanWriter(folder, name, block_slots, settings)
    writer.add_document({"source": "planted", "sha256": "0", "n_tokens": 0})
    blocks: list[list[PlannedWindow]] = [[]]
    for ids in windows:
        kept = np.array([p for p in range(len(ids)) if p == 0 or p > overlap], np.int32)
        modality = np.where(ids == SPECIAL_TOKEN, layout.SPECIAL, layout.TEXT).astype(np.uint8)[kept]
        if sum(len(w.kept) for w in blocks[-1]) + len(kept) > block_slots:
            blocks.append([])
        blocks[-1].append(PlannedWindow(0, ids, kept, modality, ()))
    for block in blocks:
        writer.add_block([block])
    fingerprint = writer.close(())
    n_tokens = sum(len(w.kept) for block in blocks for w in block)
    plan_record = PlanRecord(
        fingerprint,
        "planted",
        "c" * 64,
        "t" * 64,
        settings,
        (),
        (),
        1,
        len(windows),
        n_tokens,
        block_slots,
        len(blocks),
    )
    sites = {"mlp.post": {str(layer): len(rules) for layer, rules in enumerate(layers)}}
    planted = stores.Planted(gate_sign=False, precision=precision)
    record = replace(stores.capture_record(name, plan_record, planted), sites=sites, dtype=dtype)
    model = stores.model_record()
    of_model = tuple(
        replace(model.layers[0], layer=layer, block=layer, neurons=len(rules)) for layer, rules in enumerate(layers)
    )
    vocabulary = pa.table(
        {
            "token": pa.array(range(len(WORDS)), pa.int32()),
            "piece": WORDS,
            "text": WORDS,
            "bytes": pa.array([word.encode() for word in WORDS], pa.binary()),
            "special": [i == SPECIAL_TOKEN for i in range(len(WORDS))],
        }
    )
    root.write_tokenizer(folder, None, vocabulary, "t" * 64)
    if not root.is_store(folder):
        root.write_root(folder, replace(model, layers=of_model))
    record = create_capture(folder, record)
    plan = Plan(folder, name, plan_record)
    with CaptureWriter(folder, record, n_threads=1, overlap=False) as out:
        for number, block in enumerate(blocks[:commit]):
            values = {
                layer: np.stack([np.concatenate([rule(w.ids)[w.kept] for w in block]) for rule in rules])
                for layer, rules in enumerate(layers)
            }
            arrays, statistics = stores.fill(record, plan, number, values)
            out.submit(number, arrays, statistics, began=0.0)
    if commit is None:
        running = RunningStatistics(folder, record)
        running.advance()
        write_finished(folder, record, running.total)
    return Store(where).capture(name)
