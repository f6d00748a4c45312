"""How well neuron graphs predict firing on windows that they have not seen, beside what plain tables predict from the same.

For each neuron a graph is built anew without its test windows (`engine.graph.split`), from the store; graphs of other methods
are evaluated as they stand. No model runs, nothing is written.
"""

from __future__ import annotations

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from actstore.engine.graphs.build import Events, GraphSettings, grow
from actstore.engine.graphs.lookup import Entries, Table, count_entries, find_entries, make_table
from actstore.engine.graphs.samples import Reader, choose_neurons
from actstore.engine.graphs.scores import Tally, score
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
"""Neurons whose test windows are held in memory at once: some 200 kB each where windows have 256 tokens."""

LOOKUPS = {
    "token lookup, exemplars": (1, True),
    "bigram lookup, exemplars": (2, True),
    "token lookup, corpus": (1, False),
    "bigram lookup, corpus": (2, False),
}
"""Name → run of tokens that is looked up, whether only the exemplars to build from are evidence, or all but test windows."""
RULES = {"any": 0.0, "most": 0.5}
"""A table says that a neuron fires where it did in any of the occurrences, or in at least half of them."""


@dataclass(frozen=True)
class EvaluationSettings(Typed):
    """What is evaluated and how."""

    graph: GraphSettings = field(default_factory=GraphSettings)
    split: SplitSettings = field(default_factory=SplitSettings)
    site: str = "mlp.post"
    gains: tuple[float, ...] = ()
    """Further values of the graphs' `gain`, for F1 against the number of nodes."""
    threads: int | None = None


@dataclass
class Method:
    """What one method predicted."""

    exemplars: Tally = field(default_factory=Tally)
    ordinary: Tally = field(default_factory=Tally)
    n_nodes: list[int] = field(default_factory=list)
    """Of each neuron's graph; empty for tables."""

    @property
    def n_failed(self) -> int:
        """Neurons without a graph although they fire somewhere in the capture."""
        return sum(self.exemplars.failed)


@dataclass
class Evaluation:
    """What `evaluate` found."""

    neurons: list[tuple[int, int]]
    method: Method
    """The graphs that were built here."""
    baselines: dict[str, Method]
    """The tables; then graphs of other methods, by the name of their set."""
    curve: dict[float, Method]
    """gain → graphs built with it, the one asked for among them."""
    few_exemplars: int
    """Neurons with fewer windows that fire than exemplars asked for."""
    never_fire: int
    """Neurons whose maximum is not above 0."""
    n_duplicates: int
    """Windows of the same tokens as another, in all captures that are evidence."""
    n_ordinary: int
    seconds: float
    build_seconds: float
    """Of them for building the graphs."""


def evaluate(
    capture: Capture,
    *,
    neurons: Sequence[tuple[int, int]] | None = None,
    also: Sequence[Capture] = (),
    graphs: Sequence[Graphs] = (),
    settings: EvaluationSettings = EvaluationSettings(),
    progress: Callable[[int, int], None] = lambda done, n_neurons: None,
) -> Evaluation:
    """Graphs of a capture's neurons, each built without its test windows, held against what the neurons do there.

    neurons: (layer, index), all of the site unless given. also: captures of the same store that are evidence beside it;
    windows that read the same as a test window are left out there too. graphs: sets to evaluate as they are; who built them
    must have left out the same windows.
    """
    began = time.perf_counter()
    return _Run(capture, neurons, also, graphs, settings).run(began, progress)


