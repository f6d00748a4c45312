"""Selectivity: neurons that fire for one label's tokens and hardly for another's (LAPE, DAPE), from a store alone.

A neuron fires on a token where its gate is above zero. How often it does so for every label comes from a capture's
statistics, or, where tokens of one modality are to be counted apart, from its stored signs block by block. Knows nothing
about models, and runs without one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np

from actstore.store import layout
from actstore.store.arguments import Typed
from actstore.store.errors import InvalidInputError
from actstore.store.files.arrays import BlockArray
from actstore.store.neurons import NeuronIndex

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.store.reader import Capture

MIN_TOKENS: Final = 1000
"""Below so many tokens a label's probabilities are off by more than 0.016 (one standard error at p = 0.5): a warning."""
GATE, POST = "mlp.gate", "mlp.post"
FIRING_SITES: Final = (GATE, POST)
"""Sites whose values say whether a neuron fires."""
COUNTABLE: Final = (layout.MODALITIES[layout.TEXT], *layout.MODALITIES[layout.IMAGE :])
"""Modalities whose tokens can be counted apart."""
_ROWS: Final = 256
"""Neurons whose values are looked at together: 16 MB at 16,384 slots a block."""


@dataclass(frozen=True)
class SelectivitySettings(Typed):
    """What selective means. The defaults are those of Tang et al."""

    by: str
    """The label column."""
    site: str | None = None
    """`mlp.gate`: a neuron fires where its gate is above zero. `mlp.post`: where its activation is. None: the gate in gated
    layers, the activation in plain ones, which have no other gate."""
    modality: str | None = None
    """Count only tokens of this modality (`text`, `image`, `generated`); None counts every token but special ones."""
    share: float = 0.01
    """Selected neurons, as a share of all."""
    activation_quantile: float = 0.95
    """A neuron belongs to the labels for which it fires more often than this quantile of all probabilities."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.site not in (None, *FIRING_SITES):
            raise InvalidInputError(f"Neurons fire at {GATE} or {POST}, found {self.site!r}. Mend --site.")
        if self.modality is not None and self.modality not in COUNTABLE:
            raise InvalidInputError(
                f"The modality is one of {', '.join(COUNTABLE)}, found {self.modality!r}. Mend --modality."
            )
        if not 0 < self.share <= 1:
            raise InvalidInputError(f"--share is a share of all neurons above 0 and at most 1, found {self.share}.")
        if not 0 < self.activation_quantile <= 1:
            raise InvalidInputError(
                f"--activation-quantile lies above 0 and at most at 1, found {self.activation_quantile}."
            )


@dataclass(frozen=True)
class Firing:
    """How often every neuron fires on each label's tokens."""

    labels: tuple[str, ...]
    """Values of the label column, in the order of the plan."""
    n_tokens: NDArray[np.int64]
    """Counted tokens; shape [label]."""
    positives: NDArray[np.int64]
    """Of these, the ones on which the neuron fires; shape [neuron, label], the neurons of all layers in layer order."""
    layers: dict[int, slice]
    """Layer → where its neurons lie on the neuron axis."""

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """p[neuron, label]: the share of the label's tokens on which the neuron fires; 0 where it has no token.

        A routed expert's neuron does not fire on the tokens that its expert is not given: routing is part of selectivity.
        """
        return self.positives / np.maximum(self.n_tokens, 1)

    def locate(self, flat: NDArray[np.int64]) -> list[tuple[int, int]]:
        """(layer, index in it) of neurons given by their place on the neuron axis."""
        return self._numbering.pairs(flat)

    def names(self, flat: NDArray[np.int64]) -> list[str]:
        """`L3.N17` of each neuron."""
        return self._numbering.names(flat)

    @cached_property
    def _numbering(self) -> NeuronIndex:
        return NeuronIndex({layer: rows.stop - rows.start for layer, rows in self.layers.items()})


@dataclass(frozen=True)
class Selection:
    """The selected neurons, the most selective first."""

    entropies: NDArray[np.float64]
    """Of every neuron, in nats; NaN where it never fires; shape [neuron]."""
    threshold: float
    """A neuron belongs to the labels whose probability lies above it."""
    n_wanted: int
    n_candidates: int
    neurons: NDArray[np.int64]
    """Shape [selected]; `n_wanted` of them, or all candidates where these are fewer."""
    members: NDArray[np.bool_]
    """Which labels each belongs to, at least one; shape [selected, label]."""


