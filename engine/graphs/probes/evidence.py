"""The results of probes, read from the store: activations where exemplars were shortened, masked or substituted.

`annotate` adds the measured importance of tokens to the nodes of graphs. No model is needed.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from actstore.engine.graphs.probes.importance import Variant, add_variant_importance, importance_of
from actstore.engine.graphs.probes.plan import NO_TOKEN
from actstore.store.capture.overflow import LARGEST
from actstore.store.capture.requests import REQUESTS, read_requests
from actstore.store.capture.saturation import overflows_in_any, saturated_maxima
from actstore.store.errors import InvalidInputError, NotFoundError
from actstore.store.graphs.reader import IGNORE, GraphRecord, Graphs
from actstore.store.graphs.writer import GraphWriter
from actstore.store.model.root import written_by

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from actstore.store.graphs.reader import NeuronGraph
    from actstore.store.reader import Capture, Store
    from actstore.store.storage.folder import Folder

PROBES: Final = "probes"
"""Name of probes, by default."""
ROUNDS: Final = ("suffix", "mask", "substitute", "variant")
"""The kinds of rounds, each after those from whose results it is planned; `suffix` has one round per length."""


@dataclass
class ProbedExemplar:
    """A shortened exemplar of a neuron, and the neuron's activations where its tokens were masked and substituted.

    All values are shares of the neuron's maximum over the capture.
    """

    exemplar: int
    """The window of the capture."""
    ids: NDArray[np.int32]
    """[position] the shortened window."""
    n_special: int
    """Number of special tokens at its beginning."""
    pivot: int
    """Position of the largest activation."""
    whole: float
    """Activation at the pivot in the whole exemplar."""
    values: NDArray[np.float32]
    """[position]"""
    is_shortened: bool
    """Whether the window kept enough of the activation, with the largest still at the pivot; only then are tokens masked."""
    importance: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    """[masked position, position] 1 - a(masked) / a; NaN where it was not measured. Empty where nothing was masked."""
    variants: list[Variant] = field(default_factory=list)

    @property
    def scale(self) -> float:
        """The activation at the pivot in the whole exemplar, as a multiple of that in the shortened one."""
        return float(self.whole / self.values[self.pivot]) if self.values[self.pivot] > 0 else 1.0

    def last_firing(self, share: float) -> int:
        """The last position with more than `share` of the maximum; at least the pivot."""
        firing = np.flatnonzero(self.values[self.n_special :] > share) + self.n_special
        return max(self.pivot, int(firing[-1]) if len(firing) else 0)


class _Round:
    """One round: a capture of probes, and the table of the requests that it answers."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        table = read_requests(capture.folder, capture.record.name, capture.record.plan_files.get("requests.arrow", ""))
        self._columns = {column: table[column].to_numpy() for column in REQUESTS.names}
        self._keys = self._columns["layer"].astype(np.int64) << 32 | self._columns["neuron"]
        windows = capture.windows()
        self._lengths = windows["n_inputs"].to_numpy()
        self._starts, self._inputs = windows["input_start"].to_numpy(), capture.plan.array("inputs/ids")
        self._tokens = np.searchsorted(capture.slots(), windows["slot_start"].to_numpy())

    def requests(self, layer: int, neuron: int) -> dict[str, NDArray[Any]]:
        """The requests of a neuron: column → values [request]."""
        key = layer << 32 | neuron
        a, b = np.searchsorted(self._keys, [key, key + 1])
        return {name: values[a:b] for name, values in self._columns.items()}

    def ids(self, window: int) -> NDArray[np.int32]:
        """The tokens of a window."""
        ids: NDArray[np.int32] = self._inputs[self._starts[window] :][: self._lengths[window]]
        return ids

    def values(self, layer: int, neuron: int, site: str, windows: NDArray[np.integer]) -> list[NDArray[np.float32]]:
        """The activations of a neuron over some windows, each [position]."""
        if not len(windows):
            return []
        row = self.capture.activations(layer, neuron, site, saturated=True)
        firsts = self._tokens[windows].tolist()
        return [row[a : a + n] for a, n in zip(firsts, self._lengths[windows].tolist(), strict=True)]


