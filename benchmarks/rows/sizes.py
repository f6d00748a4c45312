"""How large a store is: bytes per value of every precision, beside raw float16 and an ideal code of single values.

The ideal code takes the zero-order entropy: of each layer's values as they are stored, by how often each bit pattern occurs. A
code that uses more than one value at a time may take less.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from actstore.engine.capture.api import capture
from actstore.engine.capture.run import RunOptions
from actstore.store import layout
from benchmarks.marked import table
from benchmarks.rows.graphs import MODEL, standard_library
from benchmarks.synthetic import WINDOW

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from actstore.store.reader import Capture

PRECISIONS = (
    ("exact", "float32"),
    ("exact", "float16"),
    ("half", "float32"),
    ("int8", "float32"),
    ("sparse", "float32"),
)
"""Precision of the store and data type of the model."""
TESTS = ("tests/store", "tests/kernels/test_pack_lossy.py")
N_TOKENS = 50_000
RAW = 2
"""Bytes of a float16."""


@dataclass(frozen=True)
class Size:
    """Bytes per value of one precision."""

    precision: str
    computed: str
    stored: str
    """The values' format on disk."""
    per_value: float
    """The shards of values, with scales and thresholds if the precision has them."""
    entropy: float | None
    """None for float32, which has more bit patterns than a sample can count."""
    rest: float
    """Everything else of the capture: plan, statistics, commit records."""

    def cells(self) -> list[str]:
        entropy = "" if self.entropy is None else f"{self.entropy:.2f}"
        return [
            f"{self.precision}, of a model in {self.computed}", self.stored, f"{self.per_value:.2f}",
            f"{self.per_value / RAW:.2f}", entropy, f"{self.rest:.2f}",
        ]  # fmt: skip


COLUMNS = [
    "precision",
    "stored as",
    "bytes per value",
    "of raw float16",
    "zero-order entropy, bytes",
    "rest of the capture",
]


def measure_sizes(*, quick: bool) -> list[Size]:
    """The demo model over the standard library."""
    return list(_sizes(8_000 if quick else N_TOKENS))


def _sizes(n_tokens: int) -> Iterator[Size]:
    with tempfile.TemporaryDirectory(prefix="actstore-bench-") as name:
        path = Path(name)
        standard_library(path / "corpus", 5 * n_tokens)
        for precision, dtype in PRECISIONS:
            store = path / f"{precision}-{dtype}"
            captured = capture(
                str(MODEL), path / "corpus", store, options=RunOptions(dtype=dtype), context=WINDOW, max_tokens=n_tokens,
                precision=precision,
            )  # fmt: skip
            values = layout.capture_key(captured.record.name) + "/values"
            n_values = sum(captured.record.layers("mlp.post").values()) * captured.record.plan.n_tokens
            n_bytes = folder_size(store / layout.capture_key(captured.record.name))
            n_value_bytes = folder_size(store / values)
            raw = captured.raw_block(0, 0)
            yield Size(
                precision,
                dtype,
                str(raw.dtype),
                n_value_bytes / n_values,
                None if raw.itemsize > 2 else entropy(captured),
                (n_bytes - n_value_bytes) / n_values,
            )


def folder_size(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def entropy(captured: Capture) -> float:
    """Entropy in bytes per value, the mean over all values."""
    layers = captured.record.layers("mlp.post")
    return sum(width * _entropy(captured, layer) for layer, width in layers.items()) / sum(layers.values())


def _entropy(captured: Capture, layer: int) -> float:
    counts: NDArray[Any] = np.zeros(1 << 16, np.int64)
    for block in captured.blocks:
        raw = captured.raw_block(layer, block)[:, : captured.used_slots[block]]
        counts += np.bincount(raw.view(f"u{raw.itemsize}").ravel(), minlength=len(counts))
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum()) / 8


def markdown(sizes: list[Size]) -> str:
    """The documentation's table."""
    note = (
        f"The demo model's activations over {N_TOKENS:,} tokens of the standard library. The entropy is of single values as "
        "they are stored, layer by layer; for float32 no sample is large enough to estimate it. *Rest of the capture*: plan, "
        "statistics, exemplars and commit records, also in bytes per value."
    )
    return f"{table(COLUMNS, [size.cells() for size in sizes], left=2)}\n\n{note}"
