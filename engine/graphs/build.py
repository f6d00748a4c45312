"""The graphs of a capture's neurons, computed from the stored activations: no model runs.

Of every context, the corpus gives the number of its occurrences and the number of those at which a neuron fires. One chunk of
neurons at a time, the activations are read over all blocks, reduced to the positions that fire (`Events`), and turned into
graphs by `kernels.suffix_trie`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable  # noqa: TC003 - the types of settings are looked up at run time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from actstore.engine.graphs.contexts import Contexts, read_contexts
from actstore.engine.graphs.events import Events, find_events, most_events
from actstore.engine.graphs.methods import CORPUS, METHODS
from actstore.engine.graphs.selection import select_neurons
from actstore.engine.graphs.values import values_with
from actstore.engine.workers.scan import HERE, Scan
from actstore.kernels.suffix_trie.api import MAX_DEPTH, Nodes, Settings, build
from actstore.store.arguments import Typed
from actstore.store.errors import InvalidInputError
from actstore.store.graphs.reader import GraphRecord, Graphs
from actstore.store.graphs.record import NEVER_FIRES, THRESHOLD
from actstore.store.graphs.writer import GraphWriter
from actstore.store.model.root import written_by
from actstore.store.reader import Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from actstore.engine.workers.executor import Executor
    from actstore.store.reader import Capture
    from actstore.store.storage.folder import Folder

BYTES_PER_EVENT = 32
"""Memory of one firing position of a neuron, until its chunk is done."""
MAX_CHUNK_VALUES = 1 << 27
"""Activations that a chunk reads, unless it is one neuron: a second or two, which is what an interruption loses."""
CHUNKS_PER_WORKER = 16
"""Minimum number of chunks per worker, where there are several: who is done first has something to go on with."""


@dataclass(frozen=True)
class GraphSettings(Typed):
    """When a neuron counts as firing, and which contexts become nodes of its graph."""

    share: float = 0.5
    """A neuron fires where its activation is at least this share of its maximum over the capture."""
    threshold: float = THRESHOLD
    """Minimum probability at which a graph predicts that the neuron fires."""
    gain: float = 0.25
    """Minimum increase of the expected log-likelihood by a node, in nats; below 0, all contexts become nodes."""
    kappa: float = 1.0
    """Pseudo-count of the prior, which is the probability in the shorter context."""
    max_depth: int = MAX_DEPTH
    """Maximum number of tokens before the activating one."""
    nodes: int | None = None
    """Maximum number of nodes per neuron, those that add most; None is no limit."""
    max_skip: int = 3
    """Maximum number of consecutive tokens that a path may ignore."""
    margin: float = 5.0
    """Minimum advantage of ignoring tokens over distinguishing them, in nats."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise InvalidInputError(f"`share` must be above 0 and at most 1, found {self.share}.")
        if not 0 < self.threshold <= 1:
            raise InvalidInputError(f"`threshold` must be a probability above 0 and at most 1, found {self.threshold}.")
        if not self.kappa > 0:
            raise InvalidInputError(f"`kappa` must be above 0, found {self.kappa}.")
        if not 0 <= self.max_depth <= 255:
            raise InvalidInputError(f"`max_depth` must be from 0 to 255, found {self.max_depth}.")
        if self.nodes is not None and not 1 <= self.nodes < 1 << 31:
            raise InvalidInputError(f"`nodes` must be 1 or more, found {self.nodes}.")
        if self.max_skip < 0 or not self.margin >= 0:
            raise InvalidInputError(
                f"`max_skip` and `margin` must be 0 or more, found {self.max_skip} and {self.margin}."
            )

    def of_trie(self) -> Settings:
        """The settings that the kernel of the trie takes."""
        return Settings(self.kappa, self.gain, self.max_depth, self.max_skip, self.margin, self.nodes or 0)


