"""Neuron graphs: built from a store against the published procedure's model calls, by corpus size, and searched.

python benchmarks/graphs.py [--layers 6] [--tokens 100000,300000,1000000] [--write]   the large store: minutes, and 3 GB of disk
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
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch

from actstore import terminal
from actstore.engine.capture_run import capture
from actstore.engine.graph.build import BuildOptions, build_graphs
from actstore.engine.graph.search import search
from actstore.engine.models import load_model
from actstore.kernels.pack.api import pack
from actstore.kernels.pack.columns import Columns
from actstore.kernels.suffix_trie.api import Nodes
from actstore.store import layout, root
from actstore.store.folder import Folder
from actstore.store.graph_writer import GraphWriter
from actstore.store.graphs import GraphRecord, Graphs
from actstore.store.plans import PlannedWindow, PlanWriter
from actstore.store.reader import Store
from actstore.store.records import CaptureRecord, LayerRecord, ModelRecord, PlanRecord
from actstore.store.statistics import CaptureStatistics
from actstore.store.writer import CaptureWriter, create_capture
from benchmarks.marked import rewrite, table
from benchmarks.published_n2g import Published
from benchmarks.registry import Candidate, Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

MODEL = Path(__file__).parent.parent / "demo" / "stdlib-llama"
WINDOW, BLOCK = 256, 16_384
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
def one_thread() -> Iterator[None]:
    """Torch on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def prepare_published(quick: bool) -> Iterator[dict[str, Candidate]]:
    """The demo model over the standard library; exemplars are those of the store."""
    n_tokens = 20_000 if quick else 100_000
    with tempfile.TemporaryDirectory(prefix="actstore-bench-") as name:
        path = Path(name)
        standard_library(path / "corpus", 5 * n_tokens)
        captured = capture(
            str(MODEL), path / "corpus", path / "store", context=WINDOW, max_tokens=n_tokens, precision="half"
        )
        store, folder = Store(path / "store"), Folder(path / "store", read_only=False)
        main = store.capture()
        widths = main.record.layers("mlp.post")
        n_neurons = sum(widths.values())

        number = itertools.count()

        def ours() -> None:
            build_graphs(main, folder, name=f"bench-{next(number)}", options=BuildOptions(threads=1))

        loaded = load_model(MODEL, dtype="float32")
        projections = [loaded.model.get_submodule(layer.module) for layer in store.model.layers]
        procedure = Published(loaded.model, projections, mask=1, n_vocabulary=int(store.model.n_vocabulary or 0))
        chosen = sample_neurons(widths)
        exemplars = {neuron: read_exemplars(captured, *neuron) for neuron in chosen}

        def published() -> None:
            for (layer, neuron), texts in exemplars.items():
                procedure.run(layer, neuron, texts[::2], texts[1::2])

        with one_thread():
            published()
            said = f"{procedure.calls / SAMPLED:.0f} calls, {procedure.tokens / SAMPLED:,.0f} tokens a neuron"
            yield {
                f"actstore, all {n_neurons:,} neurons": Candidate(ours),
                f"as published: {said}; {SAMPLED} neurons × {n_neurons // SAMPLED}": Candidate(
                    published, times=n_neurons // SAMPLED
                ),
            }