class _Run:
    """One evaluation on its way."""

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
        self.neurons = choose_neurons(captures, settings.site, neurons)
        self.reader = Reader(
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
            for layer, part in _chunks(self.neurons):
                samples = list(pool.map(lambda neuron, layer=layer: self.reader.read(layer, neuron), part))
                self._count(samples)
                self._chunk(layer, samples)
                done += len(part)
                progress(done, len(self.neurons))
        windows = self.reader.windows
        return Evaluation(
            self.neurons,
            self.curve[self.settings.graph.gain],
            self.baselines,
            self.curve,
            self.few_exemplars,
            self.never_fire,
            int((windows.same != np.arange(len(windows))).sum()),
            len(self.reader.split.ordinary),
            time.perf_counter() - began,
            self.build_seconds,
        )

    def _count(self, samples: list[Sample]) -> None:
        wanted = self.settings.split.n_exemplars
        self.few_exemplars += sum(sample.n_firing < wanted for sample in samples if sample.maximum > 0)
        self.never_fire += sum(sample.maximum == 0 for sample in samples)

    def _chunk(self, layer: int, samples: list[Sample]) -> None:
        """Build, predict and count for some neurons of a layer."""
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
            grown = dataclasses.replace(settings, gain=gain)
            nodes = grow(self.contexts, events, grown, [sample.held for sample in samples], self.threads)
            if gain == settings.gain:
                self.build_seconds += time.perf_counter() - began
            self._score_graphs(method, layer, samples, nodes, thresholds, [False] * len(samples))
            began = time.perf_counter()
        for one in self.graphs:
            self._score_graphs(self.baselines[one.name], layer, samples, *_stored(one, layer, samples))
        for sample in samples:
            self._score_tables(layer, sample)

    def _score_graphs(
        self, method: Method, layer: int, samples: list[Sample], nodes: Nodes, thresholds: NDArray[np.float32],
        failed: list[bool],
    ) -> None:  # fmt: skip
        says, values = self.ordinary.predict(nodes, thresholds, self.threads)
        share = self.settings.graph.share
        for i, sample in enumerate(samples):
            of_one = _one(nodes, i)
            on_test = sample.test.predict(of_one, thresholds[i : i + 1], 1)
            method.exemplars.add(layer, score(on_test[0][0], on_test[1][0], sample.on_test, share), failed=failed[i])
            method.ordinary.add(layer, score(says[i], values[i], sample.on_ordinary, share), failed=failed[i])
            method.n_nodes.append(len(of_one.token))

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
                for rule, least in RULES.items():
                    says = (probability > 0) & (probability >= least)
                    getattr(self.baselines[f"{name}, {rule}"], kind).add(layer, score(says, value, truth, share))

    def _table(self, entries: Entries, sample: Sample, *, of_exemplars: bool) -> Table:
        if not of_exemplars:
            counts = entries.counts - count_entries(entries, sample.held)
            return make_table(entries, sample.ranks, sample.values, counts)
        within = np.isin(sample.ranks, sample.build)
        return make_table(entries, sample.ranks[within], sample.values[within], count_entries(entries, sample.build))


def describe_leak(graphs: Graphs, capture: Capture, settings: EvaluationSettings) -> str | None:
    """Why graphs of a set may know the test windows; None where they say that they left them out.

    They say so by a setting `protocol`, the fields of the `SplitSettings` whose split they learned from, or, where they were built
    from probes, by what was `asked`.
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
    """Layer and neurons of each chunk."""
    start = 0
    while start < len(neurons):
        layer = neurons[start][0]
        part = [neuron for of, neuron in neurons[start : start + CHUNK] if of == layer]
        yield layer, part
        start += len(part)


def _one(nodes: Nodes, neuron: int) -> Nodes:
    first, last = nodes.offsets[neuron : neuron + 2].tolist()
    columns: list[Any] = [column[first:last] for column in nodes[1:]]
    return Nodes(np.array([0, last - first]), *columns)


def _stored(graphs: Graphs, layer: int, samples: list[Sample]) -> tuple[Nodes, NDArray[np.float32], list[bool]]:
    """The graphs of some neurons as they stand in a set, their thresholds, and which of them failed.

    A neuron fails that fires somewhere in the capture and has no graph in the set, or one with nothing in it but a reason.
    """
    found = [graphs.graph(layer, s.neuron) if (layer, s.neuron) in graphs else None for s in samples]
    nodes = [one.nodes if one is not None else None for one in found]
    sizes = [len(one.token) if one is not None else 0 for one in nodes]
    empty = graphs.tries(0, 0)
    columns: list[Any] = [np.concatenate(parts) for parts in zip(*((one or empty)[1:] for one in nodes), strict=True)]
    thresholds = np.array([one.threshold if one is not None else 1.0 for one in found], np.float32)
    failed = [
        sample.maximum > 0 and (one is None or (one.status != "" and len(one) == 0))
        for sample, one in zip(samples, found, strict=True)
    ]
    return Nodes(np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]), *columns), thresholds, failed
