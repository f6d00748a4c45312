"""Change scores: how differently each neuron of two models acts on the same tokens.

`S(n) = sqrt(Σ (a_n(M₁) − a_n(M₂))² / count)` over the positions of two captures on one plan (Chen et al., NeurIPS 2025, arXiv
2406.14144). Two running sums a neuron are all that is kept, block by block, and those of several machines add up.
Reads stores only; knows nothing about models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from actstore.store.capture.plan import TOKEN_ARRAYS
from actstore.store.capture.positions import blocks_with, check_positions, check_values, warnings_of
from actstore.store.errors import InvalidInputError
from actstore.store.neurons import neuron_names

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from actstore.store.reader import Capture

ROWS_AT_ONCE = 64
"""Neurons whose differences are held in float64 at a time."""


@dataclass
class ChangeSums:
    """Σ (a₁ − a₂)² and the number of positions it is over, by layer; `merge` adds those of other positions."""

    squares: dict[int, NDArray[np.float64]]
    """Layer → sums; shape [neuron]."""
    counts: dict[int, NDArray[np.int64]]
    """Layer → positions at which both models have a finite value; shape [neuron]."""

    @classmethod
    def empty(cls, widths: dict[int, int]) -> ChangeSums:
        """Sums over no position, for layers of so many neurons."""
        return cls(
            {layer: np.zeros(width) for layer, width in widths.items()},
            {layer: np.zeros(width, np.int64) for layer, width in widths.items()},
        )

    def add(self, layer: int, first: NDArray[np.floating], second: NDArray[np.floating]) -> None:
        """Add the values [neuron, position] of both models; NaN and infinities, such as of experts at rest, are left out."""
        for start in range(0, len(first), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            with np.errstate(invalid="ignore", over="ignore"):
                difference = np.subtract(first[rows], second[rows], dtype=np.float64)
                known = np.isfinite(difference)
            n_known = known.sum(axis=1)
            if n_known.sum() < known.size:
                difference[~known] = 0
            self.squares[layer][rows] += np.einsum("np,np->n", difference, difference)
            self.counts[layer][rows] += n_known

    def merge(self, other: ChangeSums) -> None:
        """Add in place the sums over positions of which none is in these."""
        for layer in self.squares:
            self.squares[layer] += other.squares[layer]
            self.counts[layer] += other.counts[layer]

    def scores(self) -> dict[int, NDArray[np.float64]]:
        """Layer → S(n), NaN for a neuron that no position counted; shape [neuron]."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return {layer: np.sqrt(total / self.counts[layer]) for layer, total in self.squares.items()}