def grow(
    contexts: Contexts,
    events: Events,
    settings: GraphSettings,
    held_out: Sequence[NDArray[np.int32]] | None = None,
    threads: int | None = None,
) -> Nodes:
    """The graphs of the neurons of `events`.

    held_out: [neuron] the ranks that are not evidence (`Contexts.ranks_of_windows`); none by default.
    """
    ragged = None
    if held_out is not None:
        offsets = np.concatenate([[0], np.cumsum([len(ranks) for ranks in held_out], dtype=np.int64)])
        ragged = offsets, np.concatenate([np.empty(0, np.int32), *held_out])
    nodes = build(
        contexts.trie, events.offsets, events.ranks, events.values, rest=events.rest, held_out=ragged,
        settings=settings.of_trie(), threads=threads,
    )  # fmt: skip
    tokens = contexts.trie.ids[contexts.trie.input_index[events.ranks]]
    return nodes._replace(value=values_with(nodes, events.offsets, tokens, events.silent, events.rest))


@dataclass(frozen=True)
class BuildOptions(Typed):
    """Settings of a build that do not change its graphs."""

    memory: int = 1 << 30
    """Maximum number of bytes for the firing positions of neurons that are built together, by all workers; the contexts, which
    every worker has, are not counted."""
    resume: bool = False
    """Continue an interrupted build."""
    threads: int | None = None
    progress: Callable[[int, int], None] = lambda done, n_neurons: None
    """Called with the number of neurons done and the number of all."""


