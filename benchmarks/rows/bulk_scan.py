"""A bulk scan of contributions on the demo model against its bare forward pass: statistics and contributions, no value kept.

The corpus is Python's standard library, which the demo model was trained on, every other module with another label. The forward
pass runs over the batches of the plan. Planning, which tokenises, is no part of either.
"""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from actstore.engine.capture.api import plan
from actstore.engine.capture.block_filler import batches_of, fill_blocks
from actstore.engine.capture.progress import CaptureProgress
from actstore.engine.models.load import load_model
from actstore.store.capture.plan import Plan
from actstore.store.capture.statistics.running import RunningStatistics
from actstore.store.capture.writer import CaptureWriter
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder
from benchmarks.registry import Candidate, Row
from benchmarks.rows.graphs import MODEL, WINDOW, standard_library

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from actstore.engine.models.load import LoadedModel

N_TOKENS, QUICK_TOKENS = 65_536, 8_192
BARE = "bare forward pass"


def label_modules(folder: Path, corpus: Path) -> None:
    """The modules in `folder` as JSON lines, each with the label `half`."""
    rows = [
        {"text": path.read_text(errors="replace"), "half": ("even", "odd")[number % 2]}
        for number, path in enumerate(sorted(folder.iterdir()))
    ]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))


def forward(model: LoadedModel, store: Path) -> Callable[[], None]:
    """A function that runs the model without its head over the batches of a planned capture."""
    record = Store(store).peek("corpus").record
    planned = Plan(Folder(store), "corpus", record.plan, record.plan_files)
    decoder: Any = model.model.model

    def run() -> None:
        with torch.inference_mode():
            for block in range(record.plan.n_blocks):
                for batch in batches_of(planned.block(block), len(record.plan.labels), record.plan.block_slots):
                    decoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)

    return run


def fill(model: LoadedModel, store: Path) -> Callable[[], None]:
    """A function that fills and commits every block of a planned capture, and sums its statistics."""
    folder = Folder(store, read_only=False)
    record = Store(store).peek("corpus").record

    def run() -> None:
        with CaptureWriter(folder, record, n_threads=os.cpu_count() or 2, overlap=False) as writer:
            fill_blocks(folder, record, model, writer, list(range(record.plan.n_blocks)), CaptureProgress())
        RunningStatistics(folder, record).advance()

    return run


@contextmanager
def prepare(quick: bool) -> Iterator[dict[str, Candidate]]:
    """Four blocks of 16,384 tokens."""
    n_tokens = QUICK_TOKENS if quick else N_TOKENS
    with tempfile.TemporaryDirectory(prefix="actstore-bench-") as name:
        folder = Path(name)
        standard_library(folder / "modules", 8 * n_tokens)
        label_modules(folder / "modules", folder / "corpus.jsonl")
        model = load_model(MODEL)
        settings: dict[str, Any] = {
            "context": WINDOW, "max_tokens": n_tokens, "label_columns": ["half"], "precision": "none"
        }  # fmt: skip
        plan(str(MODEL), folder / "corpus.jsonl", folder / "none", **settings)
        plan(str(MODEL), folder / "corpus.jsonl", folder / "bulk", **settings, contributions="next", by="half")
        yield {
            BARE: Candidate(forward(model, folder / "none")),
            "statistics only": Candidate(fill(model, folder / "none")),
            "statistics and contributions to next tokens by label": Candidate(fill(model, folder / "bulk")),
        }


ROWS = (
    Row(
        "bulk scan of contributions, demo model (4 layers × 672 neurons), no values kept",
        prepare,
        ("tests/engine/capture/test_contributions.py", "tests/kernels/test_contribution.py"),
        repeats=7,
    ),
)
