"""How often every neuron fires on the tokens of each label, from the statistics of a capture or its stored signs and values.

A neuron fires on a token where its gate, or its activation, is above zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Final

import numpy as np

from actstore.engine.workers.scan import HERE, Scan
from actstore.store import layout
from actstore.store.errors import InvalidInputError
from actstore.store.neurons import NeuronIndex

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.engine.workers.executor import Executor
    from actstore.store.reader import Capture

GATE: Final = "mlp.gate"
POST: Final = "mlp.post"
_ROWS: Final = 256
"""Neurons whose values are compared at a time: 16 MB at 16,384 slots per block."""


@dataclass(frozen=True)
class FiringSite:
    """One definition of when a neuron fires."""

    label: str
    """What tables call it."""
    help: str
    """One sentence for the command line and the documentation."""


FIRING_SITES: Final[dict[str, FiringSite]] = {
    GATE: FiringSite("gate", "A neuron fires where its gate is above zero."),
    POST: FiringSite("activation", "A neuron fires where its activation is above zero."),
}
"""Site → when a neuron fires; the values that `site` takes."""


@dataclass(frozen=True)
class CountedModality:
    """The tokens that are counted."""

    label: str
    """What tables call it."""
    help: str
    """One sentence for the command line and the documentation."""


COUNTABLE: Final[dict[str, CountedModality]] = {
    layout.MODALITIES[modality]: CountedModality(
        layout.MODALITIES[modality], f"Count {layout.MODALITIES[modality]} tokens only."
    )
    for modality in (layout.TEXT, layout.IMAGE, layout.GENERATED)
}
"""Modality → tokens; the values that `modality` takes."""


@dataclass(frozen=True)
class Firing:
    """How often every neuron fires on each label's tokens."""

    labels: tuple[str, ...]
    """Values of the label column, in the order of the plan."""
    n_tokens: NDArray[np.int64]
    """Counted tokens; shape [label]."""
    positives: NDArray[np.int64]
    """Counted tokens on which the neuron fires; shape [neuron, label], the neurons of all layers in layer order."""
    layers: dict[int, slice]
    """Layer → its neurons on the neuron axis."""

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """p[neuron, label]: the share of the label's tokens on which the neuron fires; 0 where there is no token.

        A routed expert's neuron does not fire on tokens that are not routed to its expert: routing is part of selectivity.
        """
        return self.positives / np.maximum(self.n_tokens, 1)

    def locate(self, flat: NDArray[np.int64]) -> list[tuple[int, int]]:
        """(layer, index in it) of neurons given by their index on the neuron axis."""
        return self._numbering.pairs(flat)

    def names(self, flat: NDArray[np.int64]) -> list[str]:
        """The name, such as `L3.N17`, of each neuron."""
        return self._numbering.names(flat)

    @cached_property
    def _numbering(self) -> NeuronIndex:
        return NeuronIndex({layer: rows.stop - rows.start for layer, rows in self.layers.items()})


def count_firing(
    capture: Capture, by: str, *, site: str | None = None, modality: str | None = None, executor: Executor = HERE
) -> Firing:
    """How often every neuron fires on the tokens of each value of label `by`.

    Special tokens, and documents without a value, are not counted. Counts come from the statistics where these are over the
    same tokens; else from the stored signs, or values, one layer of one block at a time; the workers of
    `executor` take blocks. Both give the same counts.
    """
    record = capture.record
    if by not in record.plan.label_columns:
        known = ", ".join(record.plan.label_columns) or "none; capture with `label_columns`"
        raise InvalidInputError(f"Capture {record.name!r} has no label {by!r}. Its labels are: {known}.")
    if not capture.is_complete:
        raise InvalidInputError(
            f"Selectivity needs a complete capture, and {len(capture.blocks)} of {record.plan.n_blocks} blocks of "
            f"{record.name!r} are filled. Finish it with `resume=True`."
        )
    sources = _sources(capture, site)
    # The empty string stands for a document without a value, and is not a label.
    columns = [i for i, (column, value) in enumerate(record.plan.labels) if column == by and value]
    labels = tuple(record.plan.labels[i][1] for i in columns)
    counted = None if modality is None else layout.MODALITIES.index(modality)
    if counted is None or _modalities(capture) <= {layout.PADDING, layout.SPECIAL, counted}:
        statistics = capture.statistics()
        positives = [
            statistics.gate_positives[layer]
            if source == layout.GATE_SIGN
            else statistics.sites[source, layer].positives
            for layer, source in sources.items()
        ]
        by_layer, n_tokens = [p[columns].T for p in positives], statistics.label_tokens[columns]
    else:
        by_layer, n_tokens = _count_blocks(capture, sources, columns, {counted}, executor)
    ends = np.cumsum([0, *(len(counts) for counts in by_layer)]).tolist()
    layers = {layer: slice(*ends[i : i + 2]) for i, layer in enumerate(sources)}
    return Firing(labels, np.asarray(n_tokens, np.int64), np.concatenate(by_layer).astype(np.int64), layers)


