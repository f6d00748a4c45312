"""Neuron graphs: built from a store against the published procedure's model calls, and searched.

python benchmarks/rows/graphs.py [--layers 6] [--tokens 100000,300000,1000000] [--write]

Run as a script, it measures a large store, which takes minutes and 3 GB of disk.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch

from actstore.display import terminal
from actstore.engine.capture.api import capture
from actstore.engine.graphs.build import BuildOptions, build_graphs
from actstore.engine.graphs.search import search
from actstore.engine.models.load import load_model
from actstore.kernels.suffix_trie.api import Nodes
from actstore.kernels.torch_threads import torch_threads
from actstore.store.graphs.reader import GraphRecord, Graphs
from actstore.store.graphs.writer import GraphWriter
from actstore.store.model import root
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder
from benchmarks.marked import commit, rewrite, table
from benchmarks.registry import Candidate, Row
from benchmarks.rows.published_n2g import Published
from benchmarks.synthetic import WINDOW, Planted, model_record, write_capture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from actstore.store.reader import Capture

MODEL = Path(__file__).parents[2] / "demo" / "models" / "stdlib-llama"
SAMPLED = 4
"""Neurons for which the published procedure is run."""


def standard_library(target: Path, n_bytes: int) -> None:
    """Modules of the running Python's standard library, about `n_bytes` of source, in an order that mixes them."""
    source = Path(sysconfig.get_path("stdlib"))
    modules = [path for path in source.glob("*.py") if path.is_file()]
    target.mkdir()
    taken = 0
    for path in sorted(modules, key=lambda path: hashlib.sha256(path.name.encode()).hexdigest()):
        if taken >= n_bytes:
            break
        shutil.copy(path, target)
        taken += path.stat().st_size


@contextmanager
def captured_demo(n_tokens: int) -> Iterator[Capture]:
    """A capture of the demo model over `n_tokens` tokens of the standard library, in a temporary store."""
    with tempfile.TemporaryDirectory(prefix="actstore-bench-") as name:
        path = Path(name)
        standard_library(path / "corpus", 5 * n_tokens)
        yield capture(
            str(MODEL), path / "corpus", path / "store", context=WINDOW, max_tokens=n_tokens, precision="half"
        )


@dataclass(frozen=True)
class PublishedSample:
    """The published procedure for a few neurons, with their exemplars from the store."""

    procedure: Published
    exemplars: dict[tuple[int, int], list[torch.Tensor]]

    @classmethod
    def of(cls, captured: Capture) -> PublishedSample:
        """For neurons of every layer, with the demo model in float32."""
        loaded, model = load_model(MODEL, dtype="float32"), captured.store.model
        projections = [loaded.model.get_submodule(layer.module) for layer in model.layers]
        procedure = Published(loaded.model, projections, mask=1, n_vocabulary=int(model.n_vocabulary or 0))
        neurons = sample_neurons(captured.record.layers("mlp.post"))
        return cls(procedure, {neuron: read_exemplars(captured, *neuron) for neuron in neurons})

    def run(self) -> None:
        """Half of each neuron's exemplars make its graph, half prune it."""
        for (layer, neuron), texts in self.exemplars.items():
            self.procedure.run(layer, neuron, texts[::2], texts[1::2])


@contextmanager
def prepare_published(quick: bool) -> Iterator[dict[str, Candidate]]:
    """The demo model over the standard library."""
    with captured_demo(20_000 if quick else 100_000) as captured, torch_threads(1):
        folder = Folder(captured.folder.location, read_only=False)
        n_neurons = sum(captured.record.layers("mlp.post").values())

        number = itertools.count()

        def ours() -> None:
            build_graphs(captured, folder, name=f"bench-{next(number)}", options=BuildOptions(threads=1))

        sample = PublishedSample.of(captured)
        sample.run()
        calls, tokens = sample.procedure.calls / SAMPLED, sample.procedure.tokens / SAMPLED
        cost = f"{calls:.0f} calls, {tokens:,.0f} tokens per neuron"
        yield {
            f"actstore, all {n_neurons:,} neurons": Candidate(ours),
            f"as published: {cost}; {SAMPLED} neurons × {n_neurons // SAMPLED}": Candidate(
                sample.run, times=n_neurons // SAMPLED
            ),
        }


