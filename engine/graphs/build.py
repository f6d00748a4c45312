"""The graphs of a capture's neurons, computed from the stored activations: no model runs.

Of every context, the corpus gives the number of its occurrences and the number of those at which a neuron fires. One chunk of
neurons at a time, the activations are read over all blocks, reduced to the positions that fire (`Events`), and turned into
graphs by `kernels.suffix_trie`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable  # noqa: TC003 - the types of settings are looked up at run time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from actstore.engine.graphs.contexts import Contexts, read_contexts
from actstore.engine.graphs.methods import CORPUS, METHODS
from actstore.engine.graphs.selection import select_neurons
from actstore.engine.graphs.values import silent_means, values_with
from actstore.kernels.jit import default_threads
from actstore.kernels.suffix_trie.api import MAX_DEPTH, Nodes, Settings, build
from actstore.store.arguments import Typed
from actstore.store.capture.overflow import saturate
from actstore.store.capture.saturation import overflows_in_any, saturated_maxima
from actstore.store.errors import InvalidInputError
from actstore.store.graphs.reader import GraphRecord, Graphs
from actstore.store.graphs.record import NEVER_FIRES
from actstore.store.graphs.writer import GraphWriter
from actstore.store.model.root import written_by
from actstore.store.reader import Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from actstore.store.reader import Capture
    from actstore.store.storage.folder import Folder

BYTES_PER_EVENT = 32
"""Memory of one firing position of a neuron, until its chunk is done."""
MAX_CHUNK = 1024
"""Maximum number of neurons per chunk."""


@dataclass(frozen=True)
class GraphSettings(Typed):
    """When a neuron counts as firing, and which contexts become nodes of its graph."""

    share: float = 0.5
    """A neuron fires where its activation is at least this share of its maximum over the capture."""
    threshold: float = 0.4
    """Minimum probability at which a graph predicts that the neuron fires."""
    gain: float = 0.5
    """Minimum increase of the leave-one-out log-likelihood by a node, in nats; below 0, all contexts become nodes."""
    kappa: float = 1.0
    """Pseudo-count of the prior, which is the probability in the shorter context."""
    max_depth: int = MAX_DEPTH
    """Maximum number of tokens before the activating one."""
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
        if self.max_skip < 0 or not self.margin >= 0:
            raise InvalidInputError(
                f"`max_skip` and `margin` must be 0 or more, found {self.max_skip} and {self.margin}."
            )

    def of_trie(self) -> Settings:
        """The settings that the kernel of the trie takes."""
        return Settings(self.kappa, self.gain, self.max_depth, self.max_skip, self.margin)


class Events(NamedTuple):
    """The positions at which some neurons of a layer fire."""

    offsets: NDArray[np.int64]
    """[neuron + 1]"""
    ranks: NDArray[np.int32]
    """[event] ranks of the contexts, ascending within a neuron."""
    values: NDArray[np.float32]
    """[event] activations, as shares of the neuron's maximum."""
    silent: NDArray[np.float32]
    """[event] mean activation at the occurrences of the event's token at which the neuron does not fire."""
    rest: NDArray[np.float64]
    """[neuron] mean activation at all positions that do not fire, as a share of the maximum."""
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
    """The positions of text at which neurons of a layer fire: those with at least `share` of the neuron's maximum.

    The maximum is that of the statistics of `capture`, for the captures of `also` too; their positions follow its own in
    `contexts`. Values that are not finite never fire. Values too large for precision half, and their maximum, count as 65,504
    in all captures: the store only knows that they are at least that. held_out: ranks that are left out of `Events.silent`.
    """
    captures = (capture, *also)
    statistics = [one.layer_statistics(layer, site) for one in captures]
    indices = np.asarray(neurons, np.int64)
    overflows = overflows_in_any(captures, layer, site)
    maximum = saturated_maxima(capture, layer, site, overflows)[indices]
    overflows = overflows[indices]
    scale = np.where((maximum > 0) & np.isfinite(maximum), maximum, 1).astype(np.float64)
    n_seen = np.sum([s.count[indices] for s in statistics], axis=0)
    total = np.sum([np.where(s.count > 0, s.mean * s.count, 0)[indices] for s in statistics], axis=0)
    ids = contexts.ids
    is_evidence = contexts.is_evidence(held_out)

    def find_firing(number: int) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32], float]:
        largest = float(maximum[number])
        if not 0 < largest < np.inf:
            return np.empty(0, np.int32), np.empty(0, np.float32), np.empty(0, np.float32), 0.0
        parts = [one.activations(layer, int(indices[number]), site) for one in captures]
        values = parts[0] if len(parts) == 1 else np.concatenate(parts)
        values = saturate(values[None], overflows[number : number + 1])[0]
        is_hit = values >= np.float32(share * largest)
        hits = np.flatnonzero(is_hit)
        ranks = contexts.rank[hits]
        shares = (values[hits] / np.float32(largest)).astype(np.float32, copy=False)
        fires = (ranks >= 0) & np.isfinite(shares)
        ranks, shares, hits = ranks[fires], shares[fires], hits[fires]
        rest = float(
            (total[number] / scale[number] - shares.sum(dtype=np.float64)) / max(n_seen[number] - len(ranks), 1)
        )
        if overflows[number]:  # the statistics have the values from before they were saturated
            elsewhere = values[(contexts.rank >= 0) & ~is_hit]
            rest = float(elsewhere[np.isfinite(elsewhere)].mean(dtype=np.float64) / largest) if len(elsewhere) else 0.0
        rest = rest if np.isfinite(rest) else 0.0
        means = silent_means(ids, values, is_evidence & ~is_hit, ids[hits], rest * largest) / largest
        order = np.argsort(ranks)
        return ranks[order], shares[order], means[order].astype(np.float32), rest

    n_threads = min(threads or default_threads(), max(1, len(indices)))
    with ThreadPoolExecutor(n_threads, thread_name_prefix="actstore-events") as pool:
        neuron_events = list(pool.map(find_firing, range(len(indices))))
    return _join_events(neuron_events, maximum)


