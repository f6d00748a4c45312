"""What a model did where exemplars of neurons were shortened, masked or substituted, read from the store.

Knows nothing about running models (`probe_rounds` asks them), nor about graphs but where to note the importance of their
tokens (`annotate`).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from actstore.engine.graphs.probes.plan import NO_TOKEN
from actstore.store.capture.overflow import LARGEST
from actstore.store.capture.requests import REQUESTS, read_requests
from actstore.store.capture.saturation import overflows_in_any, saturated_maxima
from actstore.store.errors import InvalidInputError, NotFoundError
from actstore.store.graphs.reader import IGNORE, GraphRecord, Graphs
from actstore.store.graphs.writer import GraphWriter
from actstore.store.model.root import written_by

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.store.graphs.reader import NeuronGraph
    from actstore.store.reader import Capture, Store
    from actstore.store.storage.folder import Folder

PROBES: Final = "probes"


@dataclass
class Probed:
    """An exemplar of a neuron, shortened, and what became of the neuron as its tokens were masked and substituted.

    All values are shares of the neuron's maximum over the capture.
    """

    exemplar: int
    """The window of the capture."""
    ids: NDArray[np.int32]
    """[position] the shortened window."""
    n_special: int
    """Special tokens at its beginning."""
    pivot: int
    whole: float
    """At the pivot in the exemplar itself."""
    values: NDArray[np.float32]
    """[position]"""
    held: bool
    """Whether the window kept enough of the activation, the pivot's still the largest; nothing more was asked where not."""
    importance: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    """[masked position, position] 1 - a(masked) / a; NaN where it was not asked. Empty where nothing was masked."""
    variants: list[Variant] = field(default_factory=list)

    def last_firing(self, share: float) -> int:
        """The last position with more than `share` of the maximum, not before the pivot."""
        firing = np.flatnonzero(self.values[self.n_special :] > share) + self.n_special
        return max(self.pivot, int(firing[-1]) if len(firing) else 0)


@dataclass(frozen=True)
class Variant:
    """A shortened exemplar with one token substituted."""

    ids: NDArray[np.int32]
    position: int
    values: NDArray[np.float32]


