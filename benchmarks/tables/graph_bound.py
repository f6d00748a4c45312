"""What bounds graphs that read the last k tokens: a table of the documentation, for any model and corpus.

python benchmarks/tables/graph_bound.py MODEL CORPUS [--context 256] [--neurons 120] [--seeds 0,1,2] [--write]

Figures are means over neurons; a neuron is left out of a figure where it neither fires nor is predicted to fire.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch

from actstore.display import terminal
from actstore.engine.capture.api import capture
from actstore.engine.graphs.build import GraphSettings
from actstore.engine.graphs.evaluate import EvaluationSettings, evaluate
from actstore.engine.graphs.lookup import count_entries, find_entries
from actstore.engine.graphs.samples import SampleReader
from actstore.engine.graphs.split import SplitSettings
from actstore.engine.models.load import load_model
from benchmarks.marked import rewrite, spread, table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.engine.graphs.lookup import Entries
    from actstore.engine.graphs.samples import HeldOutWindows, Sample
    from actstore.store.reader import Capture

LENGTHS: Final = (1, 2, 3, 4, 6, 8, 12)
"""Numbers of last tokens, the activating one included."""
SHARE: Final = 0.5
POSITIONS: Final = 1000
"""Ordinary positions at which the model reads its last tokens alone."""
KINDS: Final = ("exemplars", "ordinary")
COLUMNS: Final = ("known", "F1 where known", "F1 of graphs of all contexts", "F1 of the best rule in hindsight")


def f1(predicted: NDArray[np.bool_], fires: NDArray[np.bool_]) -> float:
    """NaN where nothing fires and nothing is predicted to."""
    n = int(predicted.sum() + fires.sum())
    return 2 * int((predicted & fires).sum()) / n if n else np.nan


def best_rule(entry: NDArray[np.int64], fires: NDArray[np.bool_]) -> float:
    """The largest F1 at some positions of any rule that gives all positions of an entry the same answer."""
    _, number = np.unique(entry, return_inverse=True)
    n, f = np.bincount(number), np.bincount(number, fires)
    # The entries that fire most often first: of all sets of entries, the best is one of the first few.
    order = np.argsort(-f / n, kind="stable")
    hits, predicted = np.cumsum(f[order]), np.cumsum(n[order])
    return float((2 * hits / (predicted + fires.sum())).max()) if fires.any() else np.nan


def lookups(reader: SampleReader, sample: Sample, entries: Entries) -> dict[str, tuple[float, float, float]]:
    """Kind → share of the firing positions that the evidence knows, F1 at known positions, F1 of the best rule."""
    counts = entries.counts - count_entries(entries, sample.held_out)
    shares = np.bincount(entries.of_rank[sample.ranks], minlength=len(counts)) / np.maximum(counts, 1)
    figures = {}
    tests: dict[str, tuple[HeldOutWindows, NDArray[np.float32]]] = {
        "exemplars": (sample.test, sample.on_test),
        "ordinary": (reader.ordinary, sample.on_ordinary),
    }
    for kind, (windows, values) in tests.items():
        fires, entry = values >= np.float32(SHARE), entries.of_rank[reader.contexts.rank[windows.tokens]]
        known = counts[entry] > 0
        share = float(known[fires].mean()) if fires.any() else np.nan
        figures[kind] = share, f1((shares[entry] >= SHARE)[known], fires[known]), best_rule(entry, fires)
    return figures


def draw(captured: Capture, number: int) -> list[tuple[int, int]]:
    """Random neurons of all layers, the same in every run."""
    widths = captured.record.layers("mlp.post")
    neurons = [(layer, index) for layer in sorted(widths) for index in range(widths[layer])]
    order = np.random.default_rng(0).permutation(len(neurons))[:number]
    return sorted(neurons[i] for i in order.tolist())


def measure_seed(captured: Capture, neurons: list[tuple[int, int]], seed: int) -> dict[tuple[int, str], list[float]]:
    """(length, kind) → the columns, for one split of the windows; length 0 are the graphs as they are built."""
    split = SplitSettings(seed=seed)
    reader = SampleReader([captured], split, site="mlp.post", share=SHARE, max_depth=max(LENGTHS))
    samples = [sample for sample in (reader.read(*neuron) for neuron in neurons) if sample.maximum > 0]
    rows: dict[tuple[int, str], list[float]] = {}
    for length in LENGTHS:
        entries = find_entries(reader.contexts.trie, length)
        figures = [lookups(reader, sample, entries) for sample in samples]
        method = graphs(captured, neurons, split, GraphSettings(gain=-1.0, max_depth=length - 1))
        for kind in KINDS:
            known, where_known, best = np.nanmean([one[kind] for one in figures], axis=0).tolist()
            rows[length, kind] = [known, where_known, method[kind], best]
    built = graphs(captured, neurons, split, GraphSettings())
    for kind in KINDS:
        rows[0, kind] = [np.nan, np.nan, built[kind], np.nan]
    rows[0, "nodes"] = [built["nodes"]]
    return rows


def graphs(
    captured: Capture, neurons: list[tuple[int, int]], split: SplitSettings, settings: GraphSettings
) -> dict[str, float]:
    """F1 on both kinds of windows, and the median number of nodes."""
    method = evaluate(captured, neurons=neurons, settings=EvaluationSettings(settings, split)).method
    return {kind: getattr(method, kind).summary()["f1"] for kind in KINDS} | {"nodes": float(np.median(method.n_nodes))}


def alone(captured: Capture, model: str, neurons: list[tuple[int, int]], lengths: tuple[int, ...]) -> dict[int, float]:
    """Length → F1 of the model itself at ordinary positions, if it reads that number of last tokens at most."""
    reader = SampleReader([captured], SplitSettings(seed=0), site="mlp.post", share=SHARE, max_depth=1)
    windows = reader.ordinary
    chosen = np.sort(np.random.default_rng(0).permutation(len(windows.tokens))[:POSITIONS])
    places = windows.positions[chosen]
    begins = windows.begins[np.searchsorted(windows.begins, places, "right") - 1]
    loaded, inputs = load_model(model, dtype="float32").model, dict[int, torch.Tensor]()
    for number, layer in enumerate(captured.store.model.layers):
        projection = loaded.get_submodule(layer.module)
        projection.register_forward_pre_hook(lambda _, given, n=number: inputs.__setitem__(n, given[0][:, -1]))
    truth = {neuron: reader.read(*neuron) for neuron in neurons}
    figures = {}
    for length in lengths:
        read = np.minimum(places - begins + 1, length)
        shares = np.zeros((len(neurons), len(places)), np.float32)
        for n in np.unique(read).tolist():
            at = np.flatnonzero(read == n)
            ids = windows.ids[places[at][:, None] - np.arange(n)[::-1]]
            with torch.no_grad():
                loaded(torch.from_numpy(ids.astype(np.int64)))
            for row, (layer, index) in enumerate(neurons):
                shares[row, at] = inputs[layer][:, index].numpy() / (truth[layer, index].maximum or 1)
        scores = [
            f1(shares[row] >= SHARE, truth[neuron].on_ordinary[chosen] >= np.float32(SHARE))
            for row, neuron in enumerate(neurons)
        ]
        figures[length] = float(np.nanmean(scores))
    return figures


def report(rows: list[dict[tuple[int, str], list[float]]], model: dict[int, float], of: str) -> str:
    """The table and what it is of."""
    header = ["last tokens", *(f"{kind}: {column}" for kind in KINDS for column in COLUMNS), "the model, these alone"]
    lines: list[list[str]] = []
    for length in (*LENGTHS, *sorted(set(model) - set(LENGTHS)), 0):
        cells = [f"{length}" if length else "graphs as built"]
        for kind in KINDS:
            columns = zip(*(row[length, kind] for row in rows if (length, kind) in row), strict=True)
            cells += [spread(list(column), "{:.3f}") for column in columns] or ["–"] * len(COLUMNS)
        lines.append([*cells, f"{model[length]:.3f}" if length in model else "–"])
    nodes = spread([row[0, "nodes"][0] for row in rows])
    note = (
        f"{of}; mean ± standard deviation over {len(rows)} splits of the windows. *Known*: share of the positions that fire "
        "whose last tokens occur in the evidence; there, the neuron is said to fire where it did so at half of the "
        "occurrences or more. *All contexts*: `--gain -1` with this number of tokens. *In hindsight*: of all rules that answer "
        "by the last tokens alone, the best for the test positions themselves, which memorises the contexts that occur once. "
        f"*The model*: its own activations at {POSITIONS:,} ordinary positions where it reads the last tokens alone. Graphs as "
        f"built have {nodes} nodes in the median."
    )
    return f"{table(header, lines, left=0)}\n\n{note}"


def main() -> None:
    """Measure, print, and with --write put the table where the documentation marks it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("corpus")
    parser.add_argument("--context", type=int, default=256, help="number of tokens per window")
    parser.add_argument("--neurons", type=int, default=120, help="number of random neurons")
    parser.add_argument("--seeds", default="0,1,2", help="random seeds of the splits, separated by commas")
    parser.add_argument("--write", action="store_true", help="put the table between the marks in the documentation")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="actstore-bound-") as folder:
        captured = capture(
            arguments.model, arguments.corpus, Path(folder) / "store", context=arguments.context, precision="half"
        )
        neurons = draw(captured, arguments.neurons)
        seeds = [int(seed) for seed in arguments.seeds.split(",")]
        rows = [measure_seed(captured, neurons, seed) for seed in seeds]
        model = alone(captured, arguments.model, neurons, (*LENGTHS, 32, 64))
        of = (
            f"{len(neurons)} random neurons of `{Path(arguments.model).name}` over {captured.record.plan.n_tokens:,} tokens of "
            f"`{Path(arguments.corpus).name}` in windows of {arguments.context}"
        )
    text = report(rows, model, of)
    terminal.out.print(text, markup=False, soft_wrap=True)
    if arguments.write:
        rewrite("graphs-bound", text)


if __name__ == "__main__":
    main()