def _join_events(
    neuron_events: list[tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32], float]],
    maximum: NDArray[np.float32],
) -> Events:
    """The events of neurons one after another, from the ranks, values, silent means and rest of each."""
    return Events(
        np.cumsum([0, *(len(ranks) for ranks, *_ in neuron_events)], dtype=np.int64),
        np.concatenate([np.empty(0, np.int32), *(ranks for ranks, *_ in neuron_events)]),
        np.concatenate([np.empty(0, np.float32), *(shares for _, shares, *_ in neuron_events)]),
        np.concatenate([np.empty(0, np.float32), *(means for *_, means, _ in neuron_events)]),
        np.array([rest for *_, rest in neuron_events], np.float64),
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
    """Maximum number of bytes for the firing positions of a chunk of neurons; the contexts are not counted."""
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
) -> Graphs:
    """Build the graphs of a capture's neurons into its store, opened for writing as `folder`.

    neurons: (layer, index), all of the site by default. leave_out: windows that are not evidence. also: further captures of
    the same store that are evidence. An interrupted build that is continued with `options.resume` ends with the same bytes.
    """
    selection = select_neurons([capture], site, neurons)
    windows = sorted({int(window) for window in leave_out})
    _check_windows(capture, windows)
    contexts = read_contexts(capture, settings.max_depth, also)
    record = _describe(capture, name, site, settings, selection, windows, also)
    writer = GraphWriter(folder, record, resume=options.resume)
    held_out = contexts.ranks_of_windows(windows)
    chunk = max(1, min(MAX_CHUNK, options.memory // (BYTES_PER_EVENT * max(contexts.n_positions, 1))))
    done = writer.n_done
    options.progress(done, len(selection))
    while done < len(selection):
        layer = selection[done][0]
        indices = [index for other, index in selection[done : done + chunk] if other == layer]
        events = find_events(
            capture, contexts, layer, indices, site=site, share=settings.share, also=also, held_out=held_out,
            threads=options.threads,
        )  # fmt: skip
        nodes = grow(contexts, events, settings, [held_out] * len(indices) if windows else None, options.threads)
        counts = np.diff(events.offsets)
        status = [NEVER_FIRES if n == 0 else "" for n in counts.tolist()]
        writer.add(
            layer, indices, nodes, maximum=events.maximum, n_events=counts, threshold=settings.threshold, status=status
        )  # fmt: skip
        done += len(indices)
        options.progress(done, len(selection))
    writer.close()
    return Graphs(Store(capture.folder), name)


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
        | {"neurons": neurons, "leave_out": windows, "blocks": len(capture.blocks)}
        | {"also": {one.record.name: [one.record.plan.fingerprint, len(one.blocks)] for one in also}},
        n_neurons=len(selection),
        files={},
    )