class _Round:
    """One capture of probes, and who asked what in it."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        table = read_requests(capture.folder, capture.record.name)
        self._columns = {column: table[column].to_numpy() for column in REQUESTS.names}
        self._keys = self._columns["layer"].astype(np.int64) << 32 | self._columns["neuron"]
        windows = capture.windows()
        self._lengths = windows["n_inputs"].to_numpy()
        self._starts, self._inputs = windows["input_start"].to_numpy(), capture.plan.array("inputs/ids")
        self._tokens = np.searchsorted(capture.slots(), windows["slot_start"].to_numpy())

    def rows(self, layer: int, neuron: int) -> dict[str, NDArray[Any]]:
        """The requests of a neuron: [request] of each column."""
        key = layer << 32 | neuron
        a, b = np.searchsorted(self._keys, [key, key + 1])
        return {name: values[a:b] for name, values in self._columns.items()}

    def ids(self, window: int) -> NDArray[np.int32]:
        """The tokens of a window."""
        ids: NDArray[np.int32] = self._inputs[self._starts[window] :][: self._lengths[window]]
        return ids

    def values(self, layer: int, neuron: int, site: str, windows: NDArray[Any]) -> list[NDArray[np.float32]]:
        """What a neuron did over some windows, each [position]."""
        if not len(windows):
            return []
        row = self.capture.activations(layer, neuron, site, saturated=True)
        firsts = self._tokens[windows].tolist()
        return [row[a : a + n] for a, n in zip(firsts, self._lengths[windows].tolist(), strict=True)]


class Probes:
    """All that was asked and answered under one name. Needs no model."""

    def __init__(self, store: Store, name: str = PROBES, *, partial: bool = False) -> None:
        """Those called `name`; `NotFoundError` where there are none, `InvalidInputError` where some are not finished.

        With `partial`, those that are finished.
        """
        self.store, self.name = store, name
        captures = {n.removeprefix(f"{name}-"): store.capture(n) for n in store.captures if n.startswith(f"{name}-")}
        captures = {k: c for k, c in captures.items() if _is_round(c, k) and (c.is_complete or not partial)}
        if not captures and not partial:
            raise NotFoundError(f"{store.folder} has no probes {name!r}. Make them: actstore graphs probe.")
        for capture in captures.values():
            if not capture.is_complete:
                raise InvalidInputError(
                    f"Probes {capture.record.name!r} of {store.folder} were interrupted: {len(capture.blocks)} of "
                    f"{capture.record.plan.n_blocks} blocks are there. Continue them: actstore graphs probe --resume."
                )
        if "mask" not in captures and not partial:
            raise InvalidInputError(
                f"Probes {name!r} of {store.folder} were interrupted before tokens were masked. Continue them: actstore graphs "
                "probe --resume."
            )
        self._rounds = {kind: _Round(captures[kind]) for kind in sorted(captures)}
        asked: dict[str, Any] = next((c.record.settings["probes"] for c in captures.values()), {})
        self.settings = asked
        """What was asked, as `probe` recorded it."""
        self.captures: tuple[str, ...] = tuple(f"{name}-{kind}" for kind in self._rounds)
        if asked:
            self.capture = store.capture(asked["capture"])
            """The capture whose neurons' exemplars were asked about."""
            if self.capture.record.plan.fingerprint != asked["plan"]:
                raise InvalidInputError(
                    f"Probes {name!r} ask about another capture {asked['capture']!r} than the one there is now. Probe it again."
                )

    @property
    def neurons(self) -> list[tuple[int, int]]:
        """(layer, index) of the neurons that were asked about."""
        widths = self.capture.record.layers(self.settings["site"])
        chosen = self.settings["neurons"]
        return [
            (int(layer), index)
            for layer, indices in sorted(chosen.items(), key=lambda item: int(item[0]))
            for index in (range(widths[int(layer)]) if indices == "all" else indices)
        ]

    def maximum(self, layer: int, neuron: int) -> float:
        """A neuron's largest activation over the capture that was asked about, as far as what was answered can reach it."""
        site = self.settings["site"]
        captures = [self.capture, *(asked.capture for asked in self._rounds.values())]
        largest = saturated_maxima(self.capture, layer, site, overflows_in_any(captures, layer, site))
        return float(largest[neuron])

    def of(self, layer: int, neuron: int) -> list[Probed]:
        """A neuron's exemplars in the order of windows; none where it was not asked about, or never fires."""
        found: dict[int, Probed] = {}
        for kind in sorted(self._rounds, key=_order):
            self.add(kind, layer, neuron, found)
        return [found[exemplar] for exemplar in sorted(found)]

    def add(self, kind: str, layer: int, neuron: int, found: dict[int, Probed]) -> None:
        """Add what a neuron was asked in one round to what earlier rounds `found`, by exemplar."""
        asked, maximum = self._rounds[kind], self.maximum(layer, neuron)
        rows = asked.rows(layer, neuron)
        if not len(rows["window"]) or not 0 < maximum < np.inf:
            return
        if kind == "mask":
            self._add_importance(found, asked, rows, maximum)
        elif kind == "substitute":
            self._add_variants(found, asked, rows, maximum)
        else:
            self._add_suffixes(found, asked, rows, maximum)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The rounds that are there, each after those that it was planned from."""
        return tuple(sorted(self._rounds, key=_order))

    def _add_suffixes(
        self, found: dict[int, Probed], asked: _Round, rows: dict[str, NDArray[Any]], maximum: float
    ) -> None:
        columns = zip(
            *(rows[name].tolist() for name in ("exemplar", "window", "pivot", "n_special", "whole")), strict=True
        )
        for (exemplar, window, pivot, n_special, whole), values in zip(
            columns, self._answers(asked, rows, maximum), strict=True
        ):
            if exemplar in found and found[exemplar].held:
                continue
            # Where answers overflow, the maximum is the largest that they can be, and the exemplar's own may be larger.
            share, text = min(whole, max(maximum, LARGEST)) / maximum, values[n_special:]
            largest = int(np.argmax(np.where(np.isfinite(text), text, -np.inf))) + n_special
            held = bool(largest == pivot and values[pivot] > self.settings["share"] * share)
            found[exemplar] = Probed(exemplar, asked.ids(window), n_special, pivot, share, values, held)

    def _answers(self, asked: _Round, rows: dict[str, NDArray[Any]], maximum: float) -> list[NDArray[np.float32]]:
        """What was answered to each request of a neuron, in shares of its maximum."""
        layer, neuron = int(rows["layer"][0]), int(rows["neuron"][0])
        found = asked.values(layer, neuron, self.settings["site"], rows["window"])
        return [values / np.float32(maximum) for values in found]

    def _add_importance(
        self, found: dict[int, Probed], asked: _Round, rows: dict[str, NDArray[Any]], maximum: float
    ) -> None:
        values = self._answers(asked, rows, maximum)
        borders = np.flatnonzero(np.diff(rows["exemplar"], prepend=-1, append=-1))
        for start, stop in itertools.pairwise(borders.tolist()):
            probed, at = found[int(rows["exemplar"][start])], rows["position"][start:stop]
            n = len(probed.ids)
            probed.importance = np.full((n, n), np.nan, np.float32)
            # All maskings of an exemplar are as long as one another.
            masked = np.stack(values[start:stop])
            if rows["token"][start] == NO_TOKEN:
                places = np.arange(masked.shape[1] + 1)
                masked = np.take_along_axis(masked, np.maximum(places - (places >= at[:, None]), 0), axis=1)
                masked[np.arange(len(at)), at] = np.nan
            masked = masked[:, :n]
            own = probed.values[: masked.shape[1]]
            with np.errstate(divide="ignore", invalid="ignore"):
                lost = 1 - masked / own
            lost[:, own <= 0] = np.nan
            if self.settings["causal"]:
                lost[np.arange(masked.shape[1]) < at[:, None]] = np.nan
            probed.importance[at, : masked.shape[1]] = lost

    def _add_variants(
        self, found: dict[int, Probed], asked: _Round, rows: dict[str, NDArray[Any]], maximum: float
    ) -> None:
        columns = zip(*(rows[name].tolist() for name in ("exemplar", "window", "position")), strict=True)
        answers = self._answers(asked, rows, maximum)
        for (exemplar, window, position), values in zip(columns, answers, strict=True):
            found[exemplar].variants.append(Variant(asked.ids(window), position, values))


def _order(kind: str) -> tuple[int, str]:
    return ("suffix", "mask", "substitute").index(kind.partition("-")[0]), kind


def _is_round(capture: Capture, kind: str) -> bool:
    asked = capture.record.settings.get("probes", {}).get("kind")
    return asked == kind and (kind.startswith("suffix-") or kind in ("mask", "substitute"))


def annotate(graph: NeuronGraph, probed: list[Probed], share: float = 0.5) -> NDArray[np.float32]:
    """The importance of each node of a graph: the mean over the probes that its path matches; NaN where none does.

    A path is held against every token of the shortened exemplars at which the neuron has more than `share` of its maximum,
    and a node's token counts as it was masked there. At depth 0 too; for `IGNORE`, the token that it stood for.
    """
    sums, counts = np.zeros(len(graph), np.float64), np.zeros(len(graph), np.int64)
    tokens = graph.nodes.token
    for one in probed:
        if not one.importance.size:
            continue
        for position in (np.flatnonzero(one.values[one.n_special :] > share) + one.n_special).tolist():
            level, depth = [-1], 0
            while level and depth <= position:
                here = int(one.ids[position - depth])
                level = [n for p in level for n in graph.children.get(p, ()) if tokens[n] in (here, IGNORE)]
                lost = one.importance[position - depth, position]
                if np.isfinite(lost):
                    sums[level] += lost
                    counts[level] += 1
                depth += 1
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan).astype(np.float32)


def annotate_graphs(graphs: Graphs, probes: Probes, folder: Folder, name: str) -> Graphs:
    """The same graphs under another name, with the importance of their tokens as the probes measured it."""
    record = graphs.record
    if record.tokenizer_fingerprint != (theirs := probes.capture.record.plan.tokenizer_fingerprint):
        raise InvalidInputError(
            f"Graphs {graphs.name!r} were made with the tokenizer {record.tokenizer_fingerprint[:12]}, and probes "
            f"{probes.name!r} with {theirs[:12]}: their tokens are not the same. Probe the capture that the graphs are of."
        )
    asked = GraphRecord(
        **{k: getattr(record, k) for k in ("method", "model_fingerprint", "tokenizer_fingerprint", "capture", "site")},
        name=name, written_by=written_by(), plan_fingerprint=record.plan_fingerprint, n_neurons=record.n_neurons,
        settings=record.settings | {"probes": probes.name},
    )  # fmt: skip
    writer = GraphWriter(folder, asked)
    share, wanted = float(probes.settings["share"]), set(probes.neurons)
    layers = graphs.neurons["layer"].to_numpy()
    borders = [0, *(np.flatnonzero(np.diff(layers)) + 1).tolist(), len(graphs)]
    for start, stop in itertools.pairwise(borders):
        part = graphs.neurons.slice(start, stop - start).to_pydict()
        weights = [np.empty(0, np.float32)]
        for graph in map(graphs.row, range(start, stop)):
            asked_about = (graph.layer, graph.neuron) in wanted
            weights.append(annotate(graph, probes.of(graph.layer, graph.neuron) if asked_about else [], share))
        writer.add(
            part["layer"], part["neuron"], graphs.tries(start, stop), maximum=part["maximum"], n_events=part["n_events"],
            threshold=part["threshold"], status=part["status"], importance=np.concatenate(weights),
        )  # fmt: skip
    writer.close()
    return Graphs(graphs.store, name)
