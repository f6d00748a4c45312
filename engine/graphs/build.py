"""The graphs of a capture's neurons, from what the store holds: no model runs.

The corpus says of every context how often it occurs and how often a neuron fires there. Chunk after chunk of neurons, their
activations are read over all blocks, where they fire is kept, and `kernels.suffix_trie` makes a graph of that. Knows nothing
about how graphs lie on disk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable  # noqa: TC003 - the types of settings are looked up at run time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from actstore.engine.graphs.contexts import Contexts, read_contexts
from actstore.engine.graphs.methods import CORPUS
from actstore.engine.graphs.values import silent_means, values_with
from actstore.kernels.jit import default_threads
from actstore.kernels.suffix_trie.api import MAX_DEPTH, Nodes, Settings, build
from actstore.store.arguments import Typed
from actstore.store.capture.overflow import saturate
from actstore.store.capture.saturation import overflows_in_any, saturated_maxima
from actstore.store.capture.statistics import layer_offsets
from actstore.store.errors import InvalidInputError
from actstore.store.graphs.reader import GraphRecord, Graphs
from actstore.store.graphs.writer import GraphWriter
from actstore.store.model.root import written_by
from actstore.store.reader import Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from actstore.store.reader import Capture
    from actstore.store.storage.folder import Folder

NEVER_FIRES = "never fires"
BYTES_PER_EVENT = 32
"""What a firing position of a neuron takes until its chunk is done."""
MAX_CHUNK = 1024


@dataclass(frozen=True)
class GraphSettings(Typed):
    """What a graph is to say, and how much of it."""

    share: float = 0.5
    """A neuron fires where its activation is at least this share of its maximum over the capture."""
    threshold: float = 0.4
    """Least probability at which a graph says that the neuron fires."""
    gain: float = 0.5
    """Nats of leave-one-out likelihood that a node must add; below 0 every context that the corpus tells apart is kept."""
    kappa: float = 1.0
    """Pseudo-count with which a longer context starts from what the shorter one says."""
    max_depth: int = MAX_DEPTH
    """Tokens before the activating one that a graph looks back."""
    max_skip: int = 3
    """Most tokens in a row that a path may ignore."""
    margin: float = 5.0
    """Nats by which ignoring tokens must be better than telling them apart."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise InvalidInputError(f"--share is a share above 0, at most 1, found {self.share}.")
        if not 0 < self.threshold <= 1:
            raise InvalidInputError(f"--threshold is a probability above 0, at most 1, found {self.threshold}.")
        if not self.kappa > 0:
            raise InvalidInputError(f"--kappa must be above 0, found {self.kappa}.")
        if not 0 <= self.max_depth <= 255:
            raise InvalidInputError(f"--max-depth must be from 0 to 255, found {self.max_depth}.")
        if self.max_skip < 0 or not self.margin >= 0:
            raise InvalidInputError(f"Skips and their margin must be 0 or more, found {self.max_skip}, {self.margin}.")

    def of_trie(self) -> Settings:
        """Those of them that the trie's kernel takes."""
        return Settings(self.kappa, self.gain, self.max_depth, self.max_skip, self.margin)


class Events(NamedTuple):
    """Where some neurons of a layer fire."""

    offsets: NDArray[np.int64]
    """[neuron + 1]"""
    ranks: NDArray[np.int32]
    """[event] ranks of the contexts, ascending within a neuron."""
    values: NDArray[np.float32]
    """[event] activations, in shares of the neuron's maximum."""
    silent: NDArray[np.float32]
    """[event] mean activation where the neuron does not fire at the event's token."""
    rest: NDArray[np.float64]
    """[neuron] mean activation elsewhere, in shares of the maximum."""
    maximum: NDArray[np.float32]
    """[neuron] over the capture; a neuron whose maximum is not above 0 never fires."""