@dataclass(frozen=True)
class Selectivity:
    """The label-selective neurons of a capture, and what they were found from."""

    settings: SelectivitySettings
    firing: Firing
    selection: Selection
    empty_labels: tuple[str, ...] = ()
    """Labels without a counted token; they are left out of everything else."""

    @cached_property
    def neurons(self) -> dict[str, NDArray[np.int64]]:
        """Label → its neurons, the most selective first."""
        chosen = self.selection
        return {label: chosen.neurons[chosen.members[:, i]] for i, label in enumerate(self.firing.labels)}

    @property
    def warnings(self) -> list[str]:
        """A sentence for each reason to doubt the result."""
        found = [f"Label {label!r} has no token to count, and is left out." for label in self.empty_labels]
        found += [
            f"Label {label!r} has {n:,} tokens; fewer than {MIN_TOKENS:,} make its probabilities uncertain."
            for label, n in zip(self.firing.labels, self.firing.n_tokens.tolist(), strict=True)
            if n < MIN_TOKENS
        ]
        chosen = self.selection
        if len(chosen.neurons) < chosen.n_wanted:
            found.append(
                f"Only {chosen.n_candidates:,} neurons fire above the threshold for any label, fewer than the "
                f"{chosen.n_wanted:,} that --share asks for: all of them are taken. Lower --activation-quantile for more."
            )
        return found


def find_selectivity(capture: Capture, settings: SelectivitySettings) -> Selectivity:
    """The neurons of a capture that are selective for values of the label column `settings.by`.

    `InvalidInputError` where the capture is not complete, lacks the column or a second value of it, or holds nothing that
    says where neurons fire.

    >>> find_selectivity(store.capture(), SelectivitySettings(by="language")).neurons["fr"]
    """
    firing = count_firing(capture, settings.by, site=settings.site, modality=settings.modality)
    seen = firing.n_tokens > 0
    kept = Firing(
        tuple(label for label, is_seen in zip(firing.labels, seen, strict=True) if is_seen),
        firing.n_tokens[seen],
        firing.positives[:, seen],
        firing.layers,
    )
    if len(kept.labels) < 2:
        kind = f"{settings.modality} tokens" if settings.modality else "tokens"
        raise InvalidInputError(
            f"Selectivity compares at least two values of a label, and capture {capture.record.name!r} has {kind} for "
            f"{', '.join(map(repr, kept.labels)) or 'none'} of {settings.by!r} only. Capture a corpus with more, or name "
            "another label with --by."
        )
    selection = select_neurons(kept.probabilities, settings.share, settings.activation_quantile)
    empty = tuple(label for label, is_seen in zip(firing.labels, seen, strict=True) if not is_seen)
    return Selectivity(settings, kept, selection, empty)


def select_neurons(
    probabilities: NDArray[np.float64], share: float = 0.01, activation_quantile: float = 0.95
) -> Selection:
    """LAPE's selection from probabilities [neuron, label]: Tang et al., section 2.2.

    p′ = p / Σ_labels p, entropy −Σ p′ ln p′ with 0·ln 0 = 0. The threshold is the round(quantile · n)-th smallest of all n
    probabilities, and "above" is strict, both as in the reference. Candidates are neurons above it for at least one label;
    of them the round(share · all neurons) of lowest entropy are selected. Ties go to the neuron with the larger highest
    probability, then to the earlier one. A neuron that never fires has no entropy and is no candidate.
    """
    n_neurons = len(probabilities)
    ranked = np.sort(probabilities, axis=None)
    threshold = float(ranked[max(round(len(ranked) * activation_quantile), 1) - 1]) if len(ranked) else 0.0
    total = probabilities.sum(axis=1)
    shares = probabilities / np.where(total > 0, total, 1)[:, None]
    entropies = -(shares * np.log(np.where(shares > 0, shares, 1))).sum(axis=1) + 0.0  # no −0
    entropies[total == 0] = np.nan
    above = probabilities > threshold
    candidates = np.flatnonzero(above.any(axis=1))
    order = np.lexsort((candidates, -probabilities[candidates].max(axis=1, initial=0), entropies[candidates]))
    n_wanted = round(n_neurons * share)
    neurons = candidates[order[:n_wanted]]
    return Selection(entropies, threshold, n_wanted, len(candidates), neurons, above[neurons])