def _sources(capture: Capture, site: str | None) -> dict[int, str]:
    """Layer → the source of its firings: `gate_sign`, `mlp.gate` or `mlp.post`."""
    record = capture.record
    gates = record.layers(GATE) if GATE in record.sites else {}
    posts = record.layers(POST) if POST in record.sites else {}
    sources, missing = {}, []
    for layer in sorted({*gates, *posts}):
        gated = capture.store.model.layers[layer].gated
        if site == POST or (not gated and layer in posts):
            if layer in posts:
                sources[layer] = POST
        elif layer in record.gate_sign:
            sources[layer] = layout.GATE_SIGN
        elif layer in gates:
            sources[layer] = GATE
        else:
            missing.append(layer)
    if missing:
        raise InvalidInputError(
            f"Capture {record.name!r} has no gate signs of layer {missing[0]}, and its gates cannot be told from activations. "
            f'Capture with `gate_sign=True` or `sites=("{GATE}",)`, or count activations above zero with `site="{POST}"`.'
        )
    if not sources:
        expected = POST if site in (None, POST) else GATE
        raise InvalidInputError(
            f"Capture {record.name!r} holds no neurons at {expected}; its sites are {', '.join(record.sites)}. "
            f'Capture with `sites=("{expected}",)`.'
        )
    return sources


def _modalities(capture: Capture) -> set[int]:
    """The modalities of a capture's slots, read one block at a time."""
    modalities: set[int] = set()
    for block in capture.blocks:
        modalities |= set(np.unique(capture.block_plan(block).modality).tolist())
    return modalities


def _count_blocks(
    capture: Capture, sources: dict[int, str], columns: list[int], modalities: set[int], executor: Executor = HERE
) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """Firing tokens [neuron, label] of every layer, and all tokens [label], of `modalities` only."""
    lossy = capture.record.precision in ("int8", "sparse", "none")
    if lossy and set(sources.values()) != {layout.GATE_SIGN}:
        raise InvalidInputError(
            f"Tokens of one modality are counted from values, and at precision {capture.record.precision} those of capture "
            f"{capture.record.name!r} do not say which were above zero. Capture with `gate_sign=True`, or another "
            "`precision`."
        )
    record = capture.record
    widths = [record.layers(POST if s == layout.GATE_SIGN else s)[layer] for layer, s in sources.items()]
    positives = [np.zeros((width, len(columns)), np.int64) for width in widths]
    n_tokens = np.zeros(len(columns), np.int64)
    count = partial(_count_block, capture, sources, columns, modalities)
    for of_block, n_of_block in Scan(executor, "block")(count, capture.blocks):
        for total, counts in zip(positives, of_block, strict=True):
            total += counts
        n_tokens += n_of_block
    return positives, n_tokens


def _count_block(
    capture: Capture, sources: dict[int, str], columns: list[int], modalities: set[int], block: int
) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """As `_count_blocks`, of one block."""
    plan = capture.block_plan(block)
    of_modality = np.isin(plan.modality, list(modalities))
    # Label ids are unique over all columns, so a window has label i where any of its ids is i.
    has_label = (plan.labels[:, :, None] == np.array(columns)).any(axis=1)
    tokens = np.zeros((len(columns), capture.record.plan.block_slots), bool)
    tokens[:, : len(of_modality)] = np.repeat(has_label, plan.windows["n_slots"], axis=0).T & of_modality
    packed = np.packbits(tokens, axis=1, bitorder="little")
    positives = []
    for layer, source in sources.items():
        if source == layout.GATE_SIGN:
            positives.append(_count_bits(capture.gate_bits(layer, block), packed))
            continue
        values = capture.block_values(layer, block, source, saturated=True)
        counts = np.zeros((len(values), len(columns)), np.int64)
        for first in range(0, len(values), _ROWS):
            rows = slice(first, first + _ROWS)
            # Infinite values are in no statistic.
            fires = (values[rows] > 0) & (values[rows] < np.inf)
            counts[rows] = _count_bits(np.packbits(fires, axis=1, bitorder="little"), packed)
        positives.append(counts)
    return positives, tokens.sum(axis=1)


def _count_bits(bits: NDArray[np.uint8], tokens: NDArray[np.uint8]) -> NDArray[np.int64]:
    """[neuron, label] The number of bits set both in `bits` [neuron, byte] and in each row of `tokens` [label, byte]."""
    counts = np.zeros((len(bits), len(tokens)), np.int64)
    for label, mask in enumerate(tokens):
        counts[:, label] = np.bitwise_count(bits & mask).sum(axis=1, dtype=np.int64)
    return counts