def find_events(
    capture: Capture,
    contexts: Contexts,
    layer: int,
    neurons: Sequence[int],
    *,
    site: str = "mlp.post",
    share: float = 0.5,
    also: Sequence[Capture] = (),
    held_out: NDArray[np.int32] | None = None,
    threads: int | None = None,
) -> Events:
    """Where neurons of a layer fire: at positions of text with at least `share` of the neuron's maximum.

    The maximum is that of the capture's statistics, in the captures of `also` too: their contexts come behind its own in
    `contexts`. What is not finite never fires. Of values that were too large for precision half, and of their maximum, is
    known that they are 65,504 or more, which they count as in all captures. held_out: ranks whose activations do not count in
    `Events.silent`.
    """
    captures = (capture, *also)
    of_captures = [one.layer_statistics(layer, site) for one in captures]
    which = np.asarray(neurons, np.int64)
    overflows = overflows_in_any(captures, layer, site)
    maximum = saturated_maxima(capture, layer, site, overflows)[which]
    overflows = overflows[which]
    scale = np.where((maximum > 0) & np.isfinite(maximum), maximum, 1).astype(np.float64)
    seen = np.sum([statistics.count[which] for statistics in of_captures], axis=0)
    total = np.sum([np.where(s.count > 0, s.mean * s.count, 0)[which] for s in of_captures], axis=0)
    ids = contexts.ids
    counted = contexts.counted(held_out)

    def find(number: int) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32], float]:
        largest = float(maximum[number])
        if not 0 < largest < np.inf:
            return np.empty(0, np.int32), np.empty(0, np.float32), np.empty(0, np.float32), 0.0
        parts = [one.activations(layer, int(which[number]), site) for one in captures]
        values = parts[0] if len(parts) == 1 else np.concatenate(parts)
        values = saturate(values[None], overflows[number : number + 1])[0]
        is_hit = values >= np.float32(share * largest)
        hits = np.flatnonzero(is_hit)
        ranks = contexts.rank[hits]
        shares = (values[hits] / np.float32(largest)).astype(np.float32, copy=False)
        fires = (ranks >= 0) & np.isfinite(shares)
        ranks, shares, hits = ranks[fires], shares[fires], hits[fires]
        rest = float((total[number] / scale[number] - shares.sum(dtype=np.float64)) / max(seen[number] - len(ranks), 1))
        if overflows[number]:  # the statistics are of the values as they were
            elsewhere = values[(contexts.rank >= 0) & ~is_hit]
            rest = float(elsewhere[np.isfinite(elsewhere)].mean(dtype=np.float64) / largest) if len(elsewhere) else 0.0
        rest = rest if np.isfinite(rest) else 0.0
        means = silent_means(ids, values, counted & ~is_hit, ids[hits], rest * largest) / largest
        order = np.argsort(ranks)
        return ranks[order], shares[order], means[order].astype(np.float32), rest

    n_threads = min(threads or default_threads(), max(1, len(which)))
    with ThreadPoolExecutor(n_threads, thread_name_prefix="actstore-events") as pool:
        found = list(pool.map(find, range(len(which))))
    return Events(
        np.cumsum([0, *(len(ranks) for ranks, *_ in found)], dtype=np.int64),
        np.concatenate([np.empty(0, np.int32), *(ranks for ranks, *_ in found)]),
        np.concatenate([np.empty(0, np.float32), *(shares for _, shares, *_ in found)]),
        np.concatenate([np.empty(0, np.float32), *(means for *_, means, _ in found)]),
        np.array([rest for *_, rest in found], np.float64),
        maximum,
    )


def grow(
    contexts: Contexts,
    events: Events,
    settings: GraphSettings,
    held_out: Sequence[NDArray[np.int32]] | None = None,
    threads: int | None = None,
) -> Nodes:
    """The graphs of the neurons of `events`.

    held_out: for each neuron, ranks that are not evidence (`Contexts.ranks_of_windows`); none unless given.
    """
    held = None
    if held_out is not None:
        offsets = np.concatenate([[0], np.cumsum([len(ranks) for ranks in held_out], dtype=np.int64)])
        held = offsets, np.concatenate([np.empty(0, np.int32), *held_out])
    nodes = build(
        contexts.trie, events.offsets, events.ranks, events.values, rest=events.rest, held_out=held,
        settings=settings.of_trie(), threads=threads,
    )  # fmt: skip
    fired = contexts.trie.ids[contexts.trie.input_index[events.ranks]]
    return nodes._replace(value=values_with(nodes, events.offsets, fired, events.silent, events.rest))


@dataclass(frozen=True)
class BuildOptions(Typed):
    """What does not change a graph."""

    memory: int = 1 << 30
    """Bytes that the firing positions of a chunk of neurons may take; the contexts come on top."""
    resume: bool = False
    threads: int | None = None
    progress: Callable[[int, int], None] = lambda done, n_neurons: None
    """Called with the neurons done and their number."""


