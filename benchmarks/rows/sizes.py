"""How large a store is: bytes a value of every precision, beside raw float16 and what an ideal code of single values takes.

That is the zero-order entropy: of each layer's values as they are stored, by how often each bit pattern occurs. A code that
looks at more than one value at a time may take less. Knows nothing about time.
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
"""And the format that the model computes in."""
TESTS = ("tests/store", "tests/kernels/test_pack_lossy.py")
N_TOKENS = 50_000
RAW = 2
"""Bytes of a float16."""


@dataclass(frozen=True)
class Size:
    """Bytes a value of one precision."""

    precision: str
    computed: str
    stored: str
    """The values' format on disk."""
    per_value: float
    """Shards of values, with scales and thresholds where there are some."""
    entropy: float | None
    """None where more patterns occur than samples can count: of float32."""
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
    "bytes a value",
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
            made = capture(
                str(MODEL), path / "corpus", store, options=RunOptions(dtype=dtype), context=WINDOW, max_tokens=n_tokens,
                precision=precision,
            )  # fmt: skip
            values = layout.capture_key(made.record.name) + "/values"
            n_values = sum(made.record.layers("mlp.post").values()) * made.record.plan.n_tokens
            n_bytes = folder_size(store / layout.capture_key(made.record.name))
            n_value_bytes = folder_size(store / values)
            raw = made.raw_block(0, 0)
            yield Size(
                precision,
                dtype,
                str(raw.dtype),
                n_value_bytes / n_values,
                None if raw.itemsize > 2 else entropy(made),
                (n_bytes - n_value_bytes) / n_values,
            )


def folder_size(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def entropy(made: Capture) -> float:
    """Bytes a value, the mean over layers of as many values each."""
    layers = made.record.layers("mlp.post")
    return sum(width * _entropy(made, layer) for layer, width in layers.items()) / sum(layers.values())


def _entropy(made: Capture, layer: int) -> float:
    counts: NDArray[Any] = np.zeros(1 << 16, np.int64)
    for block in made.blocks:
        raw = made.raw_block(layer, block)[:, : made.used_slots[block]]
        counts += np.bincount(raw.view(f"u{raw.itemsize}").ravel(), minlength=len(counts))
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum()) / 8


def markdown(sizes: list[Size]) -> str:
    """The documentation's table."""
    note = (
        f"The demo model's activations over {N_TOKENS:,} tokens of the standard library. The entropy is of single values as "
        "they are stored, a layer at a time; of float32 no sample is large enough to tell it. *Rest of the capture*: plan, "
        "statistics, exemplars and commit records, in bytes a value as well."
    )
    return f"{table(COLUMNS, [size.cells() for size in sizes], left=2)}\n\n{note}"
