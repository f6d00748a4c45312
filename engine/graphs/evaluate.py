"""How well neuron graphs predict firing on held-out windows, beside lookup tables that learn from the same evidence.

The graph of each neuron is built again without its test windows (`split`); graphs of other methods are evaluated as they are
stored. No model runs, and nothing is written.
"""

from __future__ import annotations

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from actstore.engine.graphs.build import GraphSettings, grow
from actstore.engine.graphs.events import Events
from actstore.engine.graphs.lookup import Entries, Table, count_entries, find_entries, make_table
from actstore.engine.graphs.samples import SampleReader
from actstore.engine.graphs.scores import ScoreList, score
from actstore.engine.graphs.selection import select_neurons
from actstore.engine.graphs.split import SplitSettings
from actstore.kernels.jit import default_threads
from actstore.kernels.suffix_trie.api import Nodes
from actstore.store.arguments import Typed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from actstore.engine.graphs.samples import Sample
    from actstore.store.graphs.reader import Graphs
    from actstore.store.reader import Capture

CHUNK = 256
"""Number of neurons whose test windows are in memory at once: about 200 kB each where windows have 256 tokens."""

LOOKUPS = {
    "token lookup, exemplars": (1, True),
    "bigram lookup, exemplars": (2, True),
    "token lookup, corpus": (1, False),
    "bigram lookup, corpus": (2, False),
}
"""Name → number of tokens that are looked up, and whether the evidence is the exemplars only, or all but the test windows."""
RULES = {"any": 0.0, "most": 0.5}
"""Name → share of the occurrences that must fire for a table to predict firing: any of them, or at least half."""


@dataclass(frozen=True)
class EvaluationSettings(Typed):
    """How graphs are built and tested in an evaluation."""

    graph: GraphSettings = field(default_factory=GraphSettings)
    split: SplitSettings = field(default_factory=SplitSettings)
    site: str = "mlp.post"
    gains: tuple[float, ...] = ()
    """Further values of `graph.gain`, for F1 against the number of nodes."""
    threads: int | None = None


@dataclass
class Method:
    """The scores of one method."""

    exemplars: ScoreList = field(default_factory=ScoreList)
    ordinary: ScoreList = field(default_factory=ScoreList)
    n_nodes: list[int] = field(default_factory=list)
    """[neuron] the size of its graph; empty for tables."""

    @property
    def n_failed(self) -> int:
        """Number of neurons without a graph although they fire somewhere in the capture."""
        return sum(self.exemplars.failed)


@dataclass
class Evaluation:
    """The result of `evaluate`."""

    neurons: list[tuple[int, int]]
    method: Method
    """The graphs that were built here."""
    baselines: dict[str, Method]
    """The lookup tables, then the stored graphs by the name of their set."""
    curve: dict[float, Method]
    """Gain → the graphs built with it, that of the settings included."""
    few_exemplars: int
    """Number of neurons that fire in fewer windows than `n_exemplars`."""
    never_fire: int
    """Number of neurons whose maximum is not above 0."""
    n_duplicates: int
    """Number of windows with the same tokens as an earlier one, in all captures that are evidence."""
    n_ordinary: int
    seconds: float
    build_seconds: float
    """Those for building the graphs of the settings' gain."""


def evaluate(
    capture: Capture,
    *,
    neurons: Sequence[tuple[int, int]] | None = None,
    also: Sequence[Capture] = (),
    graphs: Sequence[Graphs] = (),
    settings: EvaluationSettings = EvaluationSettings(),
    progress: Callable[[int, int], None] = lambda done, n_neurons: None,
) -> Evaluation:
    """The scores of graphs of a capture's neurons, each built without its test windows and tested there.

    neurons: (layer, index), all of the site by default. also: further captures of the same store that are evidence; windows
    with the tokens of a test window are left out there too. graphs: sets that are evaluated as they are stored; they must have
    been built without the same windows (`describe_leak`).
    """
    began = time.perf_counter()
    return _EvaluationRun(capture, neurons, also, graphs, settings).run(began, progress)