class Probes:
    """The results of all rounds of one name."""

    def __init__(self, store: Store, name: str = PROBES, *, partial: bool = False) -> None:
        """The probes called `name`; `NotFoundError` where there are none, `InvalidInputError` where a round is not finished.

        partial: read the finished rounds only, instead of an error.
        """
        self.store, self.name = store, name
        opened, damaged = store.read_captures()
        if unreadable := [n for n in damaged if n.startswith(f"{name}-")]:
            raise damaged[unreadable[0]]  # without this round, what the others say would be another answer
        captures = {n.removeprefix(f"{name}-"): one for n, one in opened.items() if n.startswith(f"{name}-")}
        captures = {k: c for k, c in captures.items() if _is_round(c, k) and (c.is_complete or not partial)}
        if not captures and not partial:
            raise NotFoundError(f"{store.folder} has no probes {name!r}. Make them: `store.graphs.probe()`.")
        for capture in captures.values():
            if not capture.is_complete:
                raise InvalidInputError(
                    f"Probes {capture.record.name!r} of {store.folder} were interrupted: {len(capture.blocks)} of "
                    f"{capture.record.plan.n_blocks} blocks are filled. Continue them with `resume=True`."
                )
        if "mask" not in captures and not partial:
            raise InvalidInputError(
                f"Probes {name!r} of {store.folder} were interrupted before tokens were masked. Continue them with "
                "`resume=True`."
            )
        self._rounds = {kind: _Round(captures[kind]) for kind in sorted(captures)}
        settings: dict[str, Any] = next((c.record.settings["probes"] for c in captures.values()), {})
        self.settings = settings
        """The settings of a round, as its record has them."""
        self.captures: tuple[str, ...] = tuple(f"{name}-{kind}" for kind in self._rounds)
        if settings:
            self.capture = store.capture(settings["capture"])
            """The capture whose exemplars were probed."""
            if self.capture.record.plan.fingerprint != settings["plan"]:
                raise InvalidInputError(
                    f"Probes {name!r} are of another capture {settings['capture']!r} than the one that is in the store now. "
                    "Probe it again."
                )

    @property
    def neurons(self) -> list[tuple[int, int]]:
        """(layer, index) of the neurons that were probed."""
        widths = self.capture.record.layers(self.settings["site"])
        neurons = self.settings["neurons"]
        return [
            (int(layer), index)
            for layer, indices in sorted(neurons.items(), key=lambda item: int(item[0]))
            for index in (range(widths[int(layer)]) if indices == "all" else indices)
        ]

    def maximum(self, layer: int, neuron: int) -> float:
        """A neuron's largest activation over the capture, saturated where values of the capture or of a round were."""
        site = self.settings["site"]
        captures = [self.capture, *(one.capture for one in self._rounds.values())]
        largest = saturated_maxima(self.capture, layer, site, overflows_in_any(captures, layer, site))
        return float(largest[neuron])

    def of(self, layer: int, neuron: int) -> list[ProbedExemplar]:
        """The exemplars of a neuron in the order of windows; none where it was not probed or never fires."""
        exemplars: dict[int, ProbedExemplar] = {}
        for kind in sorted(self._rounds, key=_order):
            self.add_round(kind, layer, neuron, exemplars)
        return [exemplars[window] for window in sorted(exemplars)]

    def add_round(self, kind: str, layer: int, neuron: int, exemplars: dict[int, ProbedExemplar]) -> None:
        """Add the results of one round for a neuron to `exemplars`, window → exemplar as of the rounds before it."""
        one, maximum = self._rounds[kind], self.maximum(layer, neuron)
        rows = one.requests(layer, neuron)
        if not len(rows["window"]) or not 0 < maximum < np.inf:
            return
        if kind == "mask":
            self._add_importance(exemplars, one, rows, maximum)
        elif kind == "substitute":
            self._add_variants(exemplars, one, rows, maximum)
        elif kind == "variant":
            self._add_variant_importance(exemplars, one, rows, maximum)
        else:
            self._add_suffixes(exemplars, one, rows, maximum)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The rounds in the store, each after those from whose results it was planned."""
        return tuple(sorted(self._rounds, key=_order))

    def _add_suffixes(
        self, exemplars: dict[int, ProbedExemplar], one: _Round, rows: dict[str, NDArray[Any]], maximum: float
    ) -> None:
        columns = zip(
            *(rows[name].tolist() for name in ("exemplar", "window", "pivot", "n_special", "whole")), strict=True
        )
        for (exemplar, window, pivot, n_special, whole), values in zip(
            columns, self._values(one, rows, maximum), strict=True
        ):
            if exemplar in exemplars and exemplars[exemplar].is_shortened:
                continue
            # Where values of probes overflow, the maximum is the largest that they can be; the whole exemplar's may be larger.
            share, text = min(whole, max(maximum, LARGEST)) / maximum, values[n_special:]
            largest = int(np.argmax(np.where(np.isfinite(text), text, -np.inf))) + n_special
            is_shortened = bool(largest == pivot and values[pivot] > self.settings["share"] * share)
            exemplars[exemplar] = ProbedExemplar(
                exemplar, one.ids(window), n_special, pivot, share, values, is_shortened
            )

    def _values(self, one: _Round, rows: dict[str, NDArray[Any]], maximum: float) -> list[NDArray[np.float32]]:
        """The activations of a neuron over the window of each request, as shares of its maximum."""
        layer, neuron = int(rows["layer"][0]), int(rows["neuron"][0])
        activations = one.values(layer, neuron, self.settings["site"], rows["window"])
        return [values / np.float32(maximum) for values in activations]

    def _add_importance(
        self, exemplars: dict[int, ProbedExemplar], one: _Round, rows: dict[str, NDArray[Any]], maximum: float
    ) -> None:
        values, causal = self._values(one, rows, maximum), bool(self.settings["causal"])
        for exemplar, part in _by_exemplar(rows):
            probed, deleted = exemplars[exemplar], bool(rows["token"][part.start] == NO_TOKEN)
            probed.importance = importance_of(
                probed.values, rows["position"][part], values[part], deleted=deleted, causal=causal
            )

    def _add_variant_importance(
        self, exemplars: dict[int, ProbedExemplar], one: _Round, rows: dict[str, NDArray[Any]], maximum: float
    ) -> None:
        values, causal = self._values(one, rows, maximum), bool(self.settings["causal"])
        windows = [one.ids(window) for window in rows["window"].tolist()]
        for exemplar, part in _by_exemplar(rows):
            own_rows = {name: column[part] for name, column in rows.items()}
            probed = exemplars[exemplar]
            add_variant_importance(probed.ids, probed.variants, own_rows, windows[part], values[part], causal=causal)

    def _add_variants(
        self, exemplars: dict[int, ProbedExemplar], one: _Round, rows: dict[str, NDArray[Any]], maximum: float
    ) -> None:
        columns = zip(*(rows[name].tolist() for name in ("exemplar", "window", "position")), strict=True)
        activations = self._values(one, rows, maximum)
        for (exemplar, window, position), values in zip(columns, activations, strict=True):
            exemplars[exemplar].variants.append(Variant(one.ids(window), position, values))


def _by_exemplar(rows: dict[str, NDArray[Any]]) -> Iterator[tuple[int, slice]]:
    """(exemplar, its requests) of each exemplar of a neuron."""
    borders = np.flatnonzero(np.diff(rows["exemplar"], prepend=-1, append=-1))
    for start, stop in itertools.pairwise(borders.tolist()):
        yield int(rows["exemplar"][start]), slice(start, stop)


def _order(kind: str) -> tuple[int, str]:
    return ROUNDS.index(kind.partition("-")[0]), kind


def _is_round(capture: Capture, kind: str) -> bool:
    recorded = capture.record.settings.get("probes", {}).get("kind")
    return recorded == kind and (kind.startswith("suffix-") or kind in ROUNDS[1:])


def annotate(graph: NeuronGraph, probed: list[ProbedExemplar], share: float = 0.5) -> NDArray[np.float32]:
    """The importance of each node of a graph: the mean over the probes that its path matches; NaN where none does.

    A path is compared with every token of the shortened exemplars at which the neuron has more than `share` of its maximum, and
    the importance of a node is that of the token which it matches there, at depth 0 too.
    """
    sums, counts = np.zeros(len(graph), np.float64), np.zeros(len(graph), np.int64)
    tokens = graph.nodes.token
    for one in probed:
        if not one.importance.size:
            continue
        for position in (np.flatnonzero(one.values[one.n_special :] > share) + one.n_special).tolist():
            level, depth = [-1], 0
            while level and depth <= position:
                token = int(one.ids[position - depth])
                level = [n for p in level for n in graph.children.get(p, ()) if tokens[n] in (token, IGNORE)]
                importance = one.importance[position - depth, position]
                if np.isfinite(importance):
                    sums[level] += importance
                    counts[level] += 1
                depth += 1
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan).astype(np.float32)


def annotate_graphs(graphs: Graphs, probes: Probes, folder: Folder, name: str) -> Graphs:
    """A copy of a set of graphs under another name, with the importance of tokens that the probes measured."""
    record = graphs.record
    if record.tokenizer_fingerprint != (fingerprint := probes.capture.record.plan.tokenizer_fingerprint):
        raise InvalidInputError(
            f"Graphs {graphs.name!r} were built with the tokenizer {record.tokenizer_fingerprint[:12]}, and probes "
            f"{probes.name!r} with {fingerprint[:12]}: their tokens are not the same. Probe the capture that the graphs are of."
        )
    copy = GraphRecord(
        **{k: getattr(record, k) for k in ("method", "model_fingerprint", "tokenizer_fingerprint", "capture", "site")},
        name=name, written_by=written_by(), plan_fingerprint=record.plan_fingerprint, n_neurons=record.n_neurons,
        capture_identity=record.capture_identity,
        settings=record.settings | {"probes": probes.name},
    )  # fmt: skip
    writer = GraphWriter(folder, copy)
    share, probed_neurons = float(probes.settings["share"]), set(probes.neurons)
    layers = graphs.neurons["layer"].to_numpy()
    borders = [0, *(np.flatnonzero(np.diff(layers)) + 1).tolist(), len(graphs)]
    for start, stop in itertools.pairwise(borders):
        rows = graphs.neurons.slice(start, stop - start).to_pydict()
        weights = [np.empty(0, np.float32)]
        for graph in map(graphs.row, range(start, stop)):
            is_probed = (graph.layer, graph.neuron) in probed_neurons
            weights.append(annotate(graph, probes.of(graph.layer, graph.neuron) if is_probed else [], share))
        writer.add(
            rows["layer"], rows["neuron"], graphs.tries(start, stop), maximum=rows["maximum"], n_events=rows["n_events"],
            threshold=rows["threshold"], status=rows["status"], importance=np.concatenate(weights),
        )  # fmt: skip
    writer.close()
    return Graphs(graphs.store, name)