def build_graphs(
    capture: Capture,
    folder: Folder,
    *,
    name: str = METHODS[CORPUS].set_name,
    site: str = "mlp.post",
    neurons: Iterable[tuple[int, int]] | None = None,
    leave_out: Iterable[int] = (),
    also: Sequence[Capture] = (),
    settings: GraphSettings = GraphSettings(),
    options: BuildOptions = BuildOptions(),
    executor: Executor = HERE,
) -> Graphs:
    """Build the graphs of a capture's neurons into its store, opened for writing as `folder`.

    neurons: (layer, index), all of the site by default. leave_out: windows that are not evidence. also: further captures of
    the same store that are evidence. An interrupted build that is continued with `options.resume` ends with the same bytes, and
    so does one of which the workers of `executor` build some neurons each.
    """
    selection = select_neurons([capture], site, neurons)
    windows = sorted({int(window) for window in leave_out})
    _check_windows(capture, windows)
    contexts = read_contexts(capture, settings.max_depth, also)
    record = _describe(capture, name, site, settings, selection, windows, also)
    builder = _Builder(capture, tuple(also), site, settings, windows, contexts, options.threads)
    size = MAX_CHUNK_VALUES // max(contexts.n_positions, 1)
    if executor.n_workers > 1:
        size = min(size, -(-len(selection) // (CHUNKS_PER_WORKER * executor.n_workers)))
    max_events = options.memory // executor.n_workers // BYTES_PER_EVENT
    n_events = _EventCounts((capture, *also), site, settings.share)
    scan = Scan(executor, "the graphs of", "Run it again with `resume=True`")
    with GraphWriter(folder, record, resume=options.resume) as writer:
        done = writer.n_done
        options.progress(done, len(selection))
        for chunk, nodes, maximum, counts in scan(builder, _chunks(selection[done:], n_events, max_events, size)):
            status = [NEVER_FIRES if n == 0 else "" for n in counts.tolist()]
            writer.add(
                chunk.layer, chunk.neurons, nodes, maximum=maximum, n_events=counts, threshold=settings.threshold,
                status=status,
            )  # fmt: skip
            done += len(chunk.neurons)
            options.progress(done, len(selection))
        writer.close()
    return Graphs(Store(capture.folder), name)


class _Chunk(NamedTuple):
    """Neurons of one layer that are built together."""

    layer: int
    neurons: list[int]

    def __str__(self) -> str:
        first, last = (f"L{self.layer}.N{neuron}" for neuron in (self.neurons[0], self.neurons[-1]))
        return first if first == last else f"{first} to {last}"


class _EventCounts:
    """The most positions at which a neuron can fire, by the statistics, which are read layer by layer."""

    def __init__(self, captures: tuple[Capture, ...], site: str, share: float) -> None:
        self._captures, self._site, self._share = captures, site, share
        self._layer, self._of_layer = -1, np.empty(0, np.int64)

    def __call__(self, layer: int, neuron: int) -> int:
        if layer != self._layer:
            self._of_layer = most_events(self._captures, layer, self._site, self._share)
            self._layer = layer
        return int(self._of_layer[neuron])


def _chunks(
    selection: list[tuple[int, int]], n_events: Callable[[int, int], int], max_events: int, size: int
) -> Iterator[_Chunk]:
    """The neurons in their order: of one layer, at most `size` of them, with at most `max_events` firing positions together.

    One neuron is a chunk, whatever it takes.
    """
    chunk, events = _Chunk(-1, []), 0
    for layer, neuron in selection:
        n = n_events(layer, neuron)
        if chunk.neurons and (layer != chunk.layer or len(chunk.neurons) >= size or events + n > max_events):
            yield chunk
            chunk, events = _Chunk(layer, []), 0
        chunk = chunk._replace(layer=layer)
        chunk.neurons.append(neuron)
        events += n
    if chunk.neurons:
        yield chunk


@dataclass(frozen=True)
class _Builder:
    """What builds the graphs of a chunk, here or in a worker: of a chunk, itself, nodes, and maxima and events per neuron.

    The contexts are sent to workers, as sorting them takes longer than copying them.
    """

    capture: Capture
    also: tuple[Capture, ...]
    site: str
    settings: GraphSettings
    windows: list[int]
    contexts: Contexts
    threads: int | None

    def __call__(self, chunk: _Chunk) -> tuple[_Chunk, Nodes, NDArray[np.float32], NDArray[np.int64]]:
        held_out = self._held_out
        events = find_events(
            self.capture, self.contexts, chunk.layer, chunk.neurons, site=self.site, share=self.settings.share,
            also=self.also, held_out=held_out, threads=self.threads,
        )  # fmt: skip
        left_out = [held_out] * len(chunk.neurons) if self.windows else None
        nodes = grow(self.contexts, events, self.settings, left_out, self.threads)
        return chunk, nodes, events.maximum, np.diff(events.offsets)

    @cached_property
    def _held_out(self) -> NDArray[np.int32]:
        return self.contexts.ranks_of_windows(self.windows)


def _check_windows(capture: Capture, windows: list[int]) -> None:
    n_windows = capture.record.plan.n_windows
    if windows and not 0 <= windows[0] <= windows[-1] < n_windows:
        outside = windows[0] if windows[0] < 0 else windows[-1]
        raise InvalidInputError(
            f"Capture {capture.record.name!r} has windows 0 to {n_windows - 1}, found {outside} to leave out. "
            "Check `leave_out`."
        )


def _describe(
    capture: Capture,
    name: str,
    site: str,
    settings: GraphSettings,
    selection: list[tuple[int, int]],
    windows: list[int],
    also: Sequence[Capture],
) -> GraphRecord:
    layers: dict[str, list[int]] = {}
    for layer, neuron in selection:
        layers.setdefault(str(layer), []).append(neuron)
    widths = capture.record.layers(site)
    neurons = {layer: "all" if len(indices) == widths[int(layer)] else indices for layer, indices in layers.items()}
    plan = capture.record.plan
    return GraphRecord(
        name=name,
        method=CORPUS,
        written_by=written_by(),
        model_fingerprint=capture.record.model_fingerprint,
        tokenizer_fingerprint=plan.tokenizer_fingerprint,
        capture=capture.record.name,
        plan_fingerprint=plan.fingerprint,
        capture_identity=capture.record.identity,
        site=site,
        settings=dataclasses.asdict(settings)
        # How nodes are chosen: a build that an earlier version began is not resumed by another rule.
        | {"chosen_by": "expected likelihood, of unseen contexts too", "neurons": neurons}
        | {"leave_out": windows, "blocks": len(capture.blocks)}
        | {"also": {one.record.name: [one.record.plan.fingerprint, len(one.blocks)] for one in also}},
        n_neurons=len(selection),
        files={},
    )
