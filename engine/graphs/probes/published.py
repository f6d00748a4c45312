"""Graphs by the published method, Neuron to Graph (Foote et al. 2023, arXiv 2305.19911), from probes in the store.

Each token of a shortened exemplar, or of one of its variants, at which the neuron exceeds half of its maximum gives a path:
the token, then backwards the tokens whose masking removes more than three quarters of the activation, `IGNORE` for others, up
to the last important one. In a variant, a token is important too where the original's at its position is. The path ends with
the activation, times what shortening took of it at the pivot. Departures from the published code: a path that occurs more than
once ends with the mean of its activations instead of the first, tokens are compared by their ids instead of their texts without
case and spaces, and the search for a path backtracks. No model runs.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from actstore.engine.graphs.methods import PUBLISHED
from actstore.kernels.suffix_trie.api import IGNORE, Nodes
from actstore.store.arguments import Typed
from actstore.store.errors import InvalidInputError
from actstore.store.graphs.reader import Graphs
from actstore.store.graphs.record import NEVER_FIRES, GraphRecord
from actstore.store.graphs.writer import GraphWriter
from actstore.store.model.root import written_by

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from actstore.engine.graphs.probes.evidence import ProbedExemplar, Probes
    from actstore.store.storage.folder import Folder

NOT_SHORTENED: Final = "no exemplar could be shortened"
"""Status of a neuron without a path."""


@dataclass(frozen=True)
class PublishedSettings(Typed):
    """The constants of the paper that the probes do not depend on."""

    threshold: float = 0.5
    """Share of the maximum above which a token gives a path, and a path predicts firing."""
    importance: float = 0.75
    """Importance above which a context token stays in the path."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.threshold < 1:
            raise InvalidInputError(f"`threshold` must be between 0 and 1, found {self.threshold}.")
        if not self.importance < 1:
            raise InvalidInputError(f"`importance` must be below 1, found {self.importance}.")


@dataclass(frozen=True)
class PublishedPath:
    """The path of one token of one probe."""

    tokens: tuple[int, ...]
    """The activating token, then those before it, backwards."""
    value: float
    """Activation, as a share of the maximum."""
    importance: tuple[float, ...]
    """[token] its importance."""


def paths_of(probed: Sequence[ProbedExemplar], share: float, settings: PublishedSettings) -> Iterator[PublishedPath]:
    """The paths of a neuron's probes and of their variants.

    Where tokens were masked in variants, all of them count, with their own importance and with that of the original at tokens
    where the original fires, as in the published code. Where they were not, a variant with more than `share` of the original
    activation at the pivot takes the original's importance at each position.
    """
    for one in probed:
        if not one.importance.size:
            continue
        values = np.float32(one.scale) * one.values
        important = one.importance > settings.importance
        yield from _paths(_Measured(one.ids, values, one.importance, important), one.n_special, settings)
        for variant in one.variants:
            n = len(variant.ids)
            importance, own = one.importance[:n, :n], important[:n, :n]
            if variant.importance.size:
                importance = variant.importance
                own = (importance > settings.importance) | (own & (values[:n] > settings.threshold))
            elif not (n > one.pivot and variant.values[one.pivot] > share * one.values[one.pivot]):
                continue
            measured = _Measured(variant.ids, np.float32(one.scale) * variant.values, importance, own)
            yield from _paths(measured, one.n_special, settings)


class _Measured(NamedTuple):
    """A window of probes."""

    ids: NDArray[np.int32]
    values: NDArray[np.float32]
    """[position]"""
    importance: NDArray[np.float32]
    """[masked position, position]"""
    important: NDArray[np.bool_]
    """[masked position, position] whether the token stays in the path of the position."""


def _paths(window: _Measured, n_special: int, settings: PublishedSettings) -> Iterator[PublishedPath]:
    for position in (np.flatnonzero(window.values[n_special:] > settings.threshold) + n_special).tolist():
        weight = window.importance[n_special:position, position][::-1]
        # At a token that fires in the variant only, and was not masked for, none is important: its path is that token alone.
        important = np.flatnonzero(window.important[n_special:position, position][::-1])
        depth = int(important[-1]) + 1 if len(important) else 0
        important_depths = set(important.tolist())
        context = (int(window.ids[position - 1 - d]) if d in important_depths else IGNORE for d in range(depth))
        own = float(window.importance[position, position])
        yield PublishedPath(
            (int(window.ids[position]), *context),
            float(window.values[position]),
            (own, *(float(w) for w in weight[:depth])),
        )