@dataclass(frozen=True)
class Change:
    """The change scores of two captures."""

    scores: NDArray[np.float64]
    """S of every neuron of every layer, layers ascending (flat ids); NaN where it is not known."""
    layer: NDArray[np.int32]
    neuron: NDArray[np.int32]
    n_positions: int
    """Positions compared, in the blocks that both captures have."""
    sums: ChangeSums
    warnings: tuple[str, ...] = ()

    def ranking(self) -> NDArray[np.int64]:
        """Flat ids by score, largest first; ties to the earlier neuron, neurons without a score left out."""
        order = np.argsort(-self.scores, kind="stable")
        return order[: np.count_nonzero(~np.isnan(self.scores))]

    def top(self, share: float = 0.05) -> NDArray[np.int64]:
        """The flat ids of the `share` of all neurons that changed most, largest first: the paper's safety neurons.

        Fewer where fewer changed at all: a score of 0 is never among them.
        """
        check_share(share)
        ranking = self.ranking()[: max(1, round(share * len(self.scores)))]
        return ranking[self.scores[ranking] > 0]

    def by_layer(self, chosen: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
        """Layer → indices of the `chosen` flat ids in it, ascending; layers without one left out."""
        return {
            int(layer): np.sort(self.neuron[chosen[self.layer[chosen] == layer]]).astype(np.int64)
            for layer in np.unique(self.layer[chosen])
        }

    def names(self, chosen: NDArray[np.int64]) -> list[str]:
        """`L3.N17` of every chosen flat id."""
        return neuron_names(self.layer[chosen].tolist(), self.neuron[chosen].tolist())


def change_scores(
    first: Capture,
    second: Capture,
    *,
    site: str = "mlp.post",
    positions: str = "counted",
    on_block: Callable[[int, int], None] = lambda done, n_blocks: None,
) -> Change:
    """The change score of every neuron of every layer between two captures of one plan; see `ChangeSums`.

    `positions` is a key of `positions.POSITIONS`; the paper's are `predicting`, where the capture holds M₁'s own generation.
    Only blocks that both captures have are compared, and one layer of one block is in memory at a time.

    Raises `InvalidInputError` where the plans differ (saying in what), where sites, layers or widths do, and where a capture
    keeps no values or no such positions.
    """
    for capture in (first, second):
        check_values(capture, site)
    check_same_plan(first, second)
    check_positions(first, positions)
    widths = _shared_layers(first, second, site)
    blocks = sorted(set(first.blocks) & set(second.blocks))
    if not blocks:
        raise InvalidInputError(
            f"{_name(first)} and {_name(second)} have no committed block in common. Resume them with --resume."
        )
    sums, n_positions = ChangeSums.empty(widths), 0
    for done, (block, slots) in enumerate(blocks_with(first, positions, blocks)):
        everywhere = len(slots) == slots[-1] + 1
        columns: Any = slice(len(slots)) if everywhere else slots
        for layer in widths:
            sums.add(
                layer,
                first.block_values(layer, block, site, saturated=True)[:, columns],
                second.block_values(layer, block, site, saturated=True)[:, columns],
            )
        n_positions += len(slots)
        on_block(done + 1, len(blocks))
    scores = sums.scores()
    warnings = [*warnings_of(first, site), *warnings_of(second, site)]
    if not n_positions:
        warnings.append(f"No position of {_name(first)} is one of {positions!r}: there are no scores.")
    return Change(
        np.concatenate(list(scores.values())),
        np.repeat(np.array(list(widths), np.int32), list(widths.values())),
        np.concatenate([np.arange(width, dtype=np.int32) for width in widths.values()]),
        n_positions,
        sums,
        tuple(warnings),
    )


def check_share(share: float) -> None:
    """Raise `InvalidInputError` unless `share` is a share."""
    if not 0 < share <= 1:
        raise InvalidInputError(f"--share is a share of all neurons, above 0 and at most 1, found {share}.")


def _name(capture: Capture) -> str:
    return f"capture {capture.record.name!r} of {capture.folder}"


def _shared_layers(first: Capture, second: Capture, site: str) -> dict[int, int]:
    """Layer → width, the same in both; `InvalidInputError` naming the first difference."""
    one, two = first.record.layers(site), second.record.layers(site)
    if set(one) != set(two):
        raise InvalidInputError(
            f"{_name(first)} has layers {_listed(one)} at {site}, and {_name(second)} layers {_listed(two)}: every layer is "
            "compared. Capture the same --layers of two models of one architecture."
        )
    if differing := [layer for layer in one if one[layer] != two[layer]]:
        layer = differing[0]
        raise InvalidInputError(
            f"Layer {layer} has {one[layer]} neurons at {site} in {_name(first)} and {two[layer]} in {_name(second)}: "
            "expected two models of one architecture, such as a model and its fine-tuned copy."
        )
    return dict(sorted(one.items()))


def _listed(layers: dict[int, int]) -> str:
    return ", ".join(map(str, sorted(layers)))


def check_same_plan(first: Capture, second: Capture) -> None:
    """Raise `InvalidInputError` unless every slot of two captures stands for the same token of the same input.

    Plans whose fingerprints agree are the same; others are compared token by token, since labels, sources and batches make
    no difference to what a slot holds.
    """
    one, two = first.record.plan, second.record.plan
    if one.fingerprint == two.fingerprint:
        return
    found = _first_difference(first, second)
    if found is None:
        return
    causes = [
        f"{name} {_shown(getattr(one, name))} and {_shown(getattr(two, name))}"
        for name in ("corpus", "tokenizer_fingerprint", "corpus_fingerprint")
        if getattr(one, name) != getattr(two, name)
    ]
    causes += [
        f"setting {key} {one.settings.get(key)} and {two.settings.get(key)}"
        for key in sorted({*one.settings, *two.settings})
        if one.settings.get(key) != two.settings.get(key)
    ]
    raise InvalidInputError(
        f"Two captures of the same plan are compared, and {_name(first)} and {_name(second)} differ in "
        f"{'; '.join([found, *causes])}. Capture the second with the corpus, tokenizer and settings of the first."
    )


def _shown(value: str) -> str:
    return f"{value[:12]}…" if len(value) == 64 else value


def _first_difference(first: Capture, second: Capture) -> str | None:
    """What is not the same in two plans, in a phrase; None where every slot holds the same."""
    one, two = first.record.plan, second.record.plan
    for name in ("n_tokens", "block_slots", "n_blocks", "n_windows"):
        if getattr(one, name) != getattr(two, name):
            kind = {"n_tokens": "tokens", "block_slots": "slots a block", "n_blocks": "blocks", "n_windows": "windows"}
            return f"the number of {kind[name]}, {getattr(one, name):,} and {getattr(two, name):,}"
    for block in range(one.n_blocks):
        slots = slice(block * one.block_slots, (block + 1) * one.block_slots)
        for name in TOKEN_ARRAYS:
            here, there = first.plan.array(f"tokens/{name}", slots), second.plan.array(f"tokens/{name}", slots)
            if not np.array_equal(here, there):
                at = int(np.flatnonzero(here != there)[0])
                return f"the tokens' {name}, at slot {slots.start + at:,} first: {here[at]} and {there[at]}"
        # What the model reads beside the stored positions.
        a, b = first.plan.block(block), second.plan.block(block)
        if not (np.array_equal(a.inputs, b.inputs) and np.array_equal(a.windows["n_inputs"], b.windows["n_inputs"])):
            return f"the ids that the model reads, in block {block} first"
    return None