def build_graphs(
    capture: Capture,
    folder: Folder,
    *,
    name: str = "graphs",
    site: str = "mlp.post",
    neurons: Iterable[tuple[int, int]] | None = None,
    leave_out: Iterable[int] = (),
    also: Sequence[Capture] = (),
    settings: GraphSettings = GraphSettings(),
    options: BuildOptions = BuildOptions(),
) -> Graphs:
    """Build the graphs of a capture's neurons into its store, opened for writing as `folder`.

    neurons: (layer, index), all of the site unless given. leave_out: windows that are not evidence. also: captures of the
    same store whose contexts are evidence too. A build that was killed is continued with `options.resume`, and ends with
    the same bytes.
    """
    wanted = _ordered(capture, site, neurons)
    windows = sorted({int(window) for window in leave_out})
    _check_windows(capture, windows)
    contexts = read_contexts(capture, settings.max_depth, also)
    record = _describe(capture, name, site, settings, wanted, windows, also)
    writer = GraphWriter(folder, record, resume=options.resume)
    held = contexts.ranks_of_windows(windows)
    chunk = max(1, min(MAX_CHUNK, options.memory // (BYTES_PER_EVENT * max(contexts.n_positions, 1))))
    done = writer.n_done
    options.progress(done, len(wanted))
    while done < len(wanted):
        layer = wanted[done][0]
        part = [neuron for of, neuron in wanted[done : done + chunk] if of == layer]
        events = find_events(
            capture, contexts, layer, part, site=site, share=settings.share, also=also, held_out=held,
            threads=options.threads,
        )  # fmt: skip
        nodes = grow(contexts, events, settings, [held] * len(part) if windows else None, options.threads)
        counts = np.diff(events.offsets)
        status = [NEVER_FIRES if n == 0 else "" for n in counts.tolist()]
        writer.add(
            layer, part, nodes, maximum=events.maximum, n_events=counts, threshold=settings.threshold, status=status
        )  # fmt: skip
        done += len(part)
        options.progress(done, len(wanted))
    writer.close()
    return Graphs(Store(capture.folder), name)


def _ordered(capture: Capture, site: str, neurons: Iterable[tuple[int, int]] | None) -> list[tuple[int, int]]:
    if neurons is None:
        if site not in capture.record.sites:
            capture.check_neuron(0, 0, site)
        sizes = layer_offsets(capture.record, site).items()
        return [(layer, neuron) for layer, where in sorted(sizes) for neuron in range(where.stop - where.start)]
    wanted = sorted(set(neurons))
    for layer, neuron in wanted:
        capture.check_neuron(layer, neuron, site)
    return wanted


def _check_windows(capture: Capture, windows: list[int]) -> None:
    n_windows = capture.record.plan.n_windows
    if windows and not 0 <= windows[0] <= windows[-1] < n_windows:
        wrong = windows[0] if windows[0] < 0 else windows[-1]
        raise InvalidInputError(
            f"Capture {capture.record.name!r} has windows 0 to {n_windows - 1}, found {wrong} to leave out."
        )


def _describe(
    capture: Capture,
    name: str,
    site: str,
    settings: GraphSettings,
    wanted: list[tuple[int, int]],
    windows: list[int],
    also: Sequence[Capture],
) -> GraphRecord:
    layers: dict[str, list[int]] = {}
    for layer, neuron in wanted:
        layers.setdefault(str(layer), []).append(neuron)
    widths = capture.record.layers(site)
    chosen = {layer: "all" if len(indices) == widths[int(layer)] else indices for layer, indices in layers.items()}
    plan = capture.record.plan
    return GraphRecord(
        name=name,
        method=CORPUS,
        written_by=written_by(),
        model_fingerprint=capture.record.model_fingerprint,
        tokenizer_fingerprint=plan.tokenizer_fingerprint,
        capture=capture.record.name,
        plan_fingerprint=plan.fingerprint,
        site=site,
        settings=dataclasses.asdict(settings)
        | {"neurons": chosen, "leave_out": windows, "blocks": len(capture.blocks)}
        | {"also": {one.record.name: [one.record.plan.fingerprint, len(one.blocks)] for one in also}},
        n_neurons=len(wanted),
        files={},
    )
