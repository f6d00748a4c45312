"""What a model did where exemplars of neurons were shortened, masked or substituted, read from the store.

Knows nothing about running models (`probe_rounds` asks them), nor about graphs but where to note the importance of their
tokens (`annotate`).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from actstore.engine.graph.probe_plan import REQUESTS, changed_values
from actstore.store.errors import FormatError, InvalidInputError, NotFoundError
from actstore.store.graph_writer import GraphWriter
from actstore.store.graphs import IGNORE, GraphRecord, Graphs
from actstore.store.layout import capture_key
from actstore.store.root import written_by

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.store.folder import Folder
    from actstore.store.graphs import NeuronGraph
    from actstore.store.reader import Capture, Store

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
        self.capture, name = capture, capture.record.name
        key = requests_key(name)
        try:
            table = pa.ipc.open_file(pa.py_buffer(capture.folder.read(key))).read_all()
        except (pa.ArrowException, NotFoundError) as error:
            raise FormatError(
                f"{capture.folder}/{key} is damaged or missing: {' '.join(str(error).split())}."
            ) from None
        self._columns = {column: table[column].to_numpy() for column in REQUESTS.names}
        self._keys = self._columns["layer"].astype(np.int64) << 32 | self._columns["neuron"]
        windows = capture.windows()
        order = np.argsort(windows["document"].to_numpy(), kind="stable")
        starts = windows["input_start"].to_numpy()[order]
        self._lengths = windows["n_inputs"].to_numpy()[order]
        self._starts, self._inputs = starts, capture.plan.array("inputs/ids")
        self._tokens = np.searchsorted(capture.slots(), windows["slot_start"].to_numpy()[order])
        self._row: tuple[tuple[int, int], NDArray[np.float32]] | None = None

    def rows(self, layer: int, neuron: int) -> list[dict[str, Any]]:
        """The requests of a neuron."""
        key = layer << 32 | neuron
        a, b = np.searchsorted(self._keys, [key, key + 1])
        columns = {name: values[a:b].tolist() for name, values in self._columns.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def ids(self, document: int) -> NDArray[np.int32]:
        """The tokens of a window."""
        ids: NDArray[np.int32] = self._inputs[self._starts[document] :][: self._lengths[document]]
        return ids

    def values(self, layer: int, neuron: int, site: str, document: int) -> NDArray[np.float32]:
        """What a neuron did over a window."""
        if self._row is None or self._row[0] != (layer, neuron):
            self._row = (layer, neuron), self.capture.activations(layer, neuron, site)
        first = int(self._tokens[document])
        return self._row[1][first : first + int(self._lengths[document])]


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
            raise NotFoundError(f"{store.folder} has no probes {name!r}. Make them: actstore graph probe.")
        for capture in captures.values():
            if not capture.is_complete:
                raise InvalidInputError(
                    f"Probes {capture.record.name!r} of {store.folder} were interrupted: {len(capture.blocks)} of "
                    f"{capture.record.plan.n_blocks} blocks are there. Continue them: actstore graph probe --resume."
                )
        if "mask" not in captures and not partial:
            raise InvalidInputError(
                f"Probes {name!r} of {store.folder} were interrupted before tokens were masked. Continue them: actstore graph "
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
        """A neuron's largest activation over the capture that was asked about."""
        return float(self.capture.layer_statistics(layer, self.settings["site"]).maximum[neuron])

    def of(self, layer: int, neuron: int) -> list[Probed]:
        """A neuron's exemplars in the order of windows; none where it was not asked about, or never fires."""
        if not self._rounds:
            return []
        maximum, site = self.maximum(layer, neuron), self.settings["site"]
        if not 0 < maximum < np.inf:
            return []
        found: dict[int, Probed] = {}
        for kind, asked in self._rounds.items():
            if not kind.startswith("suffix-"):
                continue
            for row in asked.rows(layer, neuron):
                if row["exemplar"] not in found or not found[row["exemplar"]].held:
                    values = asked.values(layer, neuron, site, row["document"]) / np.float32(maximum)
                    found[row["exemplar"]] = self._probed(row, asked.ids(row["document"]), values, maximum)
        self._add_importance(found, layer, neuron, maximum)
        self._add_variants(found, layer, neuron, maximum)
        return [found[exemplar] for exemplar in sorted(found)]

    def _probed(
        self, row: dict[str, Any], ids: NDArray[np.int32], values: NDArray[np.float32], maximum: float
    ) -> Probed:
        whole, text = row["whole"] / maximum, values[row["n_special"] :]
        largest = np.argmax(np.where(np.isfinite(text), text, -np.inf)) + row["n_special"]
        held = bool(largest == row["pivot"] and values[row["pivot"]] > self.settings["share"] * whole)
        return Probed(row["exemplar"], ids, row["n_special"], row["pivot"], whole, values, held)

    def _add_importance(self, found: dict[int, Probed], layer: int, neuron: int, maximum: float) -> None:
        if (asked := self._rounds.get("mask")) is None:
            return
        for row in asked.rows(layer, neuron):
            probed, at = found[row["exemplar"]], row["position"]
            n = len(probed.ids)
            if not probed.importance.size:
                probed.importance = np.full((n, n), np.nan, np.float32)
            masked = asked.values(layer, neuron, self.settings["site"], row["document"]) / np.float32(maximum)
            masked = changed_values(masked, at, row["token"])
            n = min(n, len(masked))
            with np.errstate(divide="ignore", invalid="ignore"):
                lost = 1 - masked[:n] / probed.values[:n]
            lost[probed.values[:n] <= 0] = np.nan
            if self.settings["causal"]:
                lost[:at] = np.nan
            probed.importance[at, :n] = lost

    def _add_variants(self, found: dict[int, Probed], layer: int, neuron: int, maximum: float) -> None:
        if (asked := self._rounds.get("substitute")) is None:
            return
        for row in asked.rows(layer, neuron):
            values = asked.values(layer, neuron, self.settings["site"], row["document"]) / np.float32(maximum)
            variant = Variant(asked.ids(row["document"]), row["position"], values)
            found[row["exemplar"]].variants.append(variant)


def _is_round(capture: Capture, kind: str) -> bool:
    asked = capture.record.settings.get("probes", {}).get("kind")
    return asked == kind and (kind.startswith("suffix-") or kind in ("mask", "substitute"))


def annotate(graph: NeuronGraph, probed: list[Probed], share: float = 0.5) -> NDArray[np.float32]:
    """The importance of each node of a graph: the mean over the probes that its line matches; NaN where none does.

    A line is held against every token of the shortened exemplars at which the neuron has more than `share` of its maximum,
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


def requests_key(capture: str) -> str:
    """Where the table of requests of a capture of probes lies."""
    return f"{capture_key(capture)}/requests.arrow"


def write_requests(folder: Folder, capture: str, table: pa.Table) -> None:
    """Keep who asked what in a capture of probes."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, REQUESTS) as writer:
        writer.write_table(table)
    folder.write(requests_key(capture), sink.getvalue().to_pybytes())
