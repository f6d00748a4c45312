"""How cost grows: capturing, reading statistics and a neuron, building graphs, with tokens and neurons × 1, 4, 16.

A row's candidates are sizes, so that its ratios are the growth: 1, 4, 16 where cost is in proportion, 1, 1, 1 where it does not
depend on the size.
"""

from __future__ import annotations

import itertools
import tempfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actstore.engine.graphs.build import build_graphs
from actstore.engine.models.load import load_model
from actstore.kernels.torch_threads import torch_threads
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder
from benchmarks.registry import Candidate, Row
from benchmarks.rows.capture import Bench, make_ids, make_model
from benchmarks.synthetic import BLOCK, Planted, write_capture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STEPS = (1, 4, 16)
TOKENS, NEURONS = BLOCK, 96
"""The smallest corpus and the smallest layer of the synthetic stores."""
READS = 100
"""Neurons read per repeat: a single one takes less than a millisecond."""


@contextmanager
def prepare_capture(quick: bool, *, by: str) -> Iterator[dict[str, Candidate]]:
    """Two layers of width 128, forward pass included; 2,048 tokens × 1 … 16 with 1,024 neurons per layer, or 1,024 × 1 … 16."""
    with tempfile.TemporaryDirectory(prefix="actstore-bench-") as name, torch_threads(1):
        candidates = {}
        for step in _steps(quick):
            n_tokens, n_neurons = (2048 * step, 1024) if by == "tokens" else (4096, 1024 * step)
            folder = Path(name) / str(step)
            make_model(folder, n_layers=2, d_model=128, n_neurons=n_neurons)
            bench = Bench(folder, load_model(folder / "model"), make_ids(n_tokens), block=2048)
            candidates[_size(by, n_tokens, n_neurons, layers=2)] = Candidate(bench.capture("half"))
        yield candidates


@contextmanager
def prepare_stored(
    quick: bool, *, by: str, ask: Callable[[Path], Callable[[], object]]
) -> Iterator[dict[str, Candidate]]:
    """Stores of one layer: 16,384 tokens × 1 … 16 of 384 neurons, or 96 neurons × 1 … 16 over 65,536 tokens."""
    with tempfile.TemporaryDirectory(prefix="actstore-bench-") as name:
        candidates = {}
        for step in _steps(quick):
            n_tokens, n_neurons = (TOKENS * step, 4 * NEURONS) if by == "tokens" else (4 * TOKENS, NEURONS * step)
            path = Path(name) / str(step)
            write_capture(Planted(1, n_neurons), path, "corpus", n_tokens)
            candidates[_size(by, n_tokens, n_neurons)] = Candidate(ask(path))
        yield candidates


def _steps(quick: bool) -> tuple[int, ...]:
    return STEPS[:2] if quick else STEPS


def _size(by: str, n_tokens: int, n_neurons: int, layers: int = 1) -> str:
    width = f"{layers} × {n_neurons:,}" if layers > 1 else f"{n_neurons:,}"
    return f"{n_tokens:,} tokens, {width} neurons" if by == "tokens" else f"{width} neurons, {n_tokens:,} tokens"


def read_statistics(path: Path) -> Callable[[], object]:
    """Opens the store and reads its statistics."""
    return lambda: Store(path).capture().statistics()


def read_neurons(path: Path) -> Callable[[], object]:
    """Single neurons over the whole corpus, one after another, in a store that is open."""
    capture = Store(path).capture()
    n_neurons = capture.record.layers("mlp.post")[0]
    turns = itertools.count(3, 7)

    def run() -> None:
        for neuron in itertools.islice(turns, READS):
            capture.activations(0, neuron % n_neurons)

    return run


def build(path: Path) -> Callable[[], object]:
    """Graphs of all neurons."""
    capture, folder, number = Store(path).capture(), Folder(path, read_only=False), itertools.count()
    return lambda: build_graphs(capture, folder, name=f"bench-{next(number)}")


def _rows(by: str) -> Iterator[Row]:
    def row(what: str, prepare: Any, tests: tuple[str, ...]) -> Row:
        return Row(f"growth with {by}: {what}", prepare, tests, repeats=3)

    yield row("capture", partial(prepare_capture, by=by), ("tests/engine/capture", "tests/store"))
    for what, ask, tests in (
        ("read statistics", read_statistics, ("tests/store",)),
        (f"read {READS} neurons, one by one", read_neurons, ("tests/store",)),
        ("graphs of all neurons", build, ("tests/engine/graphs", "tests/kernels/test_suffix_trie.py")),
    ):
        yield row(what, partial(prepare_stored, by=by, ask=ask), tests)


ROWS = tuple(row for by in ("tokens", "neurons") for row in _rows(by))