class _EvaluationRun:
    """The state of one call of `evaluate`."""

    def __init__(
        self,
        capture: Capture,
        neurons: Sequence[tuple[int, int]] | None,
        also: Sequence[Capture],
        graphs: Sequence[Graphs],
        settings: EvaluationSettings,
    ) -> None:
        captures = (capture, *also)
        self.graphs, self.settings, self.threads = graphs, settings, settings.threads or default_threads()
        self.neurons = select_neurons(captures, settings.site, neurons)
        self.reader = SampleReader(
            captures,
            settings.split,
            site=settings.site,
            share=settings.graph.share,
            max_depth=settings.graph.max_depth,
        )
        self.contexts, self.ordinary = self.reader.contexts, self.reader.ordinary
        self.entries = {length: find_entries(self.contexts.trie, length) for length in (1, 2)}
        gains = dict.fromkeys((settings.graph.gain, *settings.gains))
        self.curve = {gain: Method() for gain in gains}
        self.baselines = {f"{name}, {rule}": Method() for name in LOOKUPS for rule in RULES}
        self.baselines |= {one.name: Method() for one in graphs}
        self.build_seconds = 0.0
        self.few_exemplars = self.never_fire = 0

    def run(self, began: float, progress: Callable[[int, int], None]) -> Evaluation:
        done = 0
        progress(done, len(self.neurons))
        with ThreadPoolExecutor(self.threads, thread_name_prefix="actstore-evaluation") as pool:
            for layer, indices in _chunks(self.neurons):
                samples = list(pool.map(lambda index, layer=layer: self.reader.read(layer, index), indices))
                self._count(samples)
                self._evaluate_chunk(layer, samples)
                done += len(indices)
                progress(done, len(self.neurons))
        windows = self.reader.windows
        return Evaluation(
            self.neurons,
            self.curve[self.settings.graph.gain],
            self.baselines,
            self.curve,
            self.few_exemplars,
            self.never_fire,
            int((windows.first_copy != np.arange(len(windows))).sum()),
            len(self.reader.split.ordinary),
            time.perf_counter() - began,
            self.build_seconds,
        )

    def _count(self, samples: list[Sample]) -> None:
        n_exemplars = self.settings.split.n_exemplars
        self.few_exemplars += sum(sample.n_firing < n_exemplars for sample in samples if sample.maximum > 0)
        self.never_fire += sum(sample.maximum == 0 for sample in samples)

    def _evaluate_chunk(self, layer: int, samples: list[Sample]) -> None:
        """Build the graphs of some neurons of a layer, and score them and the baselines."""
        settings = self.settings.graph
        counts = [len(sample.ranks) for sample in samples]
        events = Events(
            np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
            np.concatenate([np.empty(0, np.int32), *(sample.ranks for sample in samples)]),
            np.concatenate([np.empty(0, np.float32), *(sample.values for sample in samples)]),
            np.concatenate([np.empty(0, np.float32), *(sample.silent for sample in samples)]),
            np.array([sample.rest for sample in samples]),
            np.array([sample.maximum for sample in samples], np.float32),
        )
        thresholds = np.full(len(samples), settings.threshold, np.float32)
        began = time.perf_counter()
        for gain, method in self.curve.items():
            with_gain = dataclasses.replace(settings, gain=gain)
            nodes = grow(self.contexts, events, with_gain, [sample.held_out for sample in samples], self.threads)
            if gain == settings.gain:
                self.build_seconds += time.perf_counter() - began
            self._score_graphs(method, layer, samples, nodes, thresholds, [False] * len(samples))
            began = time.perf_counter()
        for one in self.graphs:
            self._score_graphs(self.baselines[one.name], layer, samples, *_stored_graphs(one, layer, samples))
        for sample in samples:
            self._score_tables(layer, sample)

    def _score_graphs(
        self, method: Method, layer: int, samples: list[Sample], nodes: Nodes, thresholds: NDArray[np.float32],
        failed: list[bool],
    ) -> None:  # fmt: skip
        fires, values = self.ordinary.predict(nodes, thresholds, self.threads)
        share = self.settings.graph.share
        for i, sample in enumerate(samples):
            graph = _nodes_of(nodes, i)
            on_test = sample.test.predict(graph, thresholds[i : i + 1], 1)
            method.exemplars.add(layer, score(on_test[0][0], on_test[1][0], sample.on_test, share), failed=failed[i])
            method.ordinary.add(layer, score(fires[i], values[i], sample.on_ordinary, share), failed=failed[i])
            method.n_nodes.append(len(graph.token))

    def _score_tables(self, layer: int, sample: Sample) -> None:
        share = self.settings.graph.share
        for name, (length, of_exemplars) in LOOKUPS.items():
            table = self._table(self.entries[length], sample, of_exemplars=of_exemplars)
            for kind, windows, truth in (
                ("exemplars", sample.test, sample.on_test),
                ("ordinary", self.ordinary, sample.on_ordinary),
            ):
                entry = self.entries[length].of_rank[self.contexts.rank[windows.tokens]]
                probability, value = table.probability[entry], table.value[entry]
                for rule, minimum in RULES.items():
                    fires = (probability > 0) & (probability >= minimum)
                    getattr(self.baselines[f"{name}, {rule}"], kind).add(layer, score(fires, value, truth, share))

    def _table(self, entries: Entries, sample: Sample, *, of_exemplars: bool) -> Table:
        if not of_exemplars:
            counts = entries.counts - count_entries(entries, sample.held_out)
            return make_table(entries, sample.ranks, sample.values, counts)
        in_exemplars = np.isin(sample.ranks, sample.build)
        counts = count_entries(entries, sample.build)
        return make_table(entries, sample.ranks[in_exemplars], sample.values[in_exemplars], counts)