def sample_neurons(widths: dict[int, int]) -> list[tuple[int, int]]:
    """`SAMPLED` random neurons, the same number of each layer."""
    rng = np.random.default_rng(0)
    layers = sorted(widths)
    return [(layer, int(rng.integers(widths[layer]))) for layer in layers for _ in range(SAMPLED // len(layers))]


def read_exemplars(captured: Capture, layer: int, neuron: int) -> list[torch.Tensor]:
    """The token ids of the 20 windows with a neuron's largest activations."""
    table = captured.windows()
    starts, sizes = table["input_start"].to_numpy(), table["n_inputs"].to_numpy()
    inputs = captured.plan.array("inputs/ids").astype(np.int64)
    windows = captured.store.neuron(layer, neuron).exemplars(20)["window"].to_pylist()
    return [torch.from_numpy(inputs[starts[w] : starts[w] + sizes[w]]) for w in windows]


def write_many(path: Path, n_layers: int, n_neurons: int) -> None:
    """Graphs of 40 nodes for `n_layers` × `n_neurons` neurons: 8 tokens, each after 4 others."""
    folder, n_vocabulary = Folder(path, read_only=False), 50_000
    root.write_root(folder, model_record(n_layers, n_neurons, n_vocabulary))
    record = GraphRecord(
        "graphs", "corpus", root.written_by(), "none", "", "corpus", "", "mlp.post", {}, n_layers * n_neurons
    )
    rng = np.random.default_rng(0)
    writer = GraphWriter(folder, record)
    n_nodes = 40
    parent = np.tile(np.where(np.arange(n_nodes) % 5 == 0, -1, np.arange(n_nodes) // 5 * 5), n_neurons).astype(np.int32)
    for layer in range(n_layers):
        # Steps between siblings make tokens ascend.
        steps = rng.integers(1, n_vocabulary // 9, (n_neurons, 8, 5))
        tokens = np.cumsum(steps[:, :, 1:], axis=2) % n_vocabulary
        roots = np.cumsum(steps[:, :, :1], axis=1) % n_vocabulary
        token = np.concatenate([roots, np.sort(tokens, axis=2)], axis=2)
        token = token[np.arange(n_neurons)[:, None], np.argsort(roots[:, :, 0], axis=1)].reshape(-1).astype(np.int32)
        n = len(token)
        probability = rng.random(n).astype(np.float32)
        count = rng.integers(1, 1000, n).astype(np.int32)
        nodes = Nodes(
            np.arange(n_neurons + 1) * n_nodes, parent, token, (parent >= 0).astype(np.uint8), np.ones(n, bool),
            probability, probability, count, (count * probability).astype(np.int32),
        )  # fmt: skip
        writer.add(layer, np.arange(n_neurons), nodes, maximum=1.0, n_events=1000)
    writer.close()


@contextmanager
def prepare_search(quick: bool) -> Iterator[dict[str, Candidate]]:
    """100,000 neurons, 4,000,000 nodes, in the page cache."""
    with tempfile.TemporaryDirectory(prefix="actstore-bench-") as name:
        path = Path(name) / "store"
        write_many(path, 2 if quick else 20, 1000 if quick else 5000)
        graphs = Graphs(Store(path))
        token = int(graphs.nodes["token"][0].as_py())
        context = int(graphs.nodes["token"][1].as_py())

        def find(**query: Any) -> Callable[[], object]:
            return lambda: search(graphs.store, graphs, **query)

        yield {
            "open": Candidate(lambda: Graphs(Store(path))),
            "search for a token": Candidate(find(activating=[token])),
            "search for a token after another": Candidate(find(activating=[token], context=[context])),
            "search for a context token": Candidate(find(context=[context])),
            "one neuron's graph": Candidate(lambda: graphs.graph(0, 17)),
        }


def measure_large(n_layers: int, sizes: list[int], *, write: bool) -> None:
    """Print seconds and memory of building all graphs of a large synthetic store, in one process per size."""
    with tempfile.TemporaryDirectory(prefix="actstore-bench-") as name:
        path = Path(name) / "store"
        corpus = Planted(n_layers, 1536)
        rows = []
        for n_tokens in sizes:
            began = time.perf_counter()
            write_capture(corpus, path, "corpus", n_tokens)
            n_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            terminal.err.print(
                f"{n_tokens:,} tokens written in {time.perf_counter() - began:.0f} s, {n_bytes / 1e9:.1f} GB"
            )
            done = subprocess.run(
                [sys.executable, __file__, "--build", str(path)], capture_output=True, text=True, check=True
            )
            shutil.rmtree(path)
            seconds, peak, nodes = done.stdout.split()
            rows.append((f"{n_tokens:,}", f"{float(seconds):.1f} s", f"{float(peak) / 1e9:.2f} GB", nodes))
            terminal.err.print(rows[-1])
    columns = ["tokens", "to build", "peak memory", "nodes, median"]
    terminal.out.print(
        terminal.table(f"Graphs of {n_layers * 1536:,} neurons", [(column, "right") for column in columns], rows)
    )
    if write:
        note = f"{n_layers * 1536:,} synthetic neurons with planted contexts, one run each, two threads; commit {commit()}."
        rewrite("graphs-growth", f"{table(columns, [list(row) for row in rows], left=0)}\n\n{note}")


def build_once(path: str) -> None:
    """Build all graphs; print seconds, the largest anonymous memory seen, and the median of nodes."""
    opened, folder = Store(path).capture(), Folder(path, read_only=False)
    build_graphs(opened, folder, name="warm", neurons=[(0, 0)])  # compiles
    peak, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            lines = Path("/proc/self/status").read_text().splitlines()
            peak[0] = max(peak[0], *(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")))

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    graphs = build_graphs(opened, folder)
    seconds = time.perf_counter() - began
    stop.set()
    watcher.join()
    print(seconds, peak[0], np.median(graphs.neurons["n_nodes"].to_numpy()))


TESTS = ("tests/engine/graphs", "tests/kernels/test_suffix_trie.py")
ROWS = (
    Row(
        "graphs of a model, demo model over the standard library, one thread",
        prepare_published,
        TESTS,
        repeats=3,
        quick=False,
    ),
    Row("100,000 neurons' graphs, 40 nodes each", prepare_search, TESTS, repeats=7),
)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=6, help="number of layers, of 1,536 neurons each")
    parser.add_argument(
        "--tokens", default="100000,300000,1000000", help="numbers of tokens of the corpus, separated by commas"
    )
    parser.add_argument("--write", action="store_true", help="put the table where the documentation marks it")
    parser.add_argument("--build", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.build:
        build_once(arguments.build)
    else:
        measure_large(arguments.layers, [int(size) for size in arguments.tokens.split(",")], write=arguments.write)