def sample_neurons(widths: dict[int, int]) -> list[tuple[int, int]]:
    """As many neurons of each layer, at random."""
    rng = np.random.default_rng(0)
    layers = sorted(widths)
    return [(layer, int(rng.integers(widths[layer]))) for layer in layers for _ in range(SAMPLED // len(layers))]


def read_exemplars(captured: Any, layer: int, neuron: int) -> list[torch.Tensor]:
    """The token ids of the 20 windows with a neuron's largest activations."""
    table = captured.windows()
    starts, sizes = table["input_start"].to_numpy(), table["n_inputs"].to_numpy()
    inputs = captured.plan.array("inputs/ids").astype(np.int64)
    windows = captured.store.neuron(layer, neuron).exemplars(20)["window"].to_pylist()
    return [torch.from_numpy(inputs[starts[w] : starts[w] + sizes[w]]) for w in windows]


class Synthetic:
    """A corpus and neurons with planted structure, of any size.

    Tokens follow one another like words: each has 16 others that mostly come next. A neuron fires at some 16 tokens: at a third
    of them always, at a third only after some tokens, at a third unless some token came two before. Elsewhere it is mostly 0.
    """

    VOCABULARY = 4096

    def __init__(self, n_layers: int, n_neurons: int) -> None:
        rng = np.random.default_rng(0)
        self.n_layers, self.n_neurons = n_layers, n_neurons
        weights = 1 / np.arange(1, self.VOCABULARY + 1)
        self._next = rng.choice(self.VOCABULARY, (self.VOCABULARY, 16), p=weights / weights.sum())
        likely = 1 / np.arange(1, 17) ** 1.2
        self._likely = np.cumsum(likely / likely.sum())
        kinds = rng.choice(4, (n_layers, self.VOCABULARY, n_neurons), p=(1 - 0.0039, 0.0013, 0.0013, 0.0013))
        self._kinds = kinds.astype(np.uint8)
        noise = rng.random((BLOCK, n_neurons), np.float32)
        self._noise = np.where(noise > 0.98, (noise - 0.98) * 20, 0).astype(np.float16)

    def windows(self, n: int, seed: int) -> NDArray[np.int32]:
        """Token ids [window, position]."""
        rng = np.random.default_rng([1, seed])
        ids = np.empty((n, WINDOW), np.int32)
        ids[:, 0] = rng.integers(0, self.VOCABULARY, n)
        for i in range(1, WINDOW):
            drawn = np.minimum(np.searchsorted(self._likely, rng.random(n)), 15)
            ids[:, i] = self._next[ids[:, i - 1], drawn]
        return ids

    def values(self, layer: int, block: int, ids: NDArray[np.int32]) -> NDArray[np.float16]:
        """Activations [token, neuron] over windows of ids."""
        before, two_before = (np.pad(ids, ((0, 0), (k, 0)))[:, :WINDOW].ravel() for k in (1, 2))
        kinds = self._kinds[layer][ids.ravel()]
        fires = kinds == 1
        fires |= (kinds == 2) & (before % 4 == 1)[:, None]
        fires |= (kinds == 3) & (two_before % 4 != 1)[:, None]
        strength = (0.6 + 0.4 * (ids.ravel() % 7) / 7).astype(np.float16)[:, None]
        values = np.roll(self._noise, 977 * block, axis=0)[: ids.size]
        return np.where(fires, strength, values)

    def write(self, path: Path, name: str, n_tokens: int) -> None:
        """A capture of it."""
        folder = Folder(path, read_only=False)
        layers = tuple(
            LayerRecord(i, self.n_neurons, f"layers.{i}.mlp.down_proj", True, i, "decoder", None)
            for i in range(self.n_layers)
        )
        model = ModelRecord(
            "synthetic", "llama", "causal", 512, self.VOCABULARY, "float16", "none", ("mlp.post",), layers, {}
        )
        root.write_root(folder, model)
        n_blocks = -(-n_tokens // BLOCK)
        sizes = [min(BLOCK, n_tokens - block * BLOCK) // WINDOW for block in range(n_blocks)]
        plan = PlanWriter(folder, name, BLOCK, {})
        plan.add_document({"source": "synthetic", "sha256": "", "n_tokens": n_tokens})
        everywhere, text = np.arange(WINDOW, dtype=np.int32), np.full(WINDOW, layout.TEXT, np.uint8)
        for block, n in enumerate(sizes):
            plan.add_block([[PlannedWindow(0, ids, everywhere, text, ()) for ids in self.windows(n, block)]])
        fingerprint = plan.close(())
        record = CaptureRecord(
            name, root.now(), root.written_by(), "none", "float16", "exact",
            {"mlp.post": {str(i): self.n_neurons for i in range(self.n_layers)}}, (), None, 0, {},
            PlanRecord(fingerprint, "synthetic", "", "", {}, (), (), 1, plan.n_windows, plan.n_tokens, BLOCK, n_blocks),
        )  # fmt: skip
        create_capture(folder, record)
        with CaptureWriter(folder, record, n_threads=2, overlap=False) as writer:
            for block, n in enumerate(sizes):
                self._write_block(writer, block, self.windows(n, block))

    def _write_block(self, writer: CaptureWriter, block: int, ids: NDArray[np.int32]) -> None:
        token = np.arange(ids.size)
        segments = np.arange(len(ids) + 1) * WINDOW
        labels, counted = np.empty((len(ids), 0), np.int32), np.ones(ids.size, bool)
        columns = Columns(token, token, segments, labels, counted, block * BLOCK)
        statistics, arrays = CaptureStatistics.empty(writer.record), {}
        statistics.label_tokens[-1] = ids.size
        for layer in range(self.n_layers):
            key = layout.values_key(writer.record.name, "mlp.post", layer)
            arrays[key] = writer.buffer(key, (self.n_neurons, BLOCK), np.dtype(np.float16))
            arrays[key][:] = np.nan
            pack(self.values(layer, block, ids), columns, arrays[key], statistics.sites["mlp.post", layer])
        writer.submit(block, arrays, statistics.encode, time.time())


@contextmanager
def prepare_growth(quick: bool) -> Iterator[dict[str, Candidate]]:
    """256 neurons over corpora of two sizes."""
    with tempfile.TemporaryDirectory(prefix="actstore-bench-") as name:
        path = Path(name) / "store"
        corpus = Synthetic(1, 32 if quick else 256)
        folder = Folder(path, read_only=False)
        candidates, number = {}, itertools.count()
        for n_tokens in (20_000, 60_000) if quick else (100_000, 300_000):
            corpus.write(path, f"tokens-{n_tokens}", n_tokens)
            one = Store(path).capture(f"tokens-{n_tokens}")

            def run(one: Any = one) -> None:
                build_graphs(one, folder, name=f"bench-{next(number)}")

            candidates[f"{n_tokens:,} tokens"] = Candidate(run)
        yield candidates


def write_many(path: Path, n_layers: int, n_neurons: int) -> None:
    """Graphs of 40 nodes for `n_layers` × `n_neurons` neurons: 8 tokens, each after 4 others."""
    layers = tuple(
        LayerRecord(i, n_neurons, f"layers.{i}.mlp.down_proj", True, i, "decoder", None) for i in range(n_layers)
    )
    folder = Folder(path, read_only=False)
    n_vocabulary = 50_000
    root.write_root(
        folder,
        ModelRecord(
            "synthetic", "llama", "causal", 512, n_vocabulary, "float16", "none", ("mlp.post",), layers, {}
        ),
    )  # fmt: skip
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

        def find(**asked: Any) -> Callable[[], object]:
            return lambda: search(graphs.store, graphs, **asked)

        yield {
            "open": Candidate(lambda: Graphs(Store(path))),
            "search for a token": Candidate(find(activating=[token])),
            "search for a token after another": Candidate(find(activating=[token], context=[context])),
            "search for a context token": Candidate(find(context=[context])),
            "one neuron's graph": Candidate(lambda: graphs.graph(0, 17)),
        }


def measure_large(n_layers: int, sizes: list[int], *, write: bool) -> None:
    """Seconds and memory of building all graphs of a large synthetic store, a process for each size."""
    with tempfile.TemporaryDirectory(prefix="actstore-bench-") as name:
        path = Path(name) / "store"
        corpus = Synthetic(n_layers, 1536)
        rows = []
        for n_tokens in sizes:
            began = time.perf_counter()
            corpus.write(path, "corpus", n_tokens)
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
        note = f"{n_layers * 1536:,} synthetic neurons with planted contexts, one run each, two threads."
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


TESTS = ("tests/engine/graph", "tests/kernels/test_suffix_trie.py")
ROWS = (
    Row("graphs of a model, demo model over the standard library, one thread", prepare_published, TESTS, repeats=3),
    Row("graphs by size of the corpus, 256 synthetic neurons", prepare_growth, TESTS, repeats=3),
    Row("100,000 neurons' graphs, 40 nodes each", prepare_search, TESTS, repeats=7),
)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=6, help="of 1,536 neurons each")
    parser.add_argument("--tokens", default="100000,300000,1000000", help="sizes of the corpus")
    parser.add_argument("--write", action="store_true", help="put the table where the documentation marks it")
    parser.add_argument("--build", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.build:
        build_once(asked.build)
    else:
        measure_large(asked.layers, [int(size) for size in asked.tokens.split(",")], write=asked.write)