def describe_leak(graphs: Graphs, capture: Capture, settings: EvaluationSettings) -> str | None:
    """Why graphs of a set may have learned from the test windows; None where their record says that they have not.

    Their record says so by the setting `protocol`, the fields of the `SplitSettings` of their split, or, where they were built
    from probes, by the probes' settings `asked`.
    """
    record, tested = graphs.record, dataclasses.asdict(settings.split)
    if record.capture != capture.record.name or record.plan_fingerprint != capture.record.plan.fingerprint:
        return f"graphs {graphs.name!r} were built from another capture, {record.capture!r}."
    # The words of the records: `protocol` is a split's settings, `asked` those of the probes.
    held_out, probed = record.settings.get("protocol"), record.settings.get("asked")
    if held_out is None and isinstance(probed, dict) and {"n_exemplars", "seed"} <= set(probed):
        held_out = dataclasses.asdict(SplitSettings(n_exemplars=probed["n_exemplars"], seed=probed["seed"]))
    if held_out == tested:
        return None
    return (
        f"graphs {graphs.name!r} may have learned from the windows that test them here: they "
        f"{'left out none' if held_out is None else f'left out those of {held_out}'}, and the test is of {tested}."
    )


def _chunks(neurons: list[tuple[int, int]]) -> Iterator[tuple[int, list[int]]]:
    """The layer and the neurons of each chunk: at most `CHUNK` of one layer."""
    start = 0
    while start < len(neurons):
        layer = neurons[start][0]
        indices = [index for other, index in neurons[start : start + CHUNK] if other == layer]
        yield layer, indices
        start += len(indices)


def _nodes_of(nodes: Nodes, neuron: int) -> Nodes:
    """The nodes of one neuron alone."""
    first, last = nodes.offsets[neuron : neuron + 2].tolist()
    columns: list[Any] = [column[first:last] for column in nodes[1:]]
    return Nodes(np.array([0, last - first]), *columns)


def _stored_graphs(graphs: Graphs, layer: int, samples: list[Sample]) -> tuple[Nodes, NDArray[np.float32], list[bool]]:
    """The nodes of some neurons in a stored set, their thresholds, and which of the neurons failed.

    A neuron failed that fires somewhere in the capture and has no graph in the set, or an empty one with a reason.
    """
    stored = [graphs.graph(layer, s.neuron) if (layer, s.neuron) in graphs else None for s in samples]
    nodes = [one.nodes if one is not None else None for one in stored]
    sizes = [len(one.token) if one is not None else 0 for one in nodes]
    empty = graphs.tries(0, 0)
    columns: list[Any] = [np.concatenate(parts) for parts in zip(*((one or empty)[1:] for one in nodes), strict=True)]
    thresholds = np.array([one.threshold if one is not None else 1.0 for one in stored], np.float32)
    failed = [
        sample.maximum > 0 and (one is None or (one.status != "" and len(one) == 0))
        for sample, one in zip(samples, stored, strict=True)
    ]
    return Nodes(np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]), *columns), thresholds, failed