def count_firing(capture: Capture, by: str, *, site: str | None = None, modality: str | None = None) -> Firing:
    """How often every neuron fires on the tokens of each value of label `by`.

    Special tokens, and documents without a value, are not counted.
    From the statistics where these count the right tokens; else from the stored signs, or values, one layer of one block
    at a time. Both give the same counts.
    """
    record = capture.record
    if by not in record.plan.label_columns:
        known = ", ".join(record.plan.label_columns) or "none; capture with --label"
        raise InvalidInputError(f"Capture {record.name!r} has no label {by!r}. Its labels are: {known}.")
    if not capture.is_complete:
        raise InvalidInputError(
            f"Selectivity needs a complete capture, and {len(capture.blocks)} of {record.plan.n_blocks} blocks of "
            f"{record.name!r} are filled. Finish it with `actstore capture … --resume`."
        )
    sources = _sources(capture, site)
    # A document without a value has the empty string for one: that is no label.
    columns = [i for i, (column, value) in enumerate(record.plan.labels) if column == by and value]
    labels = tuple(record.plan.labels[i][1] for i in columns)
    wanted = None if modality is None else layout.MODALITIES.index(modality)
    if wanted is None or _modalities(capture) <= {layout.PADDING, layout.SPECIAL, wanted}:
        statistics = capture.statistics()
        positives = [
            statistics.gate_positives[layer]
            if source == layout.GATE_SIGN
            else statistics.sites[source, layer].positives
            for layer, source in sources.items()
        ]
        parts, n_tokens = [p[columns].T for p in positives], statistics.label_tokens[columns]
    else:
        parts, n_tokens = _count_blocks(capture, sources, columns, {wanted})
    ends = np.cumsum([0, *(len(part) for part in parts)]).tolist()
    layers = {layer: slice(*ends[i : i + 2]) for i, layer in enumerate(sources)}
    return Firing(labels, np.asarray(n_tokens, np.int64), np.concatenate(parts).astype(np.int64), layers)


def _sources(capture: Capture, site: str | None) -> dict[int, str]:
    """Layer → what says where its neurons fire: `gate_sign`, `mlp.gate` or `mlp.post`."""
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
            f"Where the gates of layer {missing[0]} are open cannot be told: capture {record.name!r} keeps no gate signs. "
            f"Capture with --gate-sign or --site {GATE}, or count activations above zero with --site {POST}."
        )
    if not sources:
        wanted = POST if site in (None, POST) else GATE
        raise InvalidInputError(
            f"Capture {record.name!r} holds no neurons at {wanted}; its sites are {', '.join(record.sites)}. "
            f"Capture with --site {wanted}."
        )
    return sources


def _modalities(capture: Capture) -> set[int]:
    """The modalities of a capture's slots, read a block at a time."""
    found: set[int] = set()
    for block in capture.blocks:
        found |= set(np.unique(capture.block_plan(block).modality).tolist())
    return found


def _count_blocks(
    capture: Capture, sources: dict[int, str], columns: list[int], modalities: set[int]
) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """Firing tokens [neuron, label] of every layer, and all tokens [label], of the wanted modalities only."""
    if not capture.record.encoding.keeps_signs and set(sources.values()) != {layout.GATE_SIGN}:
        raise InvalidInputError(
            f"Tokens of one modality are counted from values, and at precision {capture.record.precision} those of capture "
            f"{capture.record.name!r} do not say which were above zero. Capture with --gate-sign, or at another --precision."
        )
    record = capture.record
    signs = {
        layer: BlockArray(capture.folder, layout.gate_sign_key(record.name, layer))
        for layer, source in sources.items()
        if source == layout.GATE_SIGN
    }
    widths = {layer: record.layers(POST if s == layout.GATE_SIGN else s)[layer] for layer, s in sources.items()}
    positives = {layer: np.zeros((width, len(columns)), np.int64) for layer, width in widths.items()}
    n_tokens = np.zeros(len(columns), np.int64)
    for block in capture.blocks:
        plan = capture.block_plan(block)
        of_modality = np.isin(plan.modality, list(modalities))
        # Label ids are unique over all columns, so a window carries label i where any of its ids is i.
        carries = (plan.labels[:, :, None] == np.array(columns)).any(axis=1)
        tokens = np.zeros((len(columns), record.plan.block_slots), bool)
        tokens[:, : len(of_modality)] = np.repeat(carries, plan.windows["n_slots"], axis=0).T & of_modality
        n_tokens += tokens.sum(axis=1)
        packed = np.packbits(tokens, axis=1, bitorder="little")
        for layer, source in sources.items():
            if layer in signs:
                _add_bits(signs[layer].shard(block).rows(), packed, positives[layer])
            else:
                values = capture.block_values(layer, block, source, saturated=True)
                for first in range(0, len(values), _ROWS):
                    rows = slice(first, first + _ROWS)
                    # Infinite values are in no statistic.
                    fires = (values[rows] > 0) & (values[rows] < np.inf)
                    _add_bits(np.packbits(fires, axis=1, bitorder="little"), packed, positives[layer][rows])
    return list(positives.values()), n_tokens


def _add_bits(bits: NDArray[np.uint8], tokens: NDArray[np.uint8], counts: NDArray[np.int64]) -> None:
    """Add to `counts` [neuron, label] the set bits that `bits` [neuron, byte] shares with each row of `tokens`."""
    for label, mask in enumerate(tokens):
        counts[:, label] += np.bitwise_count(bits & mask).sum(axis=1, dtype=np.int64)