def trie_of(paths: Sequence[PublishedPath], settings: PublishedSettings) -> tuple[Nodes, NDArray[np.float32]]:
    """The paths of one neuron as nodes in canonical order, and the importance of each node.

    A path ends with the mean of its activations. They are summed in ascending order, so that the result does not depend on the
    order of `paths`.
    """
    values: dict[tuple[int, ...], list[float]] = {}
    weights: dict[tuple[int, ...], list[float]] = {}
    n_through: dict[tuple[int, ...], int] = {}
    for path in paths:
        values.setdefault(path.tokens, []).append(path.value)
        for length in range(1, len(path.tokens) + 1):
            prefix = path.tokens[:length]
            n_through[prefix] = n_through.get(prefix, 0) + 1
            weight = path.importance[length - 1]
            if np.isfinite(weight):
                weights.setdefault(prefix, []).append(weight)
    # Every prefix of a path is a node; sorted, they lie depth first with children by token, the canonical order.
    prefixes = sorted(n_through)
    node_of = {prefix: node for node, prefix in enumerate(prefixes)}
    ends = np.array([prefix in values for prefix in prefixes], bool)
    value = np.array([_mean(values.get(prefix, [])) for prefix in prefixes], np.float32)
    count = np.array([n_through[prefix] for prefix in prefixes], np.int32)
    nodes = Nodes(
        np.array([0, len(prefixes)], np.int64),
        np.array([node_of.get(prefix[:-1], -1) for prefix in prefixes], np.int32),
        np.array([prefix[-1] for prefix in prefixes], np.int32),
        np.array([len(prefix) - 1 for prefix in prefixes], np.uint8),
        ends,
        np.where(ends, value > settings.threshold, np.nan).astype(np.float32),
        value,
        count,
        count,
    )
    return nodes, np.array([_mean(weights.get(prefix, [])) for prefix in prefixes], np.float32)


def _mean(values: list[float]) -> float:
    return sum(sorted(values)) / len(values) if values else np.nan


def build_published(
    probes: Probes, folder: Folder, *, name: str = PUBLISHED, settings: PublishedSettings = PublishedSettings()
) -> Graphs:
    """The published graphs of all probed neurons, written into the store opened for writing as `folder`.

    They come from the half of the exemplars on which an evaluation with the same seed and number of exemplars does not test. A
    neuron none of whose exemplars could be shortened has an empty graph with that status.
    """
    settings_of_probes, corpus = probes.settings, probes.capture.record
    record = GraphRecord(
        name=name,
        method=PUBLISHED,
        written_by=written_by(),
        model_fingerprint=corpus.model_fingerprint,
        tokenizer_fingerprint=corpus.plan.tokenizer_fingerprint,
        capture=corpus.name,
        plan_fingerprint=corpus.plan.fingerprint,
        capture_identity=corpus.identity,
        site=settings_of_probes["site"],
        settings=dataclasses.asdict(settings) | {"probes": probes.name, "asked": settings_of_probes},
        n_neurons=len(probes.neurons),
    )
    with GraphWriter(folder, record) as writer:
        share = float(settings_of_probes["share"])
        for layer, of_layer in itertools.groupby(probes.neurons, key=lambda neuron: neuron[0]):
            neurons = [neuron for _, neuron in of_layer]
            tries, statuses, counts = [], [], []
            for neuron in neurons:
                probed = probes.of(layer, neuron)
                paths = list(paths_of(probed, share, settings))
                tries.append(trie_of(paths, settings))
                statuses.append("" if paths else NOT_SHORTENED if probed else NEVER_FIRES)
                counts.append(len(paths))
            maximum = [max(probes.maximum(layer, neuron), 0.0) for neuron in neurons]
            writer.add(
                layer, neurons, join_nodes([nodes for nodes, _ in tries]), maximum=maximum, n_events=counts,
                threshold=settings.threshold, status=statuses, importance=np.concatenate([weight for _, weight in tries]),
            )  # fmt: skip
        writer.close()
    return Graphs(probes.store, name)


def join_nodes(tries: Sequence[Nodes]) -> Nodes:
    """The nodes of several neurons as one."""
    sizes = np.array([len(nodes.token) for nodes in tries], np.int64)
    columns = (np.concatenate(column) for column in zip(*(nodes[1:] for nodes in tries), strict=True))
    return Nodes(np.concatenate([[0], np.cumsum(sizes)]), *columns)
